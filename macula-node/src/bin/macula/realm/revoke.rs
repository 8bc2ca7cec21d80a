//! `macula realm revoke`: an order that takes a member's grants back, handed to nodes of the realm.
//!
//! The order proves itself, so any node takes it and passes it on; neither an issuer nor a membership is needed.

use std::time::Duration;

use futures::future::join_all;
use macula_node::{
    BootstrapAddr, IssuerFolder, JoinRefusal, JoinReply, JoinRequest, Node, Order, Realm, SignedRevocations,
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
    let kept = told.iter().filter(|told| **told == Ok(true)).count();
    if args.json {
        print_line(json!({
            "realm": realm.to_string(),
            "node_id": args.node_id.to_string(),
            "lifted": args.lift,
            "present": args.present,
            "told": heeded,
            "kept": kept,
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
    if kept == 0 {
        say(
            "no node has the order on disk: it is lost if all that know it stop; see to their data folders and disks, or name a node that has one",
        );
    }
    if !args.json {
        let verb = if args.lift { "admitted again" } else { "revoked" };
        print_line(format!(
            "{} is {verb}: told {heeded} of {} nodes, which tell the others; {kept} of them have the order on disk",
            args.node_id,
            to.len()
        ))?;
        if args.present {
            print_line(
                "make a token or a grant of its new rights now: earlier ones are void for it. Run `macula join TOKEN` for its data folder, and start it again",
            )?;
        }
    }
    Ok(())
}

/// The order, and after it those that were given before, the latest first: a node may have missed them.
fn sign(args: &RevokeArgs) -> Result<(Realm, Vec<SignedRevocations>, Vec<BootstrapAddr>), Failure> {
    let order = order(args);
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

fn order(args: &RevokeArgs) -> Order {
    let order = match (args.lift, args.present) {
        (true, _) => Order::lift,
        (false, true) => Order::revoke_present,
        (false, false) => Order::revoke,
    };
    order(args.node_id, now())
}

/// Hands the orders in, the new one first, and returns whether the node has that on its disk. A node takes so many visits at a time and
/// no more, and hears of the earlier orders from others as well.
async fn tell(visitor: &Node, at: &BootstrapAddr, orders: &[SignedRevocations]) -> Result<bool, String> {
    let Some((new, earlier)) = orders.split_first() else {
        return Ok(false);
    };
    let kept = hand_in(visitor, at, new, MAX_TRIES).await?;
    for list in earlier {
        if hand_in(visitor, at, list, 1).await.is_err() {
            break;
        }
    }
    Ok(kept)
}

async fn hand_in(
    visitor: &Node,
    at: &BootstrapAddr,
    list: &SignedRevocations,
    mut tries: usize,
) -> Result<bool, String> {
    loop {
        tries -= 1;
        return match visitor.visit(at, &JoinRequest::Revoke(list.clone())).await {
            Ok(JoinReply::Heeded { kept }) => Ok(kept),
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
