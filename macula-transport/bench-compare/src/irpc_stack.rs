//! irpc over QUIC, with the endpoints its own helpers make: the server proves a key, the client does not.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use irpc::{
    WithChannels,
    channel::oneshot,
    rpc::RemoteService as _,
    rpc_requests,
    util::{make_client_endpoint, make_server_endpoint},
};
use serde::{Deserialize, Serialize};

use crate::stacks::{Echo, Worker, repeat};

#[derive(Debug, Serialize, Deserialize)]
struct Body(Bytes);

#[rpc_requests(message = Message, no_spans)]
#[derive(Debug, Serialize, Deserialize)]
enum Protocol {
    #[rpc(tx = oneshot::Sender<Bytes>)]
    Body(Body),
}

pub(crate) async fn serve() -> Result<String> {
    let (endpoint, certificate) =
        make_server_endpoint((Ipv4Addr::LOCALHOST, 0).into()).map_err(|error| anyhow!("{error}"))?;
    let address = endpoint.local_addr()?;
    let (requests, mut received) = tokio::sync::mpsc::channel(1024);
    let local = irpc::LocalSender::<Protocol>::from(requests);
    tokio::spawn(irpc::rpc::listen(endpoint, Protocol::remote_handler(local)));
    tokio::spawn(async move {
        while let Some(message) = received.recv().await {
            let Message::Body(WithChannels { tx, inner, .. }) = message;
            tokio::spawn(async move { tx.send(inner.0).await.ok() });
        }
    });
    let certificate: String = certificate.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{certificate}@{address}"))
}

pub(crate) struct Client(irpc::Client<Protocol>);

impl Client {
    pub(crate) fn connect(address: &str) -> Result<Self> {
        let (certificate, address) = address.split_once('@').context("no certificate")?;
        let certificate: Vec<u8> = (0..certificate.len() / 2)
            .map(|at| u8::from_str_radix(&certificate[2 * at..2 * at + 2], 16))
            .collect::<Result<_, _>>()?;
        let endpoint = make_client_endpoint((Ipv4Addr::LOCALHOST, 0).into(), &[&certificate])
            .map_err(|error| anyhow!("{error}"))?;
        Ok(Self(irpc::Client::noq(endpoint, address.parse()?)))
    }

    async fn call(&self, body: Bytes) -> Result<Bytes> {
        self.0.rpc(Body(body)).await.map_err(|error| anyhow!("{error}"))
    }
}

impl Echo for Client {
    fn run<'a>(&'a self, body: Bytes, worker: Worker) -> BoxFuture<'a, Result<Worker>> {
        repeat(worker, body, |body| self.call(body)).boxed()
    }
}
