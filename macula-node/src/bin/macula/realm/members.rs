//! `macula realm members`: the nodes that were let in, as this person or this issuer knows them.

use std::collections::BTreeMap;

use macula_node::{IssuerFolder, KeptMember, Member, NodeId, Realm, Terms};
use serde_json::json;

use super::{
    key_file::{self, Granted, KeyFile},
    rights::{self, now},
    token::OwnIssuer,
};
use crate::{
    args::MembersArgs,
    failure::{Failure, error_line, print_line},
};

struct Row {
    member: Member,
    since: u64,
    revoked: bool,
}

pub(super) fn run(args: &MembersArgs) -> Result<(), Failure> {
    let (realm, rows) = match &args.data {
        Some(data) => of_issuer(data, args.identity.as_deref())?,
        None => of_key(args)?,
    };
    let now = now();
    if args.json {
        let members: Vec<_> = rows.iter().map(|(id, row)| as_json(id, row, now)).collect();
        return print_line(json!({ "realm": realm.to_string(), "members": members }));
    }
    rows.iter().try_for_each(|(id, row)| {
        print_line(format!(
            "{id}  {:7}  {}{}",
            state(row, now),
            rights::member_words(&row.member, now),
            admitted_by(&row.member)
        ))
    })
}

/// The issuers before the present one: the member is out when any of them is revoked.
fn admitted_by(member: &Member) -> String {
    match member.admitted_by() {
        [] => String::new(),
        [first] => format!(", let in by {first}"),
        [first, then @ ..] => {
            let then: Vec<_> = then.iter().map(ToString::to_string).collect();
            format!(", let in by {first}, then renewed by {}", then.join(" "))
        }
    }
}

fn of_issuer(
    data: &std::path::Path,
    identity: Option<&std::path::Path>,
) -> Result<(Realm, BTreeMap<NodeId, Row>), Failure> {
    let realm = OwnIssuer::of(data, identity)?.membership.realm;
    let kept = IssuerFolder::new(data)
        .members()
        .map_err(|error| Failure::other(error_line(&error)))?;
    let known = crate::membership::revocations(data, &realm, now());
    let row = |(id, KeptMember { since, chain, .. }): (NodeId, KeptMember)| {
        let member = chain.verify_late(&realm, now(), u64::MAX).ok()?;
        let revoked = known.check(&member, now()).is_err();
        Some((id, Row { member, since, revoked }))
    };
    let rows = kept.into_iter().filter_map(row).collect();
    Ok((realm, rows))
}

fn of_key(args: &MembersArgs) -> Result<(Realm, BTreeMap<NodeId, Row>), Failure> {
    let file = KeyFile::read(&key_file::find(args.key.key.as_deref())?)?;
    let granted = Granted::beside(&file.path);
    let known = granted.known(&file.realm)?;
    let mut rows = BTreeMap::new();
    for membership in granted.grants()? {
        let Ok(member) = membership.chain.verify_late(&file.realm, now(), u64::MAX) else {
            continue;
        };
        let row = Row {
            since: member.not_before(),
            revoked: known.check(&member, now()).is_err(),
            member,
        };
        // The later grant of a node is its present one.
        rows.insert(*row.member.node_id(), row);
    }
    Ok((file.realm, rows))
}

fn state(row: &Row, now: u64) -> &'static str {
    match (row.revoked, row.member.check_at(now)) {
        (true, _) => "revoked",
        (false, Ok(())) => "valid",
        (false, Err(_)) => "ended",
    }
}

fn as_json(id: &NodeId, row: &Row, now: u64) -> serde_json::Value {
    json!({
        "node_id": id.to_string(),
        "state": state(row, now),
        "since": row.since,
        "not_after": row.member.not_after(),
        "issues": row.member.issue().is_some(),
        "issuer": row.member.issuer().map(ToString::to_string),
        "admitted_by": row.member.admitted_by().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "rights": Terms::of(&row.member).map(|terms| rights::as_json(&terms)),
    })
}
