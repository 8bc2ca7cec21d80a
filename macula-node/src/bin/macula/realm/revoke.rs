//! `macula realm revoke`: an order that takes a member's grants back, handed to nodes of the realm.
//!
//! The order proves itself, so any node takes it and passes it on; neither an issuer nor a membership is needed.

use std::time::Duration;

use futures::future::join_all;
use macula_node::{
    BootstrapAddr, IssuerFolder, JoinRefusal, JoinReply, JoinRequest, Node, NodeId, Order, Realm, SignedRevocations,
};
use serde_json::json;

use super::{
    key_file::{self, Granted, KeyFile},
    rights::now,
    token::OwnIssuer,
};
use crate::{
    args::RevokeArgs,
    failure::{Failure, error_line, print_line, say},
};

/// How often a busy node is asked to take the order, a second apart.
const MAX_TRIES: usize = 10;

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

/// The order, and after it those that were given before, the latest first: a node may have missed them.
fn sign(args: &RevokeArgs) -> Result<(Realm, Vec<SignedRevocations>, Vec<BootstrapAddr>), Failure> {
    let order = order(args.node_id, args.lift);
    let failed = |error: &dyn std::error::Error| Failure::other(error_line(error));
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
    let mut orders = granted.revocations()?;
    orders.reverse();
    Ok((file.realm, orders, to))
}

fn order(node_id: NodeId, lift: bool) -> Order {
    match lift {
        false => Order::revoke(node_id, now()),
        true => Order::lift(node_id, now()),
    }
}

/// Hands the orders in, the new one first. A node takes so many visits at a time and no more, and hears of the earlier orders from others
/// as well.
async fn tell(visitor: &Node, at: &BootstrapAddr, orders: &[SignedRevocations]) -> Result<(), String> {
    for (n, list) in orders.iter().enumerate() {
        let tries = if n == 0 { MAX_TRIES } else { 1 };
        match hand_in(visitor, at, list, tries).await {
            Ok(()) => {}
            Err(error) if n == 0 => return Err(error),
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

async fn hand_in(visitor: &Node, at: &BootstrapAddr, list: &SignedRevocations, mut tries: usize) -> Result<(), String> {
    loop {
        tries -= 1;
        return match visitor.visit(at, &JoinRequest::Revoke(list.clone())).await {
            Ok(JoinReply::Heeded) => Ok(()),
            Ok(JoinReply::Refused(JoinRefusal::Busy)) if tries > 0 => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Ok(JoinReply::Refused(reason)) => Err(format!("{at} refused: {reason}")),
            Ok(JoinReply::Admitted { .. }) => Err(format!("{at} gave an answer to another question")),
            Err(error) => Err(format!("{at}: {}", error_line(&error))),
        };
    }
}
