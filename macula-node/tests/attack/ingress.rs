//! Sockets at the port for programs without Macula that say nothing, or never end a request (X8).

use std::{net::SocketAddr, time::Instant};

use macula_node::{
    Limits,
    ingress::{Ingress, IngressConfig},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
};

use crate::{
    CALLS, SERVICE, Served, compare,
    http1::{Answer, exchange},
    victim,
};

/// The network of the honest programs.
const HONEST: u8 = 200;

async fn connect(network: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, network, 1], 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Makes [`CALLS`] honest requests, each on a connection of its own.
async fn posted(to: SocketAddr) -> Served {
    let (mut calls, mut took) = (0, Vec::new());
    let head = format!("POST /v1/call/{SERVICE} HTTP/1.1");
    for _ in 0..CALLS {
        let began = Instant::now();
        let Answer { status, body, .. } = exchange(connect(HONEST, to).await, &head, "hello").await;
        took.push(began.elapsed());
        calls += usize::from(status == 200 && body == "hello");
    }
    took.sort_unstable();
    let p99 = took[CALLS - 2];
    Served { calls, p99 }
}

#[tokio::test(flavor = "multi_thread")]
async fn x8_silent_sockets_and_endless_requests_do_not_shut_the_ingress() {
    let victim = victim(Limits::default()).await;
    let config = IngressConfig::new("127.0.0.1:0".parse().unwrap()).max_connections(16);
    let ingress = Ingress::bind(&victim, config).await.unwrap();
    let at = ingress.local_addr();
    let calm = posted(at).await;
    let mut attackers = Vec::new();
    let endless = format!("POST /v1/call/{SERVICE} HTTP/1.1\r\nHost: mesh\r\nContent-Length: 5\r\n\r\n");
    for said in ["", "POST", &endless] {
        for network in [1, 2] {
            for _ in 0..16 {
                let mut socket = connect(network, at).await;
                // It may have given way already.
                let _ = socket.write_all(said.as_bytes()).await;
                attackers.push(socket);
            }
        }
    }
    // A program on the host of the honest ones, too.
    for _ in 0..16 {
        attackers.push(connect(HONEST, at).await);
    }
    compare("silent sockets at the ingress", calm, posted(at).await);
    drop(attackers);
    // It waits for every request that runs.
    ingress.close().await;
}
