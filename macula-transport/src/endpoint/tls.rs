//! TLS 1.3 with raw Ed25519 public keys on both sides (RFC 7250), pinned to the node id that was dialed.
//!
//! **Invariants:** no certificate, date or authority is ever looked at: a peer is its key. Nothing is sent before the handshake
//! is done (no 0-RTT) and no session is resumed, so each connection proves both keys afresh.

use std::sync::{Arc, OnceLock};

use macula_wire::NodeId;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};

use crate::{config::KeyExchange, identity::Identity};

/// The application protocols spoken (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// The mesh: connections between members.
    Mesh,
    /// One request of a peer that need not be a member.
    Visit,
}

impl Alpn {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Mesh => b"macula/1",
            Self::Visit => b"macula-visit/1",
        }
    }

    /// The protocol that a connection was made for.
    pub(crate) fn of(quic: &quinn::Connection) -> Option<Self> {
        let agreed = quic.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol?;
        [Self::Mesh, Self::Visit].into_iter().find(|it| it.name() == agreed)
    }
}

/// What precedes the key in an Ed25519 SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What precedes the secret in an Ed25519 PKCS #8 private key (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The peer's key is not the one that was dialed, or not a key of ours at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum KeyError {
    #[error("the peer's key is {} and not the dialed {}", found.short(), expected.short())]
    NotTheDialed { expected: NodeId, found: NodeId },
    #[error("the peer's key is not an Ed25519 public key")]
    NotEd25519,
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// Both sides' TLS, made once per node.
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
}

impl Tls {
    pub(crate) fn new(identity: &Identity, key_exchange: KeyExchange) -> Result<Self, Error> {
        let mut provider = match key_exchange {
            KeyExchange::X25519 => {
                let mut provider = ring::default_provider();
                provider.kx_groups = vec![ring::kx_group::X25519];
                provider
            }
            #[cfg(feature = "aws-lc-rs")]
            KeyExchange::X25519MlKem768 => {
                use rustls::crypto::aws_lc_rs;
                let mut provider = aws_lc_rs::default_provider();
                provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
                provider
            }
        };
        // Fastest first: every CPU this runs on has AES instructions. Those of TLS 1.2 are of no use here.
        provider.cipher_suites.retain(|suite| suite.tls13().is_some());
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        provider.signature_verification_algorithms = ed25519_only(&provider.signature_verification_algorithms);
        let pkcs8 = [&PKCS8_PREFIX[..], identity.secret().as_bytes()].concat();
        let key = provider
            .key_provider
            .load_private_key(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8)))?;
        let key = Arc::new(CertifiedKey::new(vec![spki(&identity.node_id())], key));
        Ok(Self {
            provider: Arc::new(provider),
            key,
        })
    }

    /// The accepting side's configuration: any peer that proves an Ed25519 key.
    pub(crate) fn server(&self) -> Result<QuicServerConfig, Error> {
        QuicServerConfig::try_from(self.server_config()?)
            .map_err(|_| Error::General("the provider lacks QUIC's initial suite".into()))
    }

    fn server_config(&self) -> Result<rustls::ServerConfig, Error> {
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(AnyKey {
                provider: self.provider.clone(),
            }))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = [Alpn::Mesh, Alpn::Visit].map(|it| it.name().to_vec()).into();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// The dialing side's configuration, for one dial: exactly `expected`, or any key when there is none (trust on first use).
    pub(crate) fn client(
        &self,
        alpn: Alpn,
        expected: Option<NodeId>,
    ) -> Result<(QuicClientConfig, Arc<FoundKey>), Error> {
        let found = Arc::new(FoundKey {
            expected,
            found: OnceLock::new(),
            provider: self.provider.clone(),
        });
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(found.clone())
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![alpn.name().to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.enable_early_data = false;
        let config = QuicClientConfig::try_from(config)
            .map_err(|_| Error::General("the provider lacks QUIC's initial suite".into()))?;
        Ok((config, found))
    }
}

/// The node id a connection's peer has proved, from the identity quinn hands out.
pub(crate) fn peer_id(identity: Option<Box<dyn std::any::Any>>) -> Option<NodeId> {
    let keys = identity?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    match &keys[..] {
        [key] => parse_spki(key).ok(),
        _ => None,
    }
}

fn spki(node: &NodeId) -> CertificateDer<'static> {
    CertificateDer::from([&SPKI_PREFIX[..], node.as_bytes()].concat())
}

fn parse_spki(der: &[u8]) -> Result<NodeId, KeyError> {
    der.strip_prefix(&SPKI_PREFIX)
        .and_then(NodeId::from_slice)
        .ok_or(KeyError::NotEd25519)
}

fn ed25519_only(all: &WebPkiSupportedAlgorithms) -> WebPkiSupportedAlgorithms {
    let of_ours = all
        .mapping
        .iter()
        .position(|(scheme, _)| *scheme == SignatureScheme::ED25519);
    WebPkiSupportedAlgorithms {
        all: of_ours.map_or(all.all, |at| all.mapping[at].1),
        mapping: of_ours.map_or(all.mapping, |at| &all.mapping[at..=at]),
    }
}

fn verify_signature(
    provider: &CryptoProvider,
    message: &[u8],
    key: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    verify_tls13_signature_with_raw_key(message, &key, signed, &provider.signature_verification_algorithms)
}

/// The dialing side's check, which also remembers the key it saw.
#[derive(Debug)]
pub(crate) struct FoundKey {
    expected: Option<NodeId>,
    found: OnceLock<NodeId>,
    provider: Arc<CryptoProvider>,
}

impl FoundKey {
    /// The key the peer showed, once it did; proved only if the handshake succeeded.
    pub(crate) fn get(&self) -> Option<NodeId> {
        self.found.get().copied()
    }
}

impl ServerCertVerifier for FoundKey {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = parse_spki(key)?;
        let _ = self.found.set(found);
        match self.expected {
            Some(expected) if expected != found => Err(KeyError::NotTheDialed { expected, found }.into()),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(
            rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(&self.provider, message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The accepting side's check: the peer must have a key, whichever it is.
#[derive(Debug)]
struct AnyKey {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        parse_spki(key)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(&self.provider, message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, ClientConnection, ServerConnection};

    use super::*;

    /// The server's and the client's records, handed to and fro until both have said all.
    fn exchange(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), Error> {
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    fn client(tls: &Tls, version: &'static rustls::SupportedProtocolVersion) -> ClientConnection {
        // The usual provider: ours has no suite for TLS 1.2 at all.
        let found = FoundKey {
            expected: None,
            found: OnceLock::new(),
            provider: tls.provider.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(found))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(tls.key.clone())));
        config.alpn_protocols = vec![Alpn::Mesh.name().to_vec()];
        ClientConnection::new(Arc::new(config), ServerName::try_from("x").unwrap()).unwrap()
    }

    #[test]
    fn a_peer_of_tls_1_2_is_refused() {
        let tls = Tls::new(&Identity::generate().unwrap(), KeyExchange::default()).unwrap();
        let server = Arc::new(tls.server_config().unwrap());
        let connected = exchange(
            &mut client(&tls, &TLS13),
            &mut ServerConnection::new(server.clone()).unwrap(),
        );
        assert_eq!(connected, Ok(()), "the same peer with TLS 1.3 is served");
        let refused = exchange(
            &mut client(&tls, &rustls::version::TLS12),
            &mut ServerConnection::new(server).unwrap(),
        );
        assert!(matches!(refused, Err(Error::PeerIncompatible(_))), "{refused:?}");
    }
}
