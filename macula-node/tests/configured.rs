//! What a builder is told of the layers below it holds for them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::{sync::Arc, time::Duration};

use macula_node::{CallError, Limits, Node, NodeBuilder, Request, Status, W3c};
use tokio::sync::Notify;

fn node() -> NodeBuilder {
    Node::builder().listen("127.0.0.1:0".parse().unwrap())
}

async fn caller(of: &Node, builder: NodeBuilder) -> Node {
    let bootstrap = of.endpoints()[0].clone().into();
    let caller = builder.client().bootstrap([bootstrap]).start().await.unwrap();
    caller.join().await.unwrap();
    caller
}

/// A service that says when it is called and answers when it may.
fn held(reached: &Arc<Notify>, may_end: &Arc<Notify>) -> impl macula_node::Handler + use<> {
    let (reached, may_end) = (Arc::clone(reached), Arc::clone(may_end));
    move |_: Request| {
        let (reached, may_end) = (Arc::clone(&reached), Arc::clone(&may_end));
        async move {
            reached.notify_one();
            may_end.notified().await;
            Ok::<_, Status>("done")
        }
    }
}

#[tokio::test]
async fn f7_a_nodes_calls_have_the_timeouts_it_was_built_with() {
    let (reached, may_end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let provider = node().serve("slow", held(&reached, &may_end)).start().await.unwrap();
    let short = Duration::from_millis(50);
    let caller = caller(&provider, Node::builder().calls(move |calls| calls.timeout(short))).await;
    let error = caller.call("slow", "x").await.unwrap_err();
    assert!(
        matches!(error, CallError::DeadlineExceeded { allowed, .. } if allowed == short),
        "{error}"
    );
}

#[tokio::test]
async fn a_node_refuses_more_calls_than_it_was_built_to_run() {
    let (reached, may_end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let provider = node()
        .serve("slow", held(&reached, &may_end))
        .max_concurrent_calls(1)
        .start()
        .await
        .unwrap();
    let caller = caller(&provider, Node::builder()).await;
    let first = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call("slow", "x").await }
    });
    reached.notified().await;
    let error = caller.call("slow", "x").await.unwrap_err();
    assert!(error.to_string().contains("as many as it may"), "{error}");
    may_end.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), "done");
}

#[tokio::test]
async fn a_nodes_calls_carry_the_trace_it_was_built_to_propagate() {
    let seen = async |request: Request| {
        let trace = request.metadata().get("traceparent");
        Ok::<_, Status>(trace.cloned().unwrap_or_default())
    };
    let provider = node().serve("trace", seen).start().await.unwrap();
    let with = caller(&provider, Node::builder().propagate(W3c)).await;
    let trace = with.call("trace", "").await.unwrap();
    assert_eq!((trace.len(), &trace[..3]), (55, &b"00-"[..]), "{trace:?}");
    let without = caller(&provider, Node::builder()).await;
    assert!(without.call("trace", "").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_nodes_connections_have_what_it_was_built_with_and_stay_its_own() {
    let who = async |request: Request| {
        let peer = request.peer().ok_or_else(|| Status::internal("nobody called"))?;
        Ok::<_, Status>(format!("{} takes {}", peer.agent, peer.max_concurrent_calls))
    };
    let provider = node().serve("who", who).start().await.unwrap();
    let configured = Node::builder().transport(|config| {
        let limits = Limits {
            max_concurrent_calls: 7,
            ..Limits::default()
        };
        // The realm is the node's to set: in another one it would not get in.
        config
            .with_agent("mine/1")
            .with_limits(limits)
            .with_realm("other".parse().unwrap())
    });
    let caller = caller(&provider, configured).await;
    assert_eq!(caller.call("who", "").await.unwrap(), "mine/1 takes 7");
}
