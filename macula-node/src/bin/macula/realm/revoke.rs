//! `macula realm revoke`: an order that takes a member's grants back, handed to nodes of the realm.
//!
//! The order proves itself, so any node takes it and passes it on; neither an issuer nor a membership is needed.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use macula_node::{
    BootstrapAddr, Effect, Heeded, Issue, IssuerFolder, JoinRefusal, JoinReply, JoinRequest, Membership, Node, NodeId,
    Order, Realm, Revocations, SignedRevocations,
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
    let Signed {
        realm,
        orders,
        to,
        is_issuer,
    } = sign(args)?;
    if to.is_empty() {
        return Err(Failure::usage(
            "no node to tell: name nodes of the realm with --bootstrap HOST:PORT (or MACULA_BOOTSTRAP)",
        ));
    }
    let judge = Judge::new(&realm, &orders, args.node_id);
    let visitor = Node::builder().client().start().await?;
    let told = join_all(to.iter().map(|at| tell(&visitor, at, &orders, &judge))).await;
    visitor.shutdown().await;
    let (heeded, failed): (Vec<_>, Vec<_>) = told.into_iter().partition(Result::is_ok);
    let heeded: Vec<_> = heeded.into_iter().flatten().collect();
    let failed: Vec<_> = failed.into_iter().filter_map(Result::err).collect();
    let kept = heeded.iter().filter(|heeded| heeded.kept).count();
    let readmitted: BTreeSet<_> = heeded.iter().flat_map(|heeded| &heeded.readmitted).collect();
    let readmitted: Vec<_> = readmitted.into_iter().map(ToString::to_string).collect();
    if args.json {
        print_line(json!({
            "realm": realm.to_string(),
            "node_id": args.node_id.to_string(),
            "lifted": args.lift,
            "present": args.present,
            "told": heeded.len(),
            "kept": kept,
            "failed": failed,
            "readmitted": readmitted,
        }))?;
    } else {
        failed.iter().for_each(|error| say(error));
    }
    if heeded.is_empty() {
        return Err(Failure::other(
            "the order is in force at no node that was told: try again with other nodes of the realm",
        ));
    }
    if kept == 0 {
        say(
            "no node has the order on disk: it is lost if all that know it stop; see to their data folders and disks, or name a node that has one",
        );
    }
    if args.json {
        return Ok(());
    }
    let verb = if args.lift { "admitted again" } else { "revoked" };
    print_line(format!(
        "{} is {verb}: told {} of {} nodes, which tell the others; {kept} of them have the order on disk",
        args.node_id,
        heeded.len(),
        to.len()
    ))?;
    if args.present {
        print_line(
            "make a token or a grant of its new rights now: earlier ones are void for it. Run `macula join TOKEN` for its data folder, and start it again",
        )?;
    }
    if is_issuer && !args.lift {
        print_line(
            "it is an issuer: the nodes that it let in, and those whose grants it renewed, are out with it; let them join another issuer with new tokens",
        )?;
    }
    if !readmitted.is_empty() {
        print_line(format!(
            "it had shut out members of other issuers, which may come back now; revoke those that are to stay out: {}",
            readmitted.join(" ")
        ))?;
    }
    Ok(())
}

/// Decides whether a node's word that it took the order counts.
struct Judge {
    realm: Realm,
    node_id: NodeId,
    known: Revocations,
}

impl Judge {
    fn new(realm: &Realm, orders: &[SignedRevocations], node_id: NodeId) -> Self {
        let mut known = Revocations::new(realm.clone());
        for list in orders {
            // Those that have served their time are no fault.
            let _ = known.merge(list, now());
        }
        Self {
            realm: realm.clone(),
            node_id,
            known,
        }
    }

