//! What is compared: how each serves, connects and calls.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use macula_rpc::{Client, Provider, Server, ServiceName, StaticResolver};
use macula_transport::{CallRequest, Config, Connection, Handler, Identity, IncomingCall, NoService, Reply};
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity as Pem, Server as TonicServer, ServerTlsConfig,
};

use crate::echo;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Stack {
    /// tonic over HTTP/2 with mutual TLS.
    Tonic,
    /// tonic's stubs over the mesh.
    Stubs,
    /// The mesh's own client and server.
    Facade,
    /// The bare transport.
    Transport,
}

/// A stack's client, connected.
pub(crate) enum Caller {
    Tonic(Channel),
    Stubs(macula_rpc::Channel),
    Facade(Client, ServiceName),
    Transport(Connection, ServiceName),
}

struct Bare;

impl Handler for Bare {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        Box::pin(std::future::ready(Reply::ok(call.into_body())))
    }
}

impl Stack {
    /// All of them, the one compared with first.
    pub(crate) const ALL: [Self; 4] = [Self::Tonic, Self::Stubs, Self::Facade, Self::Transport];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tonic => "tonic over HTTP/2 + TLS",
            Self::Stubs => "tonic stubs over macula",
            Self::Facade => "macula-rpc",
            Self::Transport => "macula-transport",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|stack| stack.name() == name);
        found.context("no such stack")
    }

    /// Serves until the process ends, at the address returned.
    pub(crate) async fn serve(self) -> Result<String> {
        let server = Server::new();
        match self {
            Self::Tonic => return serve_tonic().await,
            Self::Stubs => {
                server.serve_tonic(echo::Service)?;
                serve_macula(server).await
            }
            Self::Facade => {
                server.serve("bench.Echo".parse()?, async |request: macula_rpc::Request| {
                    Ok::<_, macula_rpc::Status>(request.into_payload())
                })?;
                serve_macula(server).await
            }
            Self::Transport => serve_macula(Bare).await,
        }
    }

    pub(crate) async fn connect(self, address: &str) -> Result<Caller> {
        if self == Self::Tonic {
            let (certificate, pem) = certificate()?;
            let tls = ClientTlsConfig::new()
                .domain_name("localhost")
                .ca_certificate(certificate)
                .identity(pem);
            let endpoint = Endpoint::from_shared(format!("https://{address}"))?
                .tls_config(tls)?
                .tcp_nodelay(true);
            return Ok(Caller::Tonic(endpoint.connect().await?));
        }
        let name: ServiceName = "bench.Echo".parse()?;
        let (id, at) = address.split_once('@').context("not an address of the mesh")?;
        let provider = Provider::new(id.parse()?, [at.parse()?]);
        let endpoint = macula_transport::Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
        if self == Self::Transport {
            let connection = endpoint.pool().get(&provider.node_id, &provider.endpoints).await?;
            // It lasts as long as the process.
            std::mem::forget(endpoint);
            return Ok(Caller::Transport(connection, name));
        }
        let directory = StaticResolver::new().with_service(name.clone(), [provider]);
        let client = Client::builder(&endpoint, directory).build();
        std::mem::forget(endpoint);
        Ok(match self {
            Self::Stubs => Caller::Stubs(macula_rpc::Channel::new(client)),
            _ => Caller::Facade(client, name),
        })
    }
}

impl Caller {
    pub(crate) async fn call(&self, body: Bytes) -> Result<()> {
        match self {
            Self::Tonic(channel) => echo::call(channel.clone(), body).await,
            Self::Stubs(channel) => echo::call(channel.clone(), body).await,
            Self::Facade(client, name) => {
                client.call(name, body).await?;
                Ok(())
            }
            Self::Transport(connection, name) => {
                connection.call(CallRequest::new(name, body)).await?;
                Ok(())
            }
        }
    }
}

async fn serve_macula(handler: impl Handler) -> Result<String> {
    let config = Config::new(Identity::generate()?).with_listen((Ipv4Addr::LOCALHOST, 0).into());
    let endpoint = macula_transport::Endpoint::bind(config, handler).await?;
    let address: macula_rpc::Endpoint = endpoint.local_addr().try_into()?;
    let address = format!("{}@{address}", endpoint.node_id());
    // It serves as long as the process lasts.
    std::mem::forget(endpoint);
    Ok(address)
}

async fn serve_tonic() -> Result<String> {
    let (certificate, pem) = certificate()?;
    let tls = ServerTlsConfig::new().identity(pem).client_ca_root(certificate);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?.to_string();
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(
        TonicServer::builder()
            .tls_config(tls)?
            .add_service(echo::Service)
            .serve_with_incoming(incoming),
    );
    Ok(address)
}

/// One certificate for both sides. A fixed key: what is measured is calls, and this one guards nothing.
fn certificate() -> Result<(Certificate, Pem)> {
    // An Ed25519 private key as RFC 8410 has it, section 7.
    let prefix = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ];
    let key = rcgen::KeyPair::try_from([&prefix[..], &[0x5a; 32]].concat())?;
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2100, 1, 1);
    params.serial_number = Some(1_u64.into());
    let certificate = params.self_signed(&key)?.pem();
    Ok((
        Certificate::from_pem(&certificate),
        Pem::from_pem(&certificate, key.serialize_pem()),
    ))
}
