//! Joining the mesh for the length of one command.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use macula_node::{BootstrapAddr, JoinReport, Node, NodeBuilder, Realm, admin::schema::StateRequest};

use crate::{
    args::ReachArgs,
    failure::{Failure, cause_first, say},
    identity::user_folder,
    known::{Before, KnownNodes, address_of},
    membership,
    own::{self, Running, unanswered},
};

/// A node that calls and looks up, and stores nothing for others; joined `within` a time, or a failure that says why not.
pub(crate) async fn client(args: &ReachArgs, within: Option<Duration>) -> Result<Node, Failure> {
    let (realm, bootstrap) = way_in(args).await?;
    let node = start(args, realm, Node::builder().bootstrap(bootstrap.clone())).await?;
    let joined = match within {
        None => node.join().await,
        Some(within) => tokio::time::timeout(within, node.join()).await.map_err(|_| {
            let tried: Vec<_> = bootstrap.iter().map(ToString::to_string).collect();
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

/// Starts such a node, with the grant or token that it is given.
async fn start(args: &ReachArgs, realm: Option<Realm>, builder: NodeBuilder) -> Result<Node, Failure> {
    let (access, folder) = (&args.mesh.access, args.admin.folder.as_deref());
    let (builder, taken) = membership::apply_to_client(access, args.identity.as_deref(), folder, realm, builder)?;
    // The identity stays taken until the process of the command ends.
    std::mem::forget(taken);
    Ok(builder.client().start().await?)
}

/// A node that joins no mesh: it calls nodes that are named. Its realm is that of the options, or of the node that runs here.
pub(crate) async fn alone(args: &ReachArgs) -> Result<Node, Failure> {
    let realm = match (&args.mesh.realm, own::running(&args.admin)) {
        (None, Running::One(path)) => Some(through(&path).await?.0),
        (realm, _) => realm.clone(),
    };
    start(args, realm, Node::builder()).await
}

/// The realm, and the nodes that are in its mesh already: those that are named, or else the one that runs here.
async fn way_in(args: &ReachArgs) -> Result<(Option<Realm>, Vec<BootstrapAddr>), Failure> {
    let mesh = &args.mesh;
    if !mesh.bootstrap.is_empty() {
        return Ok((mesh.realm.clone(), mesh.bootstrap.clone()));
    }
    match own::running(&args.admin) {
        Running::One(path) => {
            let (realm, address) = through(&path).await?;
            Ok((mesh.realm.clone().or(Some(realm)), vec![address]))
        }
        Running::Several(paths) => Err(own::several(&paths)),
        Running::None => Err(Failure::usage(
            "no way into the mesh: name a node with --bootstrap HOST:PORT (or MACULA_BOOTSTRAP), or start one on this host with `macula node`",
        )),
    }
}

/// The realm of the node that runs here, and its address on this host.
async fn through(path: &Path) -> Result<(Realm, BootstrapAddr), Failure> {
    let mut node = own::connect(path).await?;
    let state = node
        .get_state(StateRequest {})
        .await
        .map_err(|status| unanswered(&status))?;
    let state = state.into_inner();
    let strange = || Failure::other("the running node is of another version: its state cannot be read");
    let listening = state.addresses.unwrap_or_default().listening;
    let mut listening: SocketAddr = listening.parse().map_err(|_| strange())?;
    listening.set_ip(match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    });
    let address = format!("{}@{listening}", state.node_id)
        .parse()
        .map_err(|_| strange())?;
    Ok((state.realm.parse().map_err(|_| strange())?, address))
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
