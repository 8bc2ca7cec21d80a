//! `macula realm revoke`: an order that takes a member's grants back, handed to nodes of the realm.
//!
//! The order proves itself, so any node takes it and passes it on; neither an issuer nor a membership is needed.

use futures::future::join_all;
use macula_node::{BootstrapAddr, IssuerFolder, JoinReply, JoinRequest, Node, NodeId, Order, Realm, SignedRevocations};
use serde_json::json;

use super::{
    key_file::{self, Granted, KeyFile},
    rights::now,
    token::OwnIssuer,
};
use crate::{
    args::RevokeArgs,
    failure::{Failure, chain, print_line, say},
};

pub(super) async fn run(args: &RevokeArgs) -> Result<(), Failure> {
    let (realm, orders, to) = sign(args)?;
    if to.is_empty() {
        return Err(Failure::usage(
            "no node to tell: name nodes of the realm with --bootstrap HOST:PORT (or MACULA_BOOTSTRAP)",
        ));
    }
    let visitor = Node::builder().client().start().await?;
    let told = join_all(to.iter().map(|at| tell(&visitor, at, &orders))).await;
    visitor.shutdown().await;
    let heeded = told.iter().filter(|told| told.is_ok()).count();
    if args.json {
        print_line(json!({
            "realm": realm.to_string(),
            "node_id": args.node_id.to_string(),
            "lifted": args.lift,
            "told": heeded,
            "failed": told.iter().filter_map(|told| told.as_ref().err()).collect::<Vec<_>>(),
        }))?;
    } else {
        told.iter()
            .filter_map(|told| told.as_ref().err())
            .for_each(|error| say(error));
    }
    if heeded == 0 {
        return Err(Failure::other(
            "no node took the order: it is in force nowhere; try again with other nodes",
        ));
    }
    if !args.json {
        let verb = if args.lift { "admitted again" } else { "revoked" };
        print_line(format!(
            "{} is {verb}: told {heeded} of {} nodes, which tell the others",
            args.node_id,
            to.len()
        ))?;
    }
    Ok(())
}

/// The order, with those that were given before: a node may have missed them.
fn sign(args: &RevokeArgs) -> Result<(Realm, Vec<SignedRevocations>, Vec<BootstrapAddr>), Failure> {
    let order = order(args.node_id, args.lift);
    let failed = |error: &dyn std::error::Error| Failure::other(chain(error));
    let mut to = args.bootstrap.clone();
    if let Some(data) = &args.data {
        let own = OwnIssuer::of(data, args.identity.as_deref())?;
        let list = SignedRevocations::issue(&own.membership.realm, &own.member, &own.identity, [order]);
        let list = list.map_err(|error| failed(&error))?;
        let node_id = Some(own.identity.node_id());
        let addresses = IssuerFolder::new(data).addresses().map_err(|error| failed(&error))?;
        to.extend(
            addresses
                .into_iter()
                .map(|endpoint| BootstrapAddr { node_id, endpoint }),
        );
        return Ok((own.membership.realm, vec![list], to));
    }
    let file = KeyFile::read(&key_file::find(args.key.key.as_deref())?)?;
    let list = SignedRevocations::sign(&file.realm, &file.unlock()?, [order]).map_err(|error| failed(&error))?;
    let granted = Granted::beside(&file.path);
    granted.add_revocation(&list)?;
    Ok((file.realm, granted.revocations()?, to))
}

fn order(node_id: NodeId, lift: bool) -> Order {
    match lift {
        false => Order::revoke(node_id, now()),
        true => Order::lift(node_id, now()),
    }
}

async fn tell(visitor: &Node, at: &BootstrapAddr, orders: &[SignedRevocations]) -> Result<(), String> {
    for list in orders {
        match visitor.visit(at, &JoinRequest::Revoke(list.clone())).await {
            Ok(JoinReply::Heeded) => {}
            Ok(JoinReply::Refused(reason)) => return Err(format!("{at} refused: {reason}")),
            Ok(JoinReply::Admitted { .. }) => return Err(format!("{at} gave an answer to another question")),
            Err(error) => return Err(format!("{at}: {}", chain(&error))),
        }
    }
    Ok(())
}
