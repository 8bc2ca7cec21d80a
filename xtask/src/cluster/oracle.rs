//! Holds the calls that were made against a scenario's promise.
//!
//! A call fails rightly only when no provider could be reached during some of it. The mesh's runner notes when each provider could
//! be reached; the callers note every call. Both use the machine's wall clock, in microseconds.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::scenario::Promise;

/// A provider that has just started is not yet in every caller's list.
const KNOWN_AFTER_US: u64 = 2_000_000;

/// One call as its caller logged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// When it was due.
    pub(crate) at_us: u64,
    pub(crate) took_us: u64,
    pub(crate) attempts: u64,
    /// The provider that answered.
    pub(crate) provider: Option<String>,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// The causes of the attempts that failed, in order.
    pub(crate) causes: Vec<String>,
}

impl Call {
    /// Reads a line of the file that `macula bench --calls` writes.
    pub(crate) fn read(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line).with_context(|| format!("{line:?} is no JSON"))?;
        let number = |name: &str| {
            value[name]
                .as_u64()
                .with_context(|| format!("{line:?} has no number {name:?}"))
        };
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let failed = value["failed_attempts"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let cause = |attempt: &Value| {
            let cause = attempt["cause"].as_str().unwrap_or_default();
            let (started, took) = (&attempt["started_us"], &attempt["us"]);
            format!("from {started} µs for {took} µs: {cause}")
        };
        Ok(Self {
            at_us: number("unix_us")?,
            took_us: number("us")?,
            attempts: failed.len() as u64 + u64::from(value["ok"] == true),
            provider: text("provider"),
            error: text("message").or_else(|| text("error")),
            causes: failed.iter().map(cause).collect(),
        })
    }

    fn ended_us(&self) -> u64 {
        self.at_us + self.took_us
    }
}

/// When a provider could be reached: from the first to the second, or to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reachable {
    pub(crate) from_us: u64,
    pub(crate) until_us: Option<u64>,
}

/// What the runner knows of the providers, by node id.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) providers: BTreeMap<String, Vec<Reachable>>,
    /// When the last fault was done.
    pub(crate) last_fault_us: u64,
}

impl Truth {
    /// Whether one provider or another could be reached at every instant of `from..=until`, and was known before.
    fn was_served(&self, from_us: u64, until_us: u64) -> bool {
        let mut spans: Vec<_> = self
            .providers
            .values()
            .flatten()
            .map(|span| (span.from_us + KNOWN_AFTER_US, span.until_us.unwrap_or(u64::MAX)))
            .collect();
        spans.sort_unstable();
        let mut covered = from_us;
        for (from, until) in spans {
            if from <= covered && until > covered {
                covered = until;
            }
        }
        covered > until_us
    }

    fn alive_at_the_end(&self) -> impl Iterator<Item = &str> {
        let alive = self.providers.iter().filter(|(_, spans)| {
            let last = spans.last();
            last.is_some_and(|span| span.until_us.is_none())
        });
        alive.map(|(id, _)| id.as_str())
    }
}

/// What was seen.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) calls: u64,
    /// Calls that failed although a provider could be reached during all of the call.
    pub(crate) failed: u64,
    /// Calls that failed while none could be.
    pub(crate) excused: u64,
    pub(crate) attempts: u64,
    /// The longest call during all of which a provider could be reached.
    pub(crate) longest_us: u64,
    /// What the attempts of that call met.
    pub(crate) longest_causes: Vec<String>,
    /// From the last fault until every living provider has answered; `None` when one never did.
    pub(crate) recovered_us: Option<u64>,
    pub(crate) providers_seen: usize,
    /// The first failure that nothing excuses.
    pub(crate) example: Option<String>,
}

/// Sums the calls up.
pub(crate) fn judge(calls: &[Call], truth: &Truth) -> Seen {
    let mut seen = Seen {
        calls: calls.len() as u64,
        ..Seen::default()
    };
    let mut first_answer: BTreeMap<&str, u64> = BTreeMap::new();
    let mut answered: BTreeMap<&str, ()> = BTreeMap::new();
    for call in calls {
        seen.attempts += call.attempts;
        let served = truth.was_served(call.at_us, call.ended_us());
        if served && call.took_us > seen.longest_us {
            seen.longest_us = call.took_us;
            seen.longest_causes.clone_from(&call.causes);
        }
        match (&call.error, served) {
            (Some(error), true) => {
                seen.failed += 1;
                seen.example.get_or_insert_with(|| error.clone());
            }
            (Some(_), false) => seen.excused += 1,
            (None, _) => {}
        }
        if let Some(provider) = call.provider.as_deref() {
            answered.insert(provider, ());
            if call.ended_us() >= truth.last_fault_us {
                let first = first_answer.entry(provider).or_insert(u64::MAX);
                *first = (*first).min(call.ended_us());
            }
        }
    }
    seen.providers_seen = answered.len();
    seen.recovered_us = truth
        .alive_at_the_end()
        .map(|id| first_answer.get(id).map(|at| at - truth.last_fault_us))
        .try_fold(0, |latest, at| Some(latest.max(at?)));
    seen
}

