//! macula-transport.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{CallRequest, Config, Connection, Endpoint, Handler, Identity, IncomingCall, NoService, Reply};
use macula_wire::{SecretKey, ServiceName};

use crate::stacks::{Echo, TIMEOUT, Worker, repeat};

/// Echoes; `hang` never answers, and `waiting` says how many such calls there are.
#[derive(Default)]
struct Service {
    hanging: Arc<AtomicU64>,
}

impl Handler for Service {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        match call.service().as_str() {
            "hang" => {
                self.hanging.fetch_add(1, Relaxed);
                std::future::pending().boxed()
            }
            "waiting" => std::future::ready(Reply::ok(self.hanging.load(Relaxed).to_string())).boxed(),
            _ => std::future::ready(Reply::ok(call.into_body())).boxed(),
        }
    }
}

pub(crate) async fn serve(listen: SocketAddr) -> Result<String> {
    // A fixed key: a server that is started again is the same node.
    let identity = Identity::from_secret(SecretKey::from_bytes(&[0x5a; 32]));
    let endpoint = Endpoint::bind(Config::new(identity).with_listen(listen), Service::default()).await?;
    let address = format!("{}@{}", endpoint.node_id(), endpoint.local_addr());
    // It serves as long as the process lives.
    std::mem::forget(endpoint);
    Ok(address)
}

pub(crate) async fn endpoint() -> Result<Endpoint> {
    let config = Config::new(Identity::generate()?).with_listen((Ipv4Addr::LOCALHOST, 0).into());
    Ok(Endpoint::bind(config, NoService).await?)
}

pub(crate) struct Client {
    _endpoint: Option<Endpoint>,
    connection: Connection,
    service: ServiceName,
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        Self::on(endpoint().await?, address).await
    }

    pub(crate) async fn on(endpoint: Endpoint, address: &str) -> Result<Self> {
        let mut client = Self::shared(&endpoint, address).await?;
        client._endpoint = Some(endpoint);
        Ok(client)
    }

    pub(crate) async fn shared(endpoint: &Endpoint, address: &str) -> Result<Self> {
        let (node, address) = address.split_once('@').context("no node id")?;
        let connection = endpoint.pool().get(&node.parse()?, &[address.parse()?]).await?;
        Ok(Self {
            _endpoint: None,
            connection,
            service: "echo".parse()?,
        })
    }

    pub(crate) async fn call(&self, body: Bytes) -> Result<Bytes> {
        self.call_within(body, TIMEOUT).await
    }

    pub(crate) async fn call_within(&self, body: Bytes, timeout: Duration) -> Result<Bytes> {
        Ok(self
            .connection
            .call(CallRequest::new(&self.service, body).with_timeout(timeout))
            .await?
            .body)
    }

    pub(crate) async fn hang(&self) -> Result<()> {
        let service = "hang".parse()?;
        self.connection
            .call(CallRequest::new(&service, Bytes::new()).with_timeout(10 * TIMEOUT))
            .await?;
        Ok(())
    }
}

/// How many calls hang at the server.
pub(crate) async fn waiting(client: &Client) -> Result<u64> {
    let service = "waiting".parse()?;
    let reply = client
        .connection
        .call(CallRequest::new(&service, Bytes::new()).with_timeout(TIMEOUT))
        .await?;
    Ok(std::str::from_utf8(&reply.body)?.parse()?)
}

impl Echo for Client {
    fn run<'a>(&'a self, body: Bytes, worker: Worker) -> BoxFuture<'a, Result<Worker>> {
        repeat(worker, body, |body| self.call(body)).boxed()
    }
}
