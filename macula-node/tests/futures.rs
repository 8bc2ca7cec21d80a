//! The futures that a program awaits can be spawned.

use macula_node::{Bytes, Node, PeerInfo, Request, Status};

fn is_send<T: Send>(value: T) -> T {
    value
}

#[tokio::test]
async fn z6_every_public_future_is_send() {
    let echo = async |request: Request| Ok::<Bytes, Status>(request.into_payload());
    let builder = Node::builder().listen("127.0.0.1:0".parse().unwrap());
    let node = is_send(builder.serve("a", echo).start()).await.unwrap();
    let service = || "b".parse().unwrap();
    is_send(node.join()).await.unwrap();
    is_send(node.call("a", "")).await.unwrap();
    is_send(node.client().call("a", "")).await.unwrap();
    is_send(node.client().request("a").send("")).await.unwrap();
    is_send(node.serve(service(), echo)).await.unwrap();
    is_send(node.providers(&service())).await.unwrap();
    is_send(node.lookup(&service())).await.unwrap();
    is_send(node.withdraw(&service())).await;
    let stream =
        async |_: Request<macula_node::Requests>| Ok::<_, Status>(futures::stream::empty::<Result<Bytes, Status>>());
    drop(is_send(node.serve_streaming(service(), stream)));
    #[cfg(feature = "tonic")]
    drop(is_send(node.serve_tonic(macula_node::TonicServices::new())));
    is_send(node.shutdown()).await;
}

/// A handler names its caller's type without another crate.
#[test]
fn z5_what_a_handler_is_told_of_its_caller_is_named_here() {
    fn caller(request: &Request) -> Option<&PeerInfo> {
        request.peer()
    }
    let _ = caller;
}
