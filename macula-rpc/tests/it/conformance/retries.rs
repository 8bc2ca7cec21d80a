//! After which statuses of a handler a generated client's call is made elsewhere (F6).

use macula_rpc::RetryPolicy;

use super::*;

/// A generated server that answers with this code, and after it one that serves.
async fn mesh(code: Code) -> Mesh {
    let (events, received) = mpsc::unbounded_channel();
    let fail = move |_: Request<()>| -> Result<Request<()>, Status> { Err(Status::new(code, "on purpose")) };
    let service = Service {
        name: "fails".into(),
        events: events.clone(),
    };
    let first = Node::serving(ConformanceServer::with_interceptor(service, fail)).await;
    let nodes = vec![first, Node::start("1", events).await];
    Mesh::of(nodes, Strategy::First, received).await
}

#[tokio::test]
async fn z2_a_handlers_error_is_the_answer_unless_it_is_unavailable() {
    for number in 1..=16 {
        let code = Code::from_i32(number);
        let outcome = mesh(code).await.stub().unary_call(request(0, 0)).await;
        match outcome {
            Ok(reply) => assert_eq!((code, &*reply.into_inner().provider), (Code::Unavailable, "1")),
            Err(status) => {
                assert_eq!((status.code(), status.message()), (code, "on purpose"));
                assert_ne!(code, Code::Unavailable);
            }
        }
    }
}

#[tokio::test]
async fn z2_a_channel_that_is_told_so_makes_a_failed_call_elsewhere() {
    let mesh = mesh(Code::Internal).await;
    let channel = mesh.channel().with_retry_policy(RetryPolicy::Transient);
    let reply = ConformanceClient::new(channel).unary_call(request(0, 0)).await.unwrap();
    assert_eq!(reply.into_inner().provider, "1");
}
