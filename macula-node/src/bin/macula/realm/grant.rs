//! `macula realm grant`: a grant signed with the realm's key, without a node.

use macula_node::{Issue, Membership, Patterns, Terms};
use serde_json::json;

use super::{
    key_file::{self, Granted, KeyFile},
    rights::{self, now},
};
use crate::{
    args::GrantArgs,
    failure::{Failure, error_line, print_line, say},
};

/// What an issuer has to provide so that members find it.
const RENEW_SERVICE: &str = "macula.realm.renew";

pub(super) fn run(args: &GrantArgs) -> Result<(), Failure> {
    let file = KeyFile::read(&key_file::find(args.key.key.as_deref())?)?;
    let key = file.unlock()?;
    let begin = now();
    let life = args.life.unwrap_or(if args.issue { 90 * 86_400 } else { 86_400 });
    let terms = terms(args)?;
    let mut grant = terms.grant(&file.realm, args.node_id, begin..=begin.saturating_add(life));
    if args.issue {
        let issue = Issue::new(terms.role, issued(&args.rights.serve), issued(&args.rights.call));
        let labels = args
            .rights
            .label
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        let labels: Vec<_> = match args.rights.label.is_empty() {
            true => vec![("*", "*")],
            false => labels.collect(),
        };
        let issue = labels
            .into_iter()
            .fold(issue, |issue, (key, value)| issue.with_label(key, value));
        grant = grant.with_issue(issue);
    }
    let signed = grant.sign(&key).map_err(|error| Failure::usage(error_line(&error)))?;
    let member = signed
        .verify(&file.realm, begin)
        .map_err(|error| Failure::other(error_line(&error)))?;
    let membership = Membership {
        realm: file.realm.clone(),
        chain: signed,
        issuers: Vec::new(),
    };
    Granted::beside(&file.path).add_grant(&membership)?;
    if args.json {
        return print_line(json!({
            "realm": file.realm.to_string(),
            "node_id": args.node_id.to_string(),
            "grant": membership.to_string(),
            "not_after": member.not_after(),
            "issues": args.issue,
            "rights": rights::as_json(&terms),
        }));
    }
    print_line(&membership)?;
    say(&format!(
        "{}: {}",
        args.node_id.short(),
        rights::member_words(&member, begin)
    ));
    if terms.provide.is_empty() && terms.call.is_empty() {
        say("the grant lets the node neither serve nor call: add --serve PATTERN or --call PATTERN");
    }
    Ok(())
}

/// Of an issuer everything that is not named is meant: it is of use only with the right to give something.
fn issued(patterns: &[macula_node::Pattern]) -> Patterns {
    match patterns.is_empty() {
        true => Patterns::all(),
        false => patterns.iter().cloned().collect(),
    }
}

fn terms(args: &GrantArgs) -> Result<Terms, Failure> {
    let mut terms = rights::terms(&args.rights);
    if args.issue {
        // Its own labels are those of a plain member: the ones named are what it may give.
        terms.labels.clear();
        let renew = RENEW_SERVICE
            .parse()
            .map_err(|error| Failure::other(error_line(&error as &dyn std::error::Error)))?;
        terms.provide = issued(&args.rights.serve).iter().cloned().chain([renew]).collect();
        terms.call = issued(&args.rights.call);
    }
    Ok(terms)
}
