//! Peers that are not who they should be, whichever side dials: turned away, counted, and the node keeps serving.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::{net::SocketAddr, sync::Arc};

use common::{
    client, config, connect, identity, provider,
    raw::{Shown, client_tls, hello, raw_client, raw_connection, raw_key, raw_server, server_builder},
    still_serves, until,
};
use macula_transport::{DialError, Endpoint, HelloError, Identity, Lost, NoService};
use macula_wire::Realm;
use rustls::pki_types::PrivateKeyDer;

async fn rejected(provider: &Endpoint, shown: Shown, alpn: &[u8]) {
    let before = provider.stats().rejected_handshakes;
    let endpoint = raw_client();
    let connecting = endpoint
        .connect_with(client_tls(shown, alpn), provider.local_addr(), "x")
        .unwrap();
    // A TLS 1.3 client may believe it is connected before the server has judged it.
    match connecting.await {
        Ok(connection) => drop(connection.closed().await),
        Err(error) => drop(error),
    }
    until("the failed handshake is counted", || {
        provider.stats().rejected_handshakes > before
    })
    .await;
    still_serves(provider).await;
}

#[tokio::test]
async fn a_peer_without_a_key_is_rejected() {
    rejected(&provider().await.0, Shown::Nothing, b"macula/1").await;
}

#[tokio::test]
async fn a_peer_with_an_x509_certificate_is_rejected() {
    rejected(&provider().await.0, Shown::X509, b"macula/1").await;
}

#[tokio::test]
async fn a_peer_that_does_not_own_the_key_it_shows_is_rejected() {
    let stolen = Shown::Stolen {
        shown: identity(),
        secret: identity(),
    };
    rejected(&provider().await.0, stolen, b"macula/1").await;
}

#[tokio::test]
async fn a_peer_of_another_protocol_is_rejected() {
    rejected(&provider().await.0, Shown::Key(identity()), b"h3").await;
}

async fn dial_fails(server: quinn::Endpoint, node: &Identity) -> DialError {
    let address: SocketAddr = server.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            if let Ok(connection) = incoming.await {
                connection.closed().await;
            }
        }
    });
    let client = client().await;
    let error = client
        .pool()
        .get(&node.node_id(), &[address.try_into().unwrap()])
        .await
        .unwrap_err();
    accepting.abort();
    error
}

/// Dials a server of QUIC and TLS alone in vain: the words are those of the check that it fails.
async fn dialed_and_refused(tls: rustls::ServerConfig, alpn: &[u8], node: &Identity, words: &str) {
    let error = dial_fails(raw_server(tls, alpn), node).await;
    assert!(
        matches!(&error, DialError::Refused { source: Lost::Transport(why), .. } if why.contains(words)),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_dialed_peer_with_an_x509_certificate_is_refused() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let tls = server_builder()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    dialed_and_refused(tls, b"macula/1", &identity(), "IncorrectCertificateTypeExtension").await;
}

#[tokio::test]
async fn a_dialed_peer_that_does_not_own_its_key_is_refused() {
    let shown = identity();
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(raw_key(&shown, &identity()));
    let tls = server_builder().with_cert_resolver(Arc::new(resolver));
    dialed_and_refused(tls, b"macula/1", &shown, "BadSignature").await;
}

#[tokio::test]
async fn a_dialed_peer_of_another_protocol_is_refused() {
    let shown = identity();
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(raw_key(&shown, &shown));
    let tls = server_builder().with_cert_resolver(Arc::new(resolver));
    dialed_and_refused(tls, b"h3", &shown, "protocol").await;
}

#[tokio::test]
async fn peers_of_another_realm_part_with_an_error_on_both_sides() {
    let (provider, _events) = provider().await;
    let stranger = Endpoint::bind(config().with_realm("elsewhere".parse().unwrap()), NoService)
        .await
        .unwrap();
    let error = connect(&stranger, &provider).await.unwrap_err();
    assert!(
        matches!(
            error,
            DialError::Hello {
                source: HelloError::Realm,
                ..
            }
        ),
        "{error:?}"
    );
    until("the provider counts it", || provider.stats().rejected_hellos == 1).await;
    still_serves(&provider).await;
}

#[tokio::test]
async fn peers_of_another_version_part_with_an_error_on_both_sides() {
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let connection = raw_connection(&endpoint, &provider).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&hello(&Realm::default(), 2)).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await else {
        panic!("not closed")
    };
    assert!(String::from_utf8_lossy(&close.reason).contains("version 2"), "{close}");
    until("the provider counts it", || provider.stats().rejected_hellos == 1).await;
    still_serves(&provider).await;
}