    /// Checks that the node which answered is a member, not the one that the order is about, and that the order counts there.
    fn check(&self, by: &NodeId, heeded: &Heeded) -> Result<(), String> {
        if *by == self.node_id {
            return Err("it is the node that the order is about; its word does not count".to_owned());
        }
        let chain = heeded.chain.as_ref();
        let chain = chain.ok_or("it shows no grant of the realm; its word does not count")?;
        let member = chain.verify(&self.realm, now());
        let member = member.map_err(|error| format!("it is not known to be in the realm: {}", error_line(&error)))?;
        if member.node_id() != by {
            return Err("it shows the grant of another node; its word does not count".to_owned());
        }
        let revoked = self.known.check(&member, now());
        revoked.map_err(|error| format!("its word does not count: {}", error_line(&error)))?;
        Err(match heeded.effect {
            Effect::Counts => return Ok(()),
            Effect::StillOut => {
                "the order is lifted, and another one still shuts the node out: lift it with the realm's key"
            }
            Effect::Overruled => {
                "a later order about the node stands above this one: compare the clocks, or use the realm's key"
            }
            Effect::SignerRevoked => {
                "the issuer that signed the order is revoked, so it does not count: use the realm's key"
            }
            _ => "it does not say whether the order counts: it is of another version",
        }
        .to_owned())
    }
}

/// The orders, and the nodes that are told.
struct Signed {
    realm: Realm,
    orders: Vec<SignedRevocations>,
    to: Vec<BootstrapAddr>,
    /// The node that the order is about is an issuer, as far as is known here.
    is_issuer: bool,
}

/// The order, and after it those that were given before, the latest first: a node may have missed them.
fn sign(args: &RevokeArgs) -> Result<Signed, Failure> {
    let failed = |error: &dyn std::error::Error| Failure::other(error_line(error));
    let mut to = args.bootstrap.clone();
    if let Some(data) = &args.data {
        let own = OwnIssuer::to_sign(data, args.identity.as_deref())?;
        let folder = IssuerFolder::new(data);
        let members = folder.members().map_err(|error| failed(&error))?;
        let may_revoke_all = own.member.issue().is_some_and(Issue::may_revoke);
        if !may_revoke_all && !members.iter().any(|(id, _)| *id == args.node_id) {
            return Err(Failure::usage(
                "this issuer neither let the node in nor renewed its grant, so its order would not count: use the realm's key, or the issuer that let it in",
            ));
        }
        let known = crate::membership::revocations(data, &own.membership.realm, now());
        let order = order(args, &known);
        let list = SignedRevocations::issue(&own.membership.realm, &own.member, &own.identity, [order]);
        let list = list.map_err(|error| failed(&error))?;
        let node_id = Some(own.identity.node_id());
        let addresses = folder.addresses().map_err(|error| failed(&error))?;
        to.extend(
            addresses
                .into_iter()
                .map(|endpoint| BootstrapAddr { node_id, endpoint }),
        );
        return Ok(Signed {
            realm: own.membership.realm,
            orders: vec![list],
            to,
            is_issuer: false,
        });
    }
    let file = KeyFile::read(&key_file::find(args.key.key.as_deref())?)?;
    let granted = Granted::beside(&file.path);
    let order = order(args, &granted.known(&file.realm)?);
    let list = SignedRevocations::sign(&file.realm, &file.unlock()?, [order]).map_err(|error| failed(&error))?;
    granted.add_revocation(&list)?;
    let mut orders = granted.revocations()?;
    orders.reverse();
    let issues = |granted: &Membership| {
        let member = granted.chain.verify_late(&file.realm, now(), u64::MAX);
        member.is_ok_and(|member| *member.node_id() == args.node_id && member.issue().is_some())
    };
    let is_issuer = granted.grants()?.iter().any(issues);
    Ok(Signed {
        realm: file.realm,
        orders,
        to,
        is_issuer,
    })
}

/// The order, dated after those that are known about the node: of two in one second the stricter one would count.
fn order(args: &RevokeArgs, known: &Revocations) -> Order {
    let order = match (args.lift, args.present) {
        (true, _) => Order::lift,
        (false, true) => Order::revoke_present,
        (false, false) => Order::revoke,
    };
    let after = known.ordered_at(&args.node_id).map_or(0, |last| last + 1);
    order(args.node_id, now().max(after))
}

