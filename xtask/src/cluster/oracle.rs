//! Sums the calls up that were made, by what the runner knows.
//!
//! A call fails rightly only when no provider could be reached during some of it. The mesh's runner notes when each provider could
//! be reached; the callers note every call. Both use the machine's wall clock, in microseconds.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    truth::{Truth, overlap},
    witness::Withheld,
    work::Work,
};

/// One call as its caller logged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// When it was due.
    pub(crate) at_us: u64,
    pub(crate) took_us: u64,
    pub(crate) work: Work,
    /// Messages of the reply that came.
    pub(crate) replies: u64,
    pub(crate) attempts: u64,
    /// The provider that answered.
    pub(crate) provider: Option<String>,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// The providers whose attempts failed.
    pub(crate) failed_at: Vec<String>,
    /// The causes of the attempts that failed, in order.
    pub(crate) causes: Vec<String>,
}

impl Call {
    /// Reads a line of the file that `macula bench --calls` writes.
    pub(crate) fn read(line: &str, work: Work) -> Result<Self> {
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
            work,
            replies: number("replies")?,
            attempts: failed.len() as u64 + u64::from(value["ok"] == true),
            provider: text("provider"),
            error: text("message").or_else(|| text("error")),
            failed_at: failed
                .iter()
                .filter_map(|it| it["provider"].as_str().map(str::to_owned))
                .collect(),
            causes: failed.iter().map(cause).collect(),
        })
    }

    /// Whether a crash has cut the call off after its reply had begun, so that it could not be made elsewhere.
    fn is_cut_off(&self, truth: &Truth) -> bool {
        let crashed = truth
            .crashes
            .iter()
            .any(|(id, at)| self.failed_at.contains(id) && (self.at_us..=self.ended_us()).contains(at));
        crashed && self.error.is_some() && self.replies > 0
    }

    fn ended_us(&self) -> u64 {
        self.at_us + self.took_us
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
    /// How long no provider could be reached, from the first call to the last.
    pub(crate) without_provider_us: u64,
    /// Streams that a crash cut off after their reply had begun.
    pub(crate) cut_off: u64,
    /// How long after its crash the last of them ended.
    pub(crate) cut_off_us: u64,
    /// Long calls that were under way when a provider was lost.
    pub(crate) met: Met,
    pub(crate) attempts: u64,
    /// The call that was held up longest, of those that ended after the first fault.
    pub(crate) longest: Longest,
    /// The probe timeout between hosts (RFC 9002 §6.2), as the calls show it.
    pub(crate) pto_us: u64,
    /// From the last fault until every living provider has answered; `None` when one never did.
    pub(crate) recovered_us: Option<u64>,
    pub(crate) providers_seen: usize,
    /// The first failure that nothing excuses.
    pub(crate) example: Option<String>,
    /// The first failure without a provider.
    pub(crate) excused_example: Option<String>,
}

/// Calls by their kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Met {
    pub(crate) slow: u64,
    pub(crate) streams: u64,
}

/// The call that was held up longest: from its start, or from the fault during it, without its handler's time, the time in which no
/// provider could be reached and the time in which its caller stood still.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Longest {
    pub(crate) us: u64,
    pub(crate) work: Work,
    /// When it was due, from the first call on.
    pub(crate) at_us: u64,
    /// How long other work on this machine held it up meanwhile.
    pub(crate) busy_us: u64,
    /// What its attempts met.
    pub(crate) causes: Vec<String>,
}

impl Longest {
    /// The time that is the mesh's own.
    fn own_us(&self) -> u64 {
        self.us.saturating_sub(self.busy_us)
    }
}

/// What a peer may take to acknowledge: QUIC's default (RFC 9000 §18.2), which nodes keep.
const MAX_ACK_DELAY_US: u64 = 25_000;

/// The probe timeout as a connection would reckon it, from the calls that met no failure. A call takes a round trip and its handler's
/// time, so this is no less than the connection's.
fn pto_us(calls: &[Call]) -> u64 {
    let usual = calls
        .iter()
        .filter(|call| call.attempts == 1 && call.error.is_none() && call.work == Work::Echo);
    let mut took: Vec<_> = usual.map(|call| call.took_us).collect();
    took.sort_unstable();
    let srtt = took.get(took.len() / 2).copied().unwrap_or_default();
    let deviations: u64 = took.iter().map(|us| us.abs_diff(srtt)).sum();
    let rttvar = deviations / (took.len() as u64).max(1);
    srtt + (4 * rttvar).max(1_000) + MAX_ACK_DELAY_US
}

