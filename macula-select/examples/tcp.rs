//! Calls over plain TCP that survive a dead server: `cargo run -p macula-select --example tcp`.
#![allow(clippy::print_stdout, reason = "an example shows what happens")]
use macula_select::*;
use std::{collections::HashMap, io, net::SocketAddr, sync::Mutex, time::Instant};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener, net::TcpStream, task::JoinSet, time::sleep_until};

async fn attempt(id: AttemptId, to: SocketAddr, request: String) -> (AttemptId, Fate, String) {
    let mut reply = String::new();
    let Ok(mut stream) = TcpStream::connect(to).await else {
        return (id, Fate::NotSent, reply);
    };
    let written = stream.write_all(request.as_bytes()).await;
    let read = written.and(stream.read_to_string(&mut reply).await);
    (
        id,
        read.map_or(Fate::Unknown(Loss::ConnectionLost), |_| Fate::Ok),
        reply,
    )
}

async fn call(balancer: &Mutex<Balancer<SocketAddr>>, request: &str) -> Result<String, CallError<SocketAddr>> {
    let (mut running, mut handles, mut answer) = (JoinSet::new(), HashMap::new(), String::new());
    let mut call = Call::new(Instant::now(), CallOptions::default());
    loop {
        let next = call.poll(Instant::now(), &mut balancer.lock().expect("no thread panics"));
        match next {
            Output::Dispatch { to, attempt: id, .. } => {
                handles.insert(id, running.spawn(attempt(id, to, request.to_owned())));
            }
            Output::Abort { attempt } => drop(handles.remove(&attempt).map(|handle| handle.abort())),
            Output::Recall { .. } => {} // the balancer is told of no link, so it never comes
            Output::Wait(until) => tokio::select! {
                Some(Ok((id, fate, reply))) = running.join_next() => {
                    answer = reply;
                    call.on_result(Instant::now(), &mut balancer.lock().expect("no thread panics"), id, fate);
                }
                () = sleep_until(until.into()) => {}
            },
            Output::Done(result) => return result.map(|_| answer),
            Output::Over => unreachable!("it is done only once"),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let (alive, dead) = (
        TcpListener::bind("127.0.0.1:0").await?,
        TcpListener::bind("127.0.0.1:0").await?,
    );
    let balancer = Mutex::new(Balancer::new(BalancerConfig::default(), 42));
    let servers = [alive.local_addr()?, dead.local_addr()?].map(Provider::new);
    balancer
        .lock()
        .expect("no thread panics")
        .update(Instant::now(), servers);
    drop(dead);
    let client = async { call(&balancer, "hi").await.map_err(io::Error::other) };
    let server = async { alive.accept().await?.0.write_all(b"hello").await };
    tokio::try_join!(client, server).map(|(reply, ())| println!("{reply}"))
}
