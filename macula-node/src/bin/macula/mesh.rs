//! Joining the mesh for the length of one command.

use std::{path::Path, time::Duration};

use macula_node::{JoinReport, Node};

use crate::{
    args::MeshArgs,
    failure::{Failure, cause_first, say},
    identity::user_folder,
    known::{Before, KnownNodes, address_of},
};

/// A node that calls and looks up, and stores nothing for others; joined `within` a time, or a failure that says why not.
pub(crate) async fn client(args: &MeshArgs, within: Option<Duration>) -> Result<Node, Failure> {
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
    let joined = match within {
        None => node.join().await,
        Some(within) => tokio::time::timeout(within, node.join()).await.map_err(|_| {
            let tried: Vec<_> = args.bootstrap.iter().map(ToString::to_string).collect();
            let tried = tried.join(", ");
            Failure::other(format!(
                "the mesh was not joined within {within:?} through {tried}; allow more with --timeout"
            ))
        })?,
    };
    let report = joined.map_err(|error| Failure::other(cause_first(&error)))?;
    show_trusted(&report, user_folder().as_deref());
    Ok(node)
}

/// Says which nodes were trusted on first use, and how to pin them: once, when `folder` can keep that it was said.
pub(crate) fn show_trusted(report: &JoinReport, folder: Option<&Path>) {
    if report.trusted_on_first_use.is_empty() {
        return;
    }
    let known = folder.map(KnownNodes::read).transpose();
    let mut known = known.unwrap_or_else(|error| {
        tracing::debug!(%error, "the known nodes cannot be read");
        None
    });
    for peer in &report.trusted_on_first_use {
        let before = known.as_mut().map(|known| known.meet(peer)).transpose();
        let before = before.unwrap_or_else(|error| {
            tracing::debug!(%error, "a known node cannot be remembered");
            None
        });
        let (id, address) = (peer.node_id, address_of(peer));
        let pin = format!("pin it with --bootstrap {id}@{address}");
        match before {
            Some(Before::Same) => {}
            Some(Before::Nothing) | None => say(&format!("trusted {id} at {address} on first use; {pin}")),
            Some(Before::Others(ids)) => {
                let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
                let ids = ids.join(", ");
                say(&format!(
                    "another node than before answers at {address}: {id}, and not {ids}; if it is the right one, {pin}"
                ));
            }
        }
    }
}
