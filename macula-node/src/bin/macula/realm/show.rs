//! `macula realm show`: a realm, or what a grant or a token says.

use macula_node::{JoinToken, Membership, Terms};
use serde_json::json;

use super::{
    key_file::{self, KeyFile},
    rights::{self, now},
};
use crate::{
    args::ShowArgs,
    failure::{Failure, error_line, print_line},
};

pub(super) fn run(args: &ShowArgs) -> Result<(), Failure> {
    match args.line.as_deref() {
        None => realm(args),
        Some(line) if line.starts_with("macula_token_") => {
            let token = line
                .parse()
                .map_err(|error| Failure::usage(error_line(&error as &macula_node::LineError)))?;
            self::token(args, &token)
        }
        Some(line) => grant(args, &crate::membership::from_line_or_file(line)?),
    }
}

fn realm(args: &ShowArgs) -> Result<(), Failure> {
    let file = KeyFile::read(&key_file::find(args.key.key.as_deref())?)?;
    if args.json {
        return print_line(json!({
            "realm": file.realm.to_string(),
            "key_file": file.path.display().to_string(),
            "encrypted": file.is_encrypted(),
        }));
    }
    print_line(&file.realm)
}

fn grant(args: &ShowArgs, membership: &Membership) -> Result<(), Failure> {
    let member = membership.chain.verify_late(&membership.realm, now(), u64::MAX);
    let member = member.map_err(|error| Failure::other(error_line(&error)))?;
    if args.json {
        return print_line(json!({
            "realm": membership.realm.to_string(),
            "node_id": member.node_id().to_string(),
            "not_before": member.not_before(),
            "not_after": member.not_after(),
            "issues": member.issue().is_some(),
            "issuer": member.issuer().map(ToString::to_string),
            "admitted_by": member.admitted_by().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "rights": Terms::of(&member).map(|terms| rights::as_json(&terms)),
        }));
    }
    print_line(format!("realm {}", membership.realm))?;
    print_line(format!("node {}", member.node_id()))?;
    print_line(rights::member_words(&member, now()))
}

fn token(args: &ShowArgs, token: &JoinToken) -> Result<(), Failure> {
    let at: Vec<_> = token.issuer.endpoints.iter().map(ToString::to_string).collect();
    if args.json {
        return print_line(json!({
            "realm": token.realm.to_string(),
            "issuer": token.issuer.node_id.to_string(),
            "endpoints": at,
            "id": token.id.to_string(),
            "not_after": token.not_after,
        }));
    }
    print_line(format!("realm {}", token.realm))?;
    print_line(format!("issuer {} at {}", token.issuer.node_id, at.join(" ")))?;
    print_line(format!("token {}, {}", token.id, rights::ends(token.not_after, now())))
}