/// Hands the orders in, the new one first, and returns the node's word on that when it counts. A node takes so many visits at a time and
/// no more, and hears of the earlier orders from others as well.
async fn tell(
    visitor: &Node,
    at: &BootstrapAddr,
    orders: &[SignedRevocations],
    judge: &Judge,
) -> Result<Heeded, String> {
    let Some((new, earlier)) = orders.split_first() else {
        return Err(format!("{at}: there is no order"));
    };
    let (by, heeded) = hand_in(visitor, at, new, MAX_TRIES).await?;
    for list in earlier {
        if hand_in(visitor, at, list, 1).await.is_err() {
            break;
        }
    }
    judge.check(&by, &heeded).map_err(|reason| format!("{at}: {reason}"))?;
    Ok(heeded)
}

async fn hand_in(
    visitor: &Node,
    at: &BootstrapAddr,
    list: &SignedRevocations,
    mut tries: usize,
) -> Result<(NodeId, Heeded), String> {
    loop {
        tries -= 1;
        return match visitor.visit(at, &JoinRequest::Revoke(list.clone())).await {
            Ok((by, JoinReply::Heeded(heeded))) => Ok((by, heeded)),
            Ok((_, JoinReply::Refused(JoinRefusal::Busy))) if tries > 0 => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Ok((_, JoinReply::Refused(reason))) => Err(format!("{at} refused: {reason}")),
            Ok((_, JoinReply::Admitted { .. } | JoinReply::Revoked(_))) => {
                Err(format!("{at} gave an answer to another question"))
            }
            Err(error) => Err(format!("{at}: {}", error_line(&error))),
        };
    }
}

#[cfg(test)]
mod tests {
    use macula_node::{Grant, GrantRole, Issue, Patterns, RealmKey, RealmName, Signer as _};
    use macula_wire::SecretKey;

    use super::*;

    fn key(n: u8) -> (RealmKey, Realm) {
        let key = RealmKey::from_bytes(&[n; 32]);
        let realm = key.realm(RealmName::new("shop").unwrap());
        (key, realm)
    }

    fn node(n: u8) -> SecretKey {
        SecretKey::from_bytes(&[n; 32])
    }

    fn heeded(chain: Option<macula_node::Chain>, effect: Effect) -> Heeded {
        Heeded {
            kept: true,
            chain,
            effect,
            readmitted: Vec::new(),
        }
    }

    /// A stranger at the address, or a node that is out itself, says that it took the order.
    #[test]
    fn a6_the_word_of_a_node_that_is_no_member_does_not_count() {
        let ((key, realm), (other_key, other)) = (key(9), self::key(8));
        let dates = |ago: u64| now() - ago..=now() + 600 - ago;
        let granted = |realm: &Realm, n: u8, ago: u64| Grant::new(realm, node(n).node_id(), dates(ago));
        let issue = Issue::new(GrantRole::Node, Patterns::all(), Patterns::all());
        let issuer = granted(&realm, 2, 60).with_issue(issue).sign(&key).unwrap();
        let by_issuer = granted(&realm, 3, 60)
            .issue(&issuer.verify(&realm, now()).unwrap(), &node(2))
            .unwrap();
        let member = granted(&realm, 1, 0).sign(&key).unwrap();
        let order = SignedRevocations::sign(&realm, &key, [Order::revoke(node(2).node_id(), now())]).unwrap();
        let judge = Judge::new(&realm, &[order], node(2).node_id());
        let counts = |n: u8, chain: Option<&macula_node::Chain>, effect: Effect| {
            judge.check(&node(n).node_id(), &heeded(chain.cloned(), effect))
        };
        assert_eq!(counts(1, Some(&member), Effect::Counts), Ok(()));
        let wrong = [
            counts(1, None, Effect::Counts),
            counts(4, Some(&member), Effect::Counts),
            counts(
                1,
                Some(&granted(&other, 1, 0).sign(&other_key).unwrap()),
                Effect::Counts,
            ),
            counts(1, Some(&granted(&realm, 1, 700).sign(&key).unwrap()), Effect::Counts),
            counts(2, Some(&issuer), Effect::Counts),
            counts(3, Some(&by_issuer), Effect::Counts),
            counts(1, Some(&member), Effect::Overruled),
            counts(1, Some(&member), Effect::StillOut),
            counts(1, Some(&member), Effect::SignerRevoked),
            counts(1, Some(&member), Effect::Unknown),
        ];
        assert!(wrong.iter().all(Result::is_err), "{wrong:?}");
    }
}
