//! quinn with its defaults and mutual TLS: a stream for each call, the whole message read and written at once.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::server::WebPkiClientVerifier;

use crate::{
    certificate::{roots, shared},
    stacks::{Echo, Worker, repeat},
};

const ALPN: &[u8] = b"echo";
const MAX_BYTES: usize = 8 << 20;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) async fn serve() -> Result<String> {
    let certificate = shared()?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots()?.into(), provider()).build()?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.certificate], certificate.key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport()));
    let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into())?;
    let address = endpoint.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let connection = incoming.await?;
                loop {
                    let (send, recv) = connection.accept_bi().await?;
                    tokio::spawn(answer(send, recv));
                }
                #[expect(unreachable_code, reason = "gives the block its type")]
                anyhow::Ok(())
            });
        }
    });
    Ok(address)
}

/// Enough streams for every load; the rest is quinn's default.
fn transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(1024_u32.into());
    transport
}

async fn answer(mut send: quinn::SendStream, mut recv: quinn::RecvStream) -> Result<()> {
    let request = recv.read_to_end(MAX_BYTES).await?;
    send.write_chunk(request.into()).await?;
    send.finish()?;
    Ok(())
}

pub(crate) struct Client {
    _endpoint: quinn::Endpoint,
    connection: quinn::Connection,
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let certificate = shared()?;
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots()?)
            .with_client_auth_cert(vec![certificate.certificate], certificate.key)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(Arc::new(transport()));
        let mut endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
        endpoint.set_default_client_config(config);
        let connection = endpoint.connect(address.parse()?, "localhost")?.await?;
        Ok(Self {
            _endpoint: endpoint,
            connection,
        })
    }

    async fn call(&self, body: Bytes) -> Result<Bytes> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.write_chunk(body).await?;
        send.finish()?;
        Ok(recv.read_to_end(MAX_BYTES).await?.into())
    }
}

impl Echo for Client {
    fn run<'a>(&'a self, body: Bytes, worker: Worker) -> BoxFuture<'a, Result<Worker>> {
        repeat(worker, body, |body| self.call(body)).boxed()
    }
}