/// Sums the calls up.
pub(crate) fn judge(calls: &[Call], truth: &Truth, withheld: &Withheld) -> Seen {
    let gaps = truth.gaps();
    let first = calls.iter().map(|call| call.at_us).min().unwrap_or_default();
    let last = calls.iter().map(Call::ended_us).max().unwrap_or_default();
    let mut seen = Seen {
        calls: calls.len() as u64,
        without_provider_us: overlap(&gaps, first, last),
        pto_us: pto_us(calls),
        ..Seen::default()
    };
    let mut first_answer: BTreeMap<&str, u64> = BTreeMap::new();
    let mut answered: BTreeSet<&str> = BTreeSet::new();
    for call in calls {
        seen.attempts += call.attempts;
        let (at, ended) = (call.at_us, call.ended_us());
        // The fault costs a call the time from then on.
        let loss = truth.last_loss(at, ended);
        match call.work {
            Work::Slow => seen.met.slow += u64::from(loss.is_some()),
            Work::Stream => seen.met.streams += u64::from(loss.is_some()),
            Work::Echo => {}
        }
        let from = loss.unwrap_or(at);
        let cut_off = call.is_cut_off(truth);
        let handler_us = if call.error.is_some() {
            0
        } else {
            call.work.handler_us()
        };
        let excused = overlap(&gaps, from, ended) + overlap(&truth.stills, from, ended) + handler_us;
        let us = (ended - from).saturating_sub(excused);
        if cut_off {
            seen.cut_off_us = seen.cut_off_us.max(us);
        } else if ended >= truth.first_fault_us && us > seen.longest.own_us() {
            let held = Longest {
                us,
                work: call.work,
                at_us: at - first,
                busy_us: withheld.between(from, ended).min(us),
                causes: call.causes.clone(),
            };
            if held.own_us() > seen.longest.own_us() {
                seen.longest = held;
            }
        }
        match &call.error {
            Some(_) if cut_off => seen.cut_off += 1,
            Some(error) if overlap(&gaps, at, ended) > 0 => {
                seen.excused += 1;
                seen.excused_example.get_or_insert_with(|| error.clone());
            }
            Some(error) => {
                seen.failed += 1;
                seen.example.get_or_insert_with(|| error.clone());
            }
            None => {}
        }
        if let Some(provider) = call.provider.as_deref() {
            answered.insert(provider);
            if ended >= truth.last_fault_us {
                let first = first_answer.entry(provider).or_insert(u64::MAX);
                *first = (*first).min(ended);
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

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn call(at_us: u64, took_us: u64, provider: Option<&str>) -> Call {
        Call {
            at_us,
            took_us,
            work: Work::Echo,
            replies: 1,
            attempts: 1,
            failed_at: Vec::new(),
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
            truth.reachable(id, from_us);
            if let Some(until_us) = until_us {
                truth.unreachable(id, until_us);
            }
        }
        truth
    }

    #[test]
    fn a_failure_is_excused_only_while_no_provider_could_be_reached() {
        let truth = truth(&[("a", 0, Some(10 * S)), ("a", 20 * S, None)], 20 * S);
        let calls = [
            call(5 * S, S, None),
            call(12 * S, S, None),
            call(30 * S, S, None),
            call(31 * S, S, Some("a")),
        ];
        let seen = judge(&calls, &truth, &Withheld::default());
        assert_eq!((seen.failed, seen.excused), (2, 1));
        assert_eq!((seen.recovered_us, seen.without_provider_us), (Some(12 * S), 10 * S));
    }

    #[test]
    fn a_call_is_held_up_from_the_fault_on_and_without_the_time_in_which_no_provider_lived() {
        let longest = |truth: &Truth, call| judge(&[call], truth, &Withheld::default()).longest.us;
        let lost = truth(&[("a", 0, Some(10 * S)), ("b", 0, None)], 10 * S);
        assert_eq!(longest(&lost, call(9 * S, 3 * S, Some("b"))), 2 * S);
        assert_eq!(longest(&lost, call(11 * S, 3 * S, Some("b"))), 3 * S);
        let gone = truth(&[("a", 0, Some(10 * S)), ("a", 12 * S, None)], 12 * S);
        assert_eq!(longest(&gone, call(9 * S, 4 * S, Some("a"))), S);
        assert_eq!(longest(&gone, call(9 * S, 9 * S, None)), 6 * S, "an excuse has an end");
        let mut late = gone;
        late.first_fault_us = 10 * S;
        assert_eq!(
            longest(&late, call(2 * S, 4 * S, Some("a"))),
            0,
            "no fault had happened"
        );
    }

    #[test]
    fn a_stream_may_be_cut_off_by_a_crash_and_by_no_drain() {
        let mut truth = truth(&[("a", 0, Some(10 * S)), ("b", 0, None)], 10 * S);
        let mut stream = call(9 * S, S + 50_000, None);
        stream.work = Work::Stream;
        stream.failed_at = vec!["a".to_owned()];
        let drained = judge(std::slice::from_ref(&stream), &truth, &Withheld::default());
        assert_eq!((drained.failed, drained.cut_off, drained.met.streams), (1, 0, 1));
        truth.crashes.push(("a".to_owned(), 10 * S));
        let crashed = judge(std::slice::from_ref(&stream), &truth, &Withheld::default());
        assert_eq!((crashed.failed, crashed.cut_off, crashed.cut_off_us), (0, 1, 50_000));
        stream.replies = 0;
        assert_eq!(
            judge(&[stream], &truth, &Withheld::default()).failed,
            1,
            "it could be made elsewhere"
        );
    }

    #[test]
    fn a_slow_call_is_held_up_by_no_more_than_its_loss_adds() {
        let truth = truth(&[("a", 0, Some(10 * S)), ("b", 0, None)], 10 * S);
        let mut slow = call(9_700_000, 860_000, Some("b"));
        slow.work = Work::Slow;
        assert_eq!(judge(&[slow], &truth, &Withheld::default()).longest.us, 60_000);
    }

    #[test]
    fn a_probe_timeout_is_reckoned_from_calls_without_failures() {
        let calls = [call(0, 1_000, Some("a")), call(1, 1_200, Some("a")), call(2, S, None)];
        assert_eq!(pto_us(&calls), 1_200 + 1_000 + MAX_ACK_DELAY_US);
    }

    #[test]
    fn a_line_of_a_caller_is_read() {
        let line = r#"{"unix_us":7,"due_us":1,"us":2,"replies":1,"ok":true,"provider":"a","error":null,"message":null,"failed_attempts":[{}]}"#;
        let read = Call::read(line, Work::Echo).unwrap();
        assert_eq!((read.at_us, read.took_us, read.attempts), (7, 2, 2));
        assert_eq!((read.provider.as_deref(), read.error), (Some("a"), None));
        assert!(Call::read("{}", Work::Echo).is_err());
    }
}
