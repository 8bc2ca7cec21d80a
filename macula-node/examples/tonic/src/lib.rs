#![doc = include_str!("../README.md")]

use macula_node::{BootstrapAddr, Node, NodeBuilder};

/// The stubs of `proto/hello_world.proto`.
pub mod hello {
    #![allow(missing_docs, clippy::all, reason = "generated")]
    tonic::include_proto!("macula.examples.hello");
}

/// The stubs of `proto/route_guide.proto`.
pub mod route {
    #![allow(missing_docs, clippy::all, reason = "generated")]
    tonic::include_proto!("macula.examples.route");
}

/// Any error, for programs that show it and end.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A node on this machine; with `bootstrap` in the mesh of the node there, and without in one of its own.
///
/// # Errors
/// When it cannot listen or join.
pub async fn start(node: NodeBuilder, bootstrap: Option<&Node>) -> Result<Node> {
    let known = bootstrap
        .into_iter()
        .flat_map(|node| node.endpoints().to_vec())
        .map(BootstrapAddr::from);
    let node = node.listen("127.0.0.1:0".parse()?).bootstrap(known).start().await?;
    node.join().await?;
    Ok(node)
}
