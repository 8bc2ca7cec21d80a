//! macula-transport.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{CallRequest, Config, Connection, Endpoint, Handler, Identity, IncomingCall, NoService, Reply};
use macula_wire::ServiceName;

use crate::stacks::{Echo, TIMEOUT, Worker, repeat};

struct Service;

impl Handler for Service {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        std::future::ready(Reply::ok(call.into_body())).boxed()
    }
}

pub(crate) async fn serve() -> Result<String> {
    let config = Config::new(Identity::generate()?).with_listen((Ipv4Addr::LOCALHOST, 0).into());
    let endpoint = Endpoint::bind(config, Service).await?;
    let address = format!("{}@{}", endpoint.node_id(), endpoint.local_addr());
    // It serves as long as the process lives.
    std::mem::forget(endpoint);
    Ok(address)
}

pub(crate) struct Client {
    _endpoint: Endpoint,
    connection: Connection,
    service: ServiceName,
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let (node, address) = address.split_once('@').context("no node id")?;
        let config = Config::new(Identity::generate()?).with_listen((Ipv4Addr::LOCALHOST, 0).into());
        let endpoint = Endpoint::bind(config, NoService).await?;
        let connection = endpoint.pool().get(&node.parse()?, &[address.parse()?]).await?;
        Ok(Self {
            _endpoint: endpoint,
            connection,
            service: "echo".parse()?,
        })
    }

    async fn call(&self, body: Bytes) -> Result<Bytes> {
        Ok(self
            .connection
            .call(CallRequest::new(&self.service, body).with_timeout(TIMEOUT))
            .await?
            .body)
    }
}

impl Echo for Client {
    fn run<'a>(&'a self, body: Bytes, worker: Worker) -> BoxFuture<'a, Result<Worker>> {
        repeat(worker, body, |body| self.call(body)).boxed()
    }
}
