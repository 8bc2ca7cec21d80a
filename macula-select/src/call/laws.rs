//! The laws of a call, checked at every step of whatever happens to it.
//!
//! [`world`] is a shell that watches: a balancer, some calls, and a reference model of each call that knows only what
//! was asked for and what came back. [`interleavings`] tries everything that can happen to two calls and three
//! providers; [`walks`] tries long random stories with changing providers, links and clocks; [`first`] holds a call's first attempt by
//! itself against the call's own.
//!
//! The laws, by the numbers that tests and messages give:
//!
//! - law 1: a call ends once, and says nothing after its end
//! - law 2: leases issued = reported + lost + in flight
//! - law 3: a call tries a provider once
//! - law 4: no more attempts than the limit, those that are free aside
//! - law 5: an end that speaks of providers is true: none is left, or the limit was reached with some left
//! - law 6: a call without any provider is `service_not_found`
//! - law 7: a call that must not run twice is not sent again once it may have run
//! - law 8: a call that must not run twice has one attempt in flight at most
//! - law 9: a failure that the policy does not retry ends the call
//! - law 10: the first ok wins, and what comes later changes nothing
//! - law 11: no attempt starts at or after the deadline, and the call is over by then
//! - law 12: an attempt ends by its own time and by the call's deadline
//! - law 13: when a call ends its attempts are aborted, and it keeps no lease
//! - law 14: a cancellation does not change health
//! - law 15: a provider has one probe at a time
//! - law 16: only the present probe decides about its provider
//! - law 17: a probe that is not reported is replaced
//! - law 18: ejections leave a provider that can be reached
//! - law 19: while a usable provider is untried a pick finds one; a call waits for an attempt or a pause, never for nothing
//! - law 20: an ejected provider is not picked while a healthy one is left
//! - law 21: a provider that is gone or drains is not picked
//! - law 22: an ejection lasts between half the base and the maximum, and longer the more there were
//! - law 23: failures in a row open the circuit by their number, whatever their pace
//! - law 24: a retry is one that the policy allows, and is paid for from the budget
//! - law 25: an attempt that was not sent is free, and their number is limited
//! - law 26: waits lie within their bounds, and a provider's pushback is heeded
//! - law 27: a hedge needs consent, and is paid for from its budget
//! - law 28: the order of an update matters to the first strategy only
//! - law 29: a provider that left and came back is a new one
//! - law 30: estimates are finite and bounded, and reading changes nothing
//! - law 31: a clock that repeats itself or steps back breaks nothing
//! - law 32: the same seed and the same inputs give the same outputs
//! - law 33: the turns of round robin differ by one at most
//! - law 34: the same among the survivors of a dead provider
//! - law 35: nothing waits for a time that is over

mod first;
mod interleavings;
mod walks;
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The numbers that follow "law" or "laws" in `text`, ranges left out.
fn named(text: &str) -> BTreeSet<u32> {
    let text = text.to_lowercase().replace(" and ", ", ");
    let mut found = BTreeSet::new();
    for after in text.split("law").skip(1) {
        let after = after.strip_prefix('s').unwrap_or(after);
        let numbers = after
            .split(|c: char| !(c.is_ascii_digit() || c == ',' || c == ' '))
            .next();
        found.extend(
            numbers
                .into_iter()
                .flat_map(|it| it.split([',', ' ']).filter_map(|it| it.parse::<u32>().ok())),
        );
    }
    found
}

fn read(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            read(&path, text);
        } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("call/laws.rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source is text"));
        }
    }
}

#[test]
fn every_law_is_listed_and_tested() {
    let listed: BTreeSet<u32> = named(include_str!("laws.rs")).into_iter().collect();
    let mut text = String::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["src", "tests"].iter().for_each(|it| read(&root.join(it), &mut text));
    assert_eq!(listed, (1..=35).collect(), "the list");
    assert_eq!(named(&text), listed, "the tests");
}
