//! tarpc over TCP with bincode. It has no TLS of its own, so it is measured without.

use std::net::Ipv4Addr;

use anyhow::Result;
use bytes::Bytes;
use futures::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
};
use tarpc::{
    client, context,
    server::{BaseChannel, Channel as _},
    tokio_serde::formats::Bincode,
};

use crate::stacks::{Echo, TIMEOUT, Worker, repeat};

#[tarpc::service]
trait EchoService {
    async fn echo(body: Bytes) -> Bytes;
}

#[derive(Clone)]
struct Service;

impl EchoService for Service {
    async fn echo(self, _: context::Context, body: Bytes) -> Bytes {
        body
    }
}

pub(crate) async fn serve() -> Result<String> {
    let mut listener = tarpc::serde_transport::tcp::listen((Ipv4Addr::LOCALHOST, 0), Bincode::default).await?;
    let address = listener.local_addr().to_string();
    tokio::spawn(async move {
        while let Some(Ok(transport)) = listener.next().await {
            transport.get_ref().set_nodelay(true).ok();
            let channel = BaseChannel::with_defaults(transport);
            tokio::spawn(channel.execute(Service.serve()).for_each(|answer| async move {
                tokio::spawn(answer);
            }));
        }
    });
    Ok(address)
}

pub(crate) struct Client(EchoServiceClient);

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let transport = tarpc::serde_transport::tcp::connect(address, Bincode::default).await?;
        transport.get_ref().set_nodelay(true)?;
        Ok(Self(
            EchoServiceClient::new(client::Config::default(), transport).spawn(),
        ))
    }

    async fn call(&self, body: Bytes) -> Result<Bytes> {
        let mut context = context::current();
        context.deadline = std::time::Instant::now() + TIMEOUT;
        Ok(self.0.echo(context, body).await?)
    }
}

impl Echo for Client {
    fn run<'a>(&'a self, body: Bytes, worker: Worker) -> BoxFuture<'a, Result<Worker>> {
        repeat(worker, body, |body| self.call(body)).boxed()
    }
}
