//! `macula realm token`: an invitation from the issuer whose data folder this is.

use macula_node::{Identity, Issuer, IssuerFolder, Member, Membership};
use serde_json::json;

use super::rights::{self, now};
use crate::{
    args::TokenArgs,
    failure::{Failure, error_line, print_line, say},
};

/// The issuer of a data folder: its identity and its grant.
pub(super) struct OwnIssuer {
    pub(super) identity: Identity,
    pub(super) membership: Membership,
    pub(super) member: Member,
}

impl OwnIssuer {
    pub(super) fn of(data: &std::path::Path, identity: Option<&std::path::Path>) -> Result<Self, Failure> {
        let file = identity.map_or_else(|| data.join("identity"), ToOwned::to_owned);
        let identity = Identity::load(&file).map_err(|error| Failure::other(error_line(&error)))?;
        let file = crate::membership::grant_file(&file);
        let Some(membership) = crate::membership::read_file(&file)? else {
            return Err(Failure::other(format!(
                "{} has no grant yet: start the issuer once with its grant, as `macula node --grant GRANT --data {}`",
                file.display(),
                data.display()
            )));
        };
        let member = membership.chain.verify(&membership.realm, now());
        let member = member.map_err(|error| Failure::other(error_line(&error)))?;
        if member.issue().is_none() || *member.node_id() != identity.node_id() {
            return Err(Failure::other(
                "this node is no issuer: give it a grant of `macula realm grant NODEID --issue`",
            ));
        }
        Ok(Self {
            identity,
            membership,
            member,
        })
    }

    /// As [`OwnIssuer::of`], for an issuer that is to sign something: what a revoked one signs does not count.
    pub(super) fn to_sign(data: &std::path::Path, identity: Option<&std::path::Path>) -> Result<Self, Failure> {
        let own = Self::of(data, identity)?;
        let known = crate::membership::revocations(data, &own.membership.realm, now());
        match known.check(&own.member, now()) {
            Ok(()) => Ok(own),
            Err(_) => Err(Failure::other(
                "this issuer is revoked, so nothing that it signs counts: use another issuer, or the realm's key",
            )),
        }
    }
}

pub(super) fn run(args: &TokenArgs) -> Result<(), Failure> {
    let folder = IssuerFolder::new(&args.data);
    let own = OwnIssuer::to_sign(&args.data, args.identity.as_deref())?;
    let failed = |error: macula_node::FolderError| Failure::other(error_line(&error));
    let endpoints = match args.at.is_empty() {
        false => args.at.clone(),
        true => folder.addresses().map_err(failed)?,
    };
    if endpoints.is_empty() {
        return Err(Failure::usage(
            "it is not known yet where the issuer listens: start it first, or name its address with --at HOST:PORT",
        ));
    }
    let (terms, now) = (rights::terms(&args.rights), now());
    // Said now and not to the node that joins.
    let realm = &own.membership.realm;
    let probe = terms.grant(realm, own.identity.node_id(), now..=now + 1);
    probe
        .issue(&own.member, &own.identity)
        .map_err(|error| Failure::usage(error_line(&error)))?;
    let issuer = Issuer {
        node_id: own.identity.node_id(),
        endpoints,
    };
    let not_after = now.saturating_add(args.life);
    let token = folder.create_token(realm, issuer, terms.clone(), args.uses, now, not_after);
    let token = token.map_err(failed)?;
    if args.json {
        return print_line(json!({
            "realm": realm.to_string(),
            "token": token.to_string(),
            "id": token.id.to_string(),
            "uses": args.uses,
            "not_after": not_after,
            "rights": rights::as_json(&terms),
        }));
    }
    print_line(&token)?;
    say(&format!(
        "token {} lets {} node{} in, {}: {}; it is a secret and not shown again",
        token.id,
        args.uses,
        if args.uses == 1 { "" } else { "s" },
        rights::ends(not_after, now),
        rights::words(&terms)
    ));
    Ok(())
}
