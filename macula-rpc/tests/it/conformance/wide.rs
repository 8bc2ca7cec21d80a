//! Z3: metadata and rich details above the limits that every node has.

use std::convert::Infallible;

use macula_rpc::TonicServices;
use macula_transport::NoService;
use tonic::body::Body;

use super::*;

fn wide() -> Limits {
    Limits {
        max_head_bytes: 256 << 10,
        max_metadata_entries: 1000,
        ..Limits::default()
    }
}

/// A stub of services on a node with these limits, whose calls come from an endpoint with the same.
async fn stub(services: impl Into<TonicServices>, limits: Limits) -> (Node, Endpoint, ConformanceClient<Channel>) {
    let node = Node::within(limits, services).await;
    let name = "macula.conformance.v1.Conformance".parse().unwrap();
    let directory = StaticResolver::new().with_service(name, [node.provider.clone()]);
    let config = Config::new(Identity::generate().unwrap()).with_limits(limits);
    let endpoint = Endpoint::bind(config, NoService).await.unwrap();
    let client = Client::builder(&endpoint, directory).build();
    (node, endpoint, ConformanceClient::new(Channel::new(client)))
}

#[tokio::test]
async fn z3_large_metadata_travels_both_ways_where_both_sides_allow_it() {
    let (sender, _events) = mpsc::unbounded_channel();
    let service = Service {
        name: "wide".into(),
        events: sender,
    };
    let (_node, _endpoint, mut stub) = stub(server(service), wide()).await;
    let large = "v".repeat(100 << 10);
    let binary = MetadataValue::from_bytes(&[7; 60 << 10]);
    let mut with = Request::new(request(1, 1));
    let metadata = with.metadata_mut();
    metadata.insert("x-echo-initial", large.parse().unwrap());
    metadata.insert_bin(trailers::KEY, binary.clone());
    for at in 0..500 {
        let key = format!("x-{at}").parse::<tonic::metadata::AsciiMetadataKey>().unwrap();
        metadata.insert(key, "v".parse().unwrap());
    }
    let reply = stub.unary_call(with).await.unwrap();
    assert_eq!(reply.metadata().get("x-echo-initial").unwrap(), large.as_str());
    assert_eq!(reply.metadata().get_bin(trailers::KEY).unwrap(), binary);
}

#[tokio::test]
async fn z3_large_rich_details_arrive_where_both_sides_allow_them() {
    let details = bytes::Bytes::from(vec![7; 100 << 10]);
    let failing = || {
        let details = details.clone();
        let answer = tower::service_fn(move |_: tonic::codegen::http::Request<Body>| {
            let status = Status::with_details(Code::FailedPrecondition, "not so", details.clone());
            std::future::ready(Ok::<_, Infallible>(status.into_http::<Body>()))
        });
        TonicServices::new().with_routes(["macula.conformance.v1.Conformance"], answer)
    };
    let (_node, _endpoint, mut wide) = stub(failing(), wide()).await;
    let error = wide.empty_call(Empty {}).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "not so"));
    assert!(error.details() == details);

    // Within the usual limits the status arrives without them, and says so.
    let (_node, _endpoint, mut usual) = stub(failing(), Limits::default()).await;
    let error = usual.empty_call(Empty {}).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(
        error.message().starts_with("not so") && error.message().contains("16384 bytes"),
        "{error}"
    );
    assert!(error.details().is_empty());
}
