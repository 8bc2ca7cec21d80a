//! Holds what was seen against what is promised.

use serde_json::{Value, json};

use super::{
    hosts::Backend,
    oracle::Seen,
    scenario::{Longest, Promise, Recovered},
};

/// L6, of a process that is killed on a host that lives.
const KILLED_US: u64 = 100_000;
/// L6, of a host that vanishes: so many PTO, and [`KILLED_US`].
const SILENT_PTO: u64 = 5;

/// How long after a crash a stream that it cuts off may wait: the caller gives the connection up. An aim of this suite.
const CUT_OFF_US: u64 = 5_000_000;

/// The longest time that something may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The rule that names it; `None` for an aim of this suite.
    pub(crate) rule: Option<&'static str>,
    /// How the rule writes it.
    pub(crate) says: &'static str,
    pub(crate) us: u64,
    /// Added for other work on this machine.
    pub(crate) busy_us: u64,
}

impl Limit {
    pub(crate) fn total_us(&self) -> u64 {
        self.us + self.busy_us
    }

    /// The rule's id, or that there is none.
    pub(crate) fn name(&self) -> &'static str {
        self.rule.unwrap_or("aim")
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "rule": self.rule,
            "says": self.says,
            "us": self.us,
            "allowed_for_other_work_us": self.busy_us,
        })
    }
}

/// The limits of a scenario on a backend. L6's depends on the round trips that were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) longest: Limit,
    pub(crate) recovered: Limit,
}

impl Limits {
    pub(crate) fn of(promise: &Promise, backend: Backend, seen: &Seen) -> Self {
        let (rule, says, us) = match promise.longest {
            Longest::Killed if backend.hosts_outlive_processes() => (Some("L6"), "100 ms", KILLED_US),
            Longest::Killed | Longest::Silent => (Some("L6"), "5 PTO + 100 ms", SILENT_PTO * seen.pto_us + KILLED_US),
            Longest::Aim(ms) => (None, "", ms * 1_000),
        };
        let longest = Limit {
            rule,
            says,
            us,
            busy_us: seen.longest.busy_us,
        };
        let (rule, seconds) = match promise.recovered {
            Recovered::Rule(rule, seconds) => (Some(rule), seconds),
            Recovered::Aim(seconds) => (None, seconds),
        };
        let recovered = Limit {
            rule,
            says: "",
            us: (seconds * 1e6) as u64,
            busy_us: 0,
        };
        Self { longest, recovered }
    }
}

/// Each part of the promise that does not hold, in words.
pub(crate) fn broken(seen: &Seen, promise: &Promise, limits: &Limits) -> Vec<String> {
    let mut broken = Vec::new();
    if seen.failed > promise.failed {
        let example = seen.example.as_deref().unwrap_or_default();
        broken.push(format!(
            "{} calls failed ({} may): {example}",
            seen.failed, promise.failed
        ));
    }
    if seen.excused > 0 && !promise.may_lack_providers {
        let example = seen.excused_example.as_deref().unwrap_or_default();
        broken.push(format!("{} calls did not wait for a provider: {example}", seen.excused));
    }
    let Limits { longest, recovered } = limits;
    if seen.longest.us > longest.total_us() {
        broken.push(format!(
            "{} after {:.1} s was held up for {} ms ({:.0} may be, by {}): {}",
            seen.longest.work.name(),
            seen.longest.at_us as f64 / 1e6,
            seen.longest.us / 1_000,
            longest.total_us() as f64 / 1e3,
            longest.name(),
            match seen.longest.causes.is_empty() {
                true => "its only attempt took so long".to_owned(),
                false => seen.longest.causes.join("; "),
            },
        ));
    }
    if seen.cut_off_us > CUT_OFF_US {
        broken.push(format!(
            "a stream ended {} ms after it was cut off ({} may be)",
            seen.cut_off_us / 1_000,
            CUT_OFF_US / 1_000
        ));
    }
    match seen.recovered_us {
        None => broken.push("a living provider never answered after the last fault".to_owned()),
        Some(us) if us > recovered.total_us() => broken.push(format!(
            "the last provider answered {:.1} s after the last fault ({:.1} s, by {})",
            us as f64 / 1e6,
            recovered.total_us() as f64 / 1e6,
            recovered.name(),
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
    use super::{super::oracle::Longest as Held, *};

    const PROMISE: Promise = Promise {
        failed: 0,
        may_lack_providers: false,
        longest: Longest::Killed,
        recovered: Recovered::Rule("D14", 1.0),
    };

    fn broken_by(seen: &Seen) -> usize {
        broken(seen, &PROMISE, &Limits::of(&PROMISE, Backend::Netns, seen)).len()
    }

    #[test]
    fn each_broken_part_of_a_promise_is_named() {
        let kept = Seen {
            calls: 1,
            recovered_us: Some(1),
            ..Seen::default()
        };
        assert_eq!(broken_by(&kept), 0);
        let bad = Seen {
            failed: 1,
            excused: 1,
            longest: Held {
                us: 200_000,
                ..Held::default()
            },
            recovered_us: Some(2_000_000),
            ..kept
        };
        assert_eq!(broken_by(&bad), 4);
        assert_eq!(broken_by(&Seen::default()), 2);
    }

    #[test]
    fn l6_counts_round_trips_where_the_host_goes_with_its_process_and_forgives_other_work() {
        let mut seen = Seen {
            pto_us: 30_000,
            ..Seen::default()
        };
        let longest = |backend, seen: &Seen| Limits::of(&PROMISE, backend, seen).longest.total_us();
        assert_eq!(longest(Backend::Netns, &seen), 100_000);
        assert_eq!(longest(Backend::Containers, &seen), 250_000);
        seen.longest.busy_us = 7_000;
        assert_eq!(longest(Backend::Netns, &seen), 107_000);
    }
}
