//! A builder's settings of the transport hold, and the node's own settings stay.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use macula_node::{Limits, Node, NodeBuilder, Request, Status};

fn node() -> NodeBuilder {
    Node::builder().listen("127.0.0.1:0".parse().unwrap())
}

async fn caller(of: &Node, builder: NodeBuilder) -> Node {
    let bootstrap = of.endpoints()[0].clone().into();
    let caller = builder.client().bootstrap([bootstrap]).start().await.unwrap();
    caller.join().await.unwrap();
    caller
}

#[tokio::test]
async fn a_nodes_connections_have_what_it_was_built_with_and_stay_its_own() {
    let who = async |request: Request| {
        let peer = request.peer().ok_or_else(|| Status::internal("there is no caller"))?;
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
