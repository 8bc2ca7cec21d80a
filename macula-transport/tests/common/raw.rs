//! A peer of QUIC and TLS alone, without any of the node's code: the test decides what it sends.

use std::sync::Arc;

use bytes::Bytes;
use macula_transport::{Endpoint, Identity};
use macula_wire::{Realm, proto};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::CertifiedKey,
};

/// A TLS verifier that accepts any key, because the tests look at the node's own checks.
#[derive(Debug)]
struct Anyone {
    raw: bool,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.raw
    }
}

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.raw
    }
}

/// The key or certificate that a hostile peer shows.
pub(crate) enum Shown {
    /// Its own raw key.
    Key(Identity),
    /// A raw key whose secret it does not have.
    Stolen {
        shown: Identity,
        secret: Identity,
    },
    Nothing,
    X509,
}

pub(crate) fn pkcs8(identity: &Identity) -> PrivateKeyDer<'static> {
    let prefix = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ];
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
        [&prefix[..], identity.secret().as_bytes()].concat(),
    ))
}

pub(crate) fn raw_key(shown: &Identity, secret: &Identity) -> Arc<CertifiedKey> {
    let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let key = rustls::crypto::ring::default_provider()
        .key_provider
        .load_private_key(pkcs8(secret))
        .unwrap();
    Arc::new(CertifiedKey::new(
        vec![[&prefix[..], shown.node_id().as_bytes()].concat().into()],
        key,
    ))
}

pub(crate) fn builder() -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier> {
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
}

pub(crate) fn client_tls(shown: Shown, alpn: &[u8]) -> quinn::ClientConfig {
    let raw = !matches!(shown, Shown::X509);
    let builder = builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone { raw }));
    let resolver = |key| Arc::new(rustls::client::AlwaysResolvesClientRawPublicKeys::new(key));
    let mut config = match shown {
        Shown::Key(identity) => builder.with_client_cert_resolver(resolver(raw_key(&identity, &identity))),
        Shown::Stolen { shown, secret } => builder.with_client_cert_resolver(resolver(raw_key(&shown, &secret))),
        Shown::Nothing => builder.with_no_client_auth(),
        Shown::X509 => {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
            builder
                .with_client_auth_cert(vec![made.cert.der().clone()], key)
                .unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

pub(crate) fn raw_client() -> quinn::Endpoint {
    quinn::Endpoint::client(super::loopback()).unwrap()
}

/// A QUIC connection without any of the node's code, its handshake done.
pub(crate) async fn raw_connection(endpoint: &quinn::Endpoint, to: &Endpoint) -> quinn::Connection {
    raw_connection_with(endpoint, to, quinn::TransportConfig::default()).await
}

async fn raw_connection_with(
    endpoint: &quinn::Endpoint,
    to: &Endpoint,
    transport: quinn::TransportConfig,
) -> quinn::Connection {
    let mut config = client_tls(Shown::Key(super::identity()), b"macula/1");
    config.transport_config(Arc::new(transport));
    endpoint
        .connect_with(config, to.local_addr(), "x")
        .unwrap()
        .await
        .unwrap()
}

pub(crate) fn hello(realm: &Realm, version: u32) -> Vec<u8> {
    let hello = proto::Hello {
        version,
        realm: Bytes::copy_from_slice(realm.hash().as_bytes()),
        max_message_bytes: 4 << 20,
        max_concurrent_calls: 100,
        ..Default::default()
    };
    let frame = macula_wire::frame(&proto::Control {
        kind: Some(proto::control::Kind::Hello(hello)),
    });
    [&[1], &frame[..]].concat()
}

/// A connection that has introduced itself, by hand.
pub(crate) async fn introduced(endpoint: &quinn::Endpoint, to: &Endpoint) -> (quinn::Connection, quinn::SendStream) {
    introduce(raw_connection(endpoint, to).await).await
}

/// As [`introduced`], by a peer that takes so many bytes of each stream that it does not read.
pub(crate) async fn introduced_taking(
    endpoint: &quinn::Endpoint,
    to: &Endpoint,
    bytes: u32,
) -> (quinn::Connection, quinn::SendStream) {
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(bytes.into());
    introduce(raw_connection_with(endpoint, to, transport).await).await
}

async fn introduce(connection: quinn::Connection) -> (quinn::Connection, quinn::SendStream) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&hello(&Realm::default(), 1)).await.unwrap();
    recv.read_chunk(1, true).await.unwrap().unwrap();
    (connection, send)
}

/// A TLS server that accepts any raw key from a client.
pub(crate) fn server_builder() -> rustls::ConfigBuilder<rustls::ServerConfig, rustls::server::WantsServerCert> {
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anyone { raw: true }))
}

/// The receive window of such a server for a stream, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;

/// A QUIC server without any of the node's code.
pub(crate) fn raw_server(mut tls: rustls::ServerConfig, alpn: &[u8]) -> quinn::Endpoint {
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(STREAM_WINDOW.into());
    config.transport_config(Arc::new(transport));
    quinn::Endpoint::server(config, super::loopback()).unwrap()
}

/// A provider of QUIC and TLS alone: it sends HELLO, and the test decides what it answers.
pub(crate) struct RawProvider {
    identity: Identity,
    endpoint: quinn::Endpoint,
}

impl RawProvider {
    pub(crate) fn new() -> Self {
        let identity = super::identity();
        let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(raw_key(&identity, &identity));
        let endpoint = raw_server(server_builder().with_cert_resolver(Arc::new(resolver)), b"macula/1");
        Self { identity, endpoint }
    }

    /// Connects `client` to this provider: its end, and this one with its control stream.
    pub(crate) async fn connected(
        &self,
        client: &Endpoint,
    ) -> (macula_transport::Connection, quinn::Connection, RawControl) {
        let at = [self.endpoint.local_addr().unwrap().try_into().unwrap()];
        let (pool, node) = (client.pool(), self.identity.node_id());
        let (here, there) = tokio::join!(pool.get(&node, &at), async {
            let connection = self.endpoint.accept().await.unwrap().await.unwrap();
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            recv.read_chunk(1, true).await.unwrap().unwrap();
            // The accepting side sends HELLO without the stream's kind.
            send.write_all(&hello(&Realm::default(), 1)[1..]).await.unwrap();
            (connection, (send, recv))
        });
        (here.unwrap(), there.0, there.1)
    }
}

/// Both halves of a control stream.
pub(crate) type RawControl = (quinn::SendStream, quinn::RecvStream);
