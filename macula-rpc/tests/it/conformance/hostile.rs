//! X9: lists that a peer makes, longer than a header map holds: an error at the stub, never a panic.

use bytes::{BufMut as _, Bytes, BytesMut};
use macula_rpc::{Channel, Metadata, Requests, Server, Status as MeshStatus, StatusCode, testing::Mesh};
use prost::Message as _;
use tonic::{Code, Status};

use super::{ConformanceClient, Empty, schema};

const NAME: &str = "macula.conformance.v1.Conformance";

/// More names than a header map has room for.
const NAMES: usize = 40_000;

/// The first message of a reply: `count` headers of different names, as Protocol Buffers write them.
fn headers(count: usize) -> Bytes {
    let mut message = BytesMut::new();
    for at in 0..count {
        let name = format!("x-{at}");
        message.put_slice(&[0x0a, name.len() as u8 + 5, 0x0a, name.len() as u8]);
        message.put_slice(name.as_bytes());
        message.put_slice(&[0x12, 1, b'v']);
    }
    message.freeze()
}

/// Replies with these headers and an empty message of gRPC.
async fn answer(request: macula_rpc::Request<Requests>, count: usize) -> Result<Vec<Bytes>, MeshStatus> {
    drop(request);
    let mut message = BytesMut::from(&[0; 5][..]);
    schema::Empty {}.encode(&mut message).unwrap();
    Ok(vec![headers(count), message.freeze()])
}

fn serve(server: &Server, count: usize) {
    let handler = move |request| async move {
        let messages = answer(request, count).await?;
        Ok::<_, MeshStatus>(futures::stream::iter(messages.into_iter().map(Ok::<_, MeshStatus>)))
    };
    server.serve_streaming(NAME.parse().unwrap(), handler).unwrap();
}

async fn call(client: macula_rpc::Client) -> Result<tonic::Response<Empty>, Status> {
    ConformanceClient::new(Channel::new(client)).empty_call(Empty {}).await
}

#[tokio::test(start_paused = true)]
async fn x9_a_reply_of_forty_thousand_headers_is_an_error_that_names_the_limit() {
    for (count, code) in [
        (128, Code::Ok),
        (129, Code::ResourceExhausted),
        (NAMES, Code::ResourceExhausted),
    ] {
        let mesh = Mesh::new(9);
        serve(&mesh.node("provider").server(), count);
        let answer = call(mesh.node("caller").client()).await;
        match answer {
            Ok(answer) => assert!(code == Code::Ok && answer.metadata().contains_key("x-127")),
            Err(status) => {
                assert_eq!(status.code(), code, "{status}");
                assert!(status.message().contains("more than 128 entries"), "{status}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn x9_a_status_of_forty_thousand_entries_is_an_error_in_this_process_too() {
    let mesh = Mesh::new(9);
    let node = mesh.node("only");
    let refuse = async |_: macula_rpc::Request| {
        let metadata: Metadata = (0..NAMES).map(|at| (format!("x-{at}"), "v")).collect();
        Err::<(), _>(MeshStatus::new(StatusCode::NotFound, "no such thing").with_metadata(metadata))
    };
    node.server().serve(NAME.parse().unwrap(), refuse).unwrap();
    let client = node.client_builder().local_first(node.server()).build();
    let status = call(client).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("no such thing (left out: "), "{status}");
}

#[tokio::test(start_paused = true)]
async fn x9_a_server_that_answers_with_too_many_headers_is_told_so_by_its_own_node() {
    let mesh = Mesh::new(9);
    let many = tower::service_fn(async |_: tonic::codegen::http::Request<tonic::body::Body>| {
        let mut response = tonic::codegen::http::Response::new(tonic::body::Body::empty());
        for at in 0..1_000 {
            let name = tonic::codegen::http::HeaderName::try_from(format!("x-{at}")).unwrap();
            response.headers_mut().append(name, "v".parse().unwrap());
        }
        Ok::<_, std::convert::Infallible>(response)
    });
    let services = macula_rpc::TonicServices::new().with_routes([NAME], many);
    mesh.node("provider").server().serve_tonic(services).unwrap();
    let status = call(mesh.node("caller").client()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(
        status.message().contains("the reply's headers: more than 128 entries"),
        "{status}"
    );
}
