//! The rights and dates on the command line, and how they are shown.

use std::time::{SystemTime, UNIX_EPOCH};

use macula_node::{GrantRole, Member, Patterns, Terms};
use serde_json::{Value, json};

use crate::args::RightsArgs;

pub(super) fn terms(args: &RightsArgs) -> Terms {
    Terms {
        role: args.role,
        provide: args.serve.iter().cloned().collect(),
        call: args.call.iter().cloned().collect(),
        labels: args.label.iter().cloned().collect(),
    }
}

/// Rights in words.
pub(super) fn words(terms: &Terms) -> String {
    let services = |patterns: &Patterns| match patterns.is_empty() {
        true => "nothing".to_owned(),
        false => patterns.to_string(),
    };
    let labels: Vec<_> = terms
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let labels = match labels.is_empty() {
        true => String::new(),
        false => format!(", labels {}", labels.join(" ")),
    };
    let (provide, call) = (services(&terms.provide), services(&terms.call));
    format!("{}, serves {provide}, calls {call}{labels}", terms.role)
}

pub(super) fn as_json(terms: &Terms) -> Value {
    let list = |patterns: &Patterns| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "role": terms.role.to_string(),
        "serve": list(&terms.provide),
        "call": list(&terms.call),
        "labels": terms.labels,
    })
}

/// A member in words: rights, the right to issue, and dates.
pub(super) fn member_words(member: &Member, now: u64) -> String {
    let rights = Terms::of(member).map(|terms| words(&terms)).unwrap_or_default();
    let issues = if member.issue().is_some() {
        ", issues grants"
    } else {
        ""
    };
    format!(
        "{rights}{issues}, {}",
        ends(member.not_after().unwrap_or(u64::MAX), now)
    )
}

/// The time, in seconds since the Unix epoch.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// When something ends, for a person.
pub(super) fn ends(at: u64, now: u64) -> String {
    match at.checked_sub(now) {
        Some(left) => format!("ends in {}", span(left)),
        None => format!("ended {} ago", span(now - at)),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Parses a role.
pub(crate) fn role(text: &str) -> Result<GrantRole, String> {
    [GrantRole::Client, GrantRole::Node]
        .into_iter()
        .find(|role| role.to_string() == text)
        .ok_or_else(|| "a role is `client` or `node`".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_say_them() {
        assert_eq!(ends(190, 100), "ends in 90 s");
        assert_eq!(ends(100 + 3600, 100), "ends in 60 min");
        assert_eq!(ends(0, 86_400), "ended 24 h ago");
        assert_eq!(ends(400 * 86_400, 0), "ends in 400 days");
    }
}
