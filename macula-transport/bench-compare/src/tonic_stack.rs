//! tonic over HTTP/2 with mutual TLS; the messages are bytes as they are, so no encoding is measured.

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    task::{Context, Poll},
};

use anyhow::Result;
use bytes::{Buf as _, BufMut as _, Bytes};
use futures::future::{BoxFuture, FutureExt as _};
use http::uri::PathAndQuery;
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{NamedService, UnaryService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig},
};

use crate::{
    certificate::shared,
    stacks::{Echo, Worker, repeat},
};

/// Bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[derive(Clone)]
struct Service;

impl NamedService for Service {
    const NAME: &'static str = "bench.Echo";
}

impl UnaryService<Bytes> for Service {
    type Response = Bytes;
    type Future = std::future::Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl tower_service::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        async { Ok(tonic::server::Grpc::new(Raw).unary(Self, request).await) }.boxed()
    }
}

pub(crate) async fn serve() -> Result<String> {
    let shared = shared()?;
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&shared.certificate_pem, &shared.key_pem))
        .client_ca_root(Certificate::from_pem(&shared.certificate_pem));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?.to_string();
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(
        Server::builder()
            .tls_config(tls)?
            .add_service(Service)
            .serve_with_incoming(incoming),
    );
    Ok(address)
}

pub(crate) struct Client(Channel);

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let shared = shared()?;
        let tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(&shared.certificate_pem))
            .identity(Identity::from_pem(&shared.certificate_pem, &shared.key_pem));
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls)?
            .tcp_nodelay(true);
        Ok(Self(endpoint.connect().await?))
    }

    async fn call(&self, body: Bytes) -> Result<Bytes> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await?;
        let path = PathAndQuery::from_static("/bench.Echo/Echo");
        Ok(grpc.unary(Request::new(body), path, Raw).await?.into_inner())
    }
}

impl Echo for Client {
    fn run<'a>(&'a self, body: Bytes, worker: Worker) -> BoxFuture<'a, Result<Worker>> {
        repeat(worker, body, |body| self.call(body)).boxed()
    }
}
