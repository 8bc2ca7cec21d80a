//! Joining the mesh for the length of one command.

use macula_node::{JoinReport, Node};

use crate::{
    args::MeshArgs,
    failure::{Failure, chain, say},
};

/// A node that calls and looks up, and stores nothing for others; joined, or a failure that says why not.
pub(crate) async fn client(args: &MeshArgs) -> Result<Node, Failure> {
    if args.bootstrap.is_empty() {
        return Err(Failure::usage(
            "no way into the mesh: name a node with --bootstrap HOST:PORT (or MACULA_BOOTSTRAP)",
        ));
    }
    let node = Node::builder()
        .client()
        .realm(args.realm.clone())
        .bootstrap(args.bootstrap.clone())
        .start()
        .await?;
    match node.join().await {
        Ok(report) => show_trusted(&report),
        Err(error) => return Err(Failure::other(chain(&error))),
    }
    Ok(node)
}

/// Shows which nodes were trusted on first use, and how to pin them.
pub(crate) fn show_trusted(report: &JoinReport) {
    for peer in &report.trusted_on_first_use {
        say(&format!(
            "trusted {id} at {host}:{port} on first use; pin it with --bootstrap {id}@{host}:{port}",
            id = peer.node_id,
            host = bracketed(peer.endpoint.host()),
            port = peer.endpoint.port(),
        ));
    }
}

/// An IPv6 address in its brackets, anything else as it is.
fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}
