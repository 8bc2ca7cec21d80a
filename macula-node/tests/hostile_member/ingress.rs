//! Programs without Macula that reach a closed realm through a node's ingress: it acts with its node's grant (N6, A5).

use std::{
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::SeqCst},
    time::{SystemTime, UNIX_EPOCH},
};

use macula_node::{
    Chain, Grant, GrantRole, Node, TonicServices,
    admin::{
        Admin, connect,
        schema::{Build, StateRequest},
    },
    ingress::{Ingress, IngressConfig, Tokens},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{codegen::http::Uri, metadata::MetadataValue, service::Interceptor, transport::Channel};

use crate::{
    BAD, OPEN, SAFE,
    calls::{Pay, ask_pay},
    echo, identity, key,
    log::Log,
    patterns, realm,
};

const TOKEN: &str = "a-token-of-the-tests-0123";

/// A grant of node `n` by the realm's key, from now on by the system's clock.
fn chain(n: u8, provide: &[&str], call: &[&str]) -> Chain {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Grant::new(&realm(), identity(n).node_id(), now..=now + 3600)
        .with_role(GrantRole::Node)
        .with_provide(patterns(provide))
        .with_call(patterns(call))
        .sign(&key())
        .unwrap()
}

fn local(n: u8, chain: Chain) -> macula_node::NodeBuilder {
    Node::builder()
        .identity(identity(n))
        .realm(realm())
        .grant(chain)
        .listen("127.0.0.1:0".parse().unwrap())
}

/// The head and the body of the answer to a POST.
async fn post(ingress: &Ingress, service: &str, token: Option<&str>) -> (u16, String) {
    let mut stream = TcpStream::connect(ingress.local_addr()).await.unwrap();
    let token = token
        .map(|token| format!("\r\nAuthorization: Bearer {token}"))
        .unwrap_or_default();
    let head =
        format!("POST /v1/call/{service} HTTP/1.1\r\nHost: mesh\r\nConnection: close\r\nContent-Length: 1{token}");
    stream.write_all(format!("{head}\r\n\r\nx").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn a5_an_ingress_reaches_what_its_nodes_grant_reaches_and_asks_for_a_token() {
    let log = Log::start();
    let counted = Arc::<AtomicUsize>::default();
    let provider = local(1, chain(1, &["*"], &["*"]))
        .serve(OPEN, echo)
        .serve(SAFE, echo)
        .serve_tonic(TonicServices::new().with_server(Pay(Arc::clone(&counted))))
        .start()
        .await
        .unwrap();
    let entry = local(BAD, chain(BAD, &[], &["demo.*"]))
        .bootstrap([provider.endpoints()[0].clone().into()])
        .start()
        .await
        .unwrap();
    entry.join().await.unwrap();
    let config = IngressConfig::new("127.0.0.1:0".parse().unwrap()).tokens(Tokens::new([TOKEN]).unwrap());
    let ingress = Ingress::bind(&entry, config).await.unwrap();

    // A stranger, with no token and with a wrong one.
    for token in [None, Some("a-token-of-a-stranger-0123")] {
        assert_eq!(post(&ingress, OPEN, token).await.0, 401);
    }
    assert_eq!(post(&ingress, OPEN, Some(TOKEN)).await, (200, "x".to_owned()));
    let (status, body) = post(&ingress, SAFE, Some(TOKEN)).await;
    assert_eq!(status, 403, "{body}");
    assert!(body.contains("permission_denied"), "{body}");
    assert_eq!(provider.transport_stats().calls_denied, 1);

    let at: Uri = format!("http://{}", ingress.local_addr()).parse().unwrap();
    let channel = Channel::builder(at).connect().await.unwrap();
    assert_eq!(
        ask_pay(channel.clone()).await.unwrap_err().code(),
        tonic::Code::Unauthenticated
    );
    let with_token = tonic::service::interceptor::InterceptedService::new(channel, Bearer);
    assert_eq!(
        ask_pay(with_token).await.unwrap_err().code(),
        tonic::Code::PermissionDenied
    );
    assert_eq!((provider.transport_stats().calls_denied, counted.load(SeqCst)), (2, 0));
    assert_eq!(log.lines(&["a call was denied", &entry.id().to_string()]).len(), 1);
    // What its operator sees.
    let folder = tempfile::tempdir().unwrap();
    let admin = Admin::serve(&provider, Build::default(), folder.path().join("admin.sock"));
    let mut admin = connect(admin.await.unwrap().path()).await.unwrap();
    let state = admin.get_state(StateRequest {}).await.unwrap().into_inner();
    assert_eq!(state.access.unwrap().calls_denied, 2);
}

/// Adds the token.
#[derive(Clone)]
struct Bearer;

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let token = MetadataValue::try_from(format!("Bearer {TOKEN}")).unwrap();
        request.metadata_mut().insert("authorization", token);
        Ok(request)
    }
}