/// Each part of the promise that does not hold, in words.
pub(crate) fn broken(seen: &Seen, promise: &Promise) -> Vec<String> {
    let mut broken = Vec::new();
    if seen.failed > promise.failed {
        let example = seen.example.as_deref().unwrap_or_default();
        broken.push(format!(
            "{} calls failed ({} may): {example}",
            seen.failed, promise.failed
        ));
    }
    if seen.longest_us > promise.longest_ms * 1_000 {
        let longest = seen.longest_us / 1_000;
        let causes = seen.longest_causes.join("; ");
        broken.push(format!(
            "a call took {longest} ms ({} may): {causes}",
            promise.longest_ms
        ));
    }
    match seen.recovered_us {
        None => broken.push("a living provider never answered after the last fault".to_owned()),
        Some(us) if us as f64 / 1e6 > promise.recovered_s => broken.push(format!(
            "the last provider answered {:.1} s after the last fault ({} s)",
            us as f64 / 1e6,
            promise.recovered_s
        )),
        Some(_) => {}
    }
    if seen.calls == 0 {
        broken.push("no call was made".to_owned());
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn call(at_us: u64, took_us: u64, provider: Option<&str>) -> Call {
        Call {
            at_us,
            took_us,
            attempts: 1,
            provider: provider.map(str::to_owned),
            error: provider.is_none().then(|| "all_providers_failed".to_owned()),
            causes: Vec::new(),
        }
    }

    fn truth(spans: &[(&str, u64, Option<u64>)], last_fault_us: u64) -> Truth {
        let mut truth = Truth {
            last_fault_us,
            ..Truth::default()
        };
        for &(id, from_us, until_us) in spans {
            let spans = truth.providers.entry(id.to_owned()).or_default();
            spans.push(Reachable { from_us, until_us });
        }
        truth
    }

    #[test]
    fn a_failure_is_excused_only_while_no_provider_could_be_reached() {
        let truth = truth(&[("a", 0, Some(10 * S)), ("a", 20 * S, None)], 20 * S);
        let calls = [
            call(5 * S, S, None),
            call(12 * S, S, None),
            call(21 * S, S, None),
            call(30 * S, S, None),
            call(31 * S, S, Some("a")),
        ];
        let seen = judge(&calls, &truth);
        assert_eq!(
            (seen.failed, seen.excused),
            (2, 2),
            "one that has just started is not yet known"
        );
        assert_eq!(seen.recovered_us, Some(12 * S));
    }

    #[test]
    fn providers_that_follow_each_other_leave_no_excuse() {
        let truth = truth(&[("a", 0, Some(10 * S)), ("b", 5 * S, None)], 10 * S);
        assert!(truth.was_served(6 * S, 30 * S));
        let late = judge(&[call(9 * S, 3 * S, Some("b"))], &truth);
        assert_eq!((late.longest_us, late.failed), (3 * S, 0));
    }

    #[test]
    fn each_broken_part_of_a_promise_is_named() {
        let promise = Promise {
            failed: 0,
            longest_ms: 100,
            recovered_s: 1.0,
        };
        let kept = Seen {
            calls: 1,
            recovered_us: Some(1),
            ..Seen::default()
        };
        assert_eq!(broken(&kept, &promise), Vec::<String>::new());
        let bad = Seen {
            failed: 1,
            longest_us: 200_000,
            recovered_us: Some(2_000_000),
            ..kept
        };
        assert_eq!(broken(&bad, &promise).len(), 3);
        assert_eq!(broken(&Seen::default(), &promise).len(), 2);
    }

    #[test]
    fn a_line_of_a_caller_is_read() {
        let line = r#"{"unix_us":7,"due_us":1,"us":2,"ok":true,"provider":"a","error":null,"message":null,"failed_attempts":[{}]}"#;
        let read = Call::read(line).unwrap();
        assert_eq!((read.at_us, read.took_us, read.attempts), (7, 2, 2));
        assert_eq!((read.provider.as_deref(), read.error), (Some("a"), None));
        assert!(Call::read("{}").is_err());
    }
}
