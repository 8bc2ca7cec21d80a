//! The oracle: from the facts of a run it tells which rules of the specification the run has broken.
//!
//! A rule holds strictly, with two allowances. A provider counts as well only when it had no fault during a call and for [`GRACE`] before
//! it. A failure that a rule permits is not held against it: of a call that may not run twice, or that has used its attempts up at
//! providers that answer badly.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use macula_wire::{Address, NodeId};

use crate::{
    fault::{Kind, Schedule},
    load::{Policy, Shape},
    truth::{Called, Cause, End, Ended, Facts, Run, Suspicions},
    world::{MAX_CONNECTIONS, Part, ROUTERS, TTL, part_of},
};

/// The rules by their names in the specification, and what of them is checked here.
pub(super) const RULES: &[(&str, &str)] = &[
    (
        "D12",
        "a call does not fail because its list is old: a well provider is found and tried",
    ),
    ("D14", "after a clock was wrong, every provider is listed again"),
    ("D3", "what was withdrawn is not listed or used after its bound"),
    ("D4", "no record is listed or used after it expired"),
    ("D6", "when all has healed, the directory lists the living providers"),
    ("D9", "no forged or foreign record is listed or used"),
    (
        "F1",
        "a call fails only when no reachable provider of its service lived during it",
    ),
    ("F2", "no process of a provider runs a call twice"),
    ("F5", "attempts at dead providers do not use up a call's attempts"),
    ("F6", "a call that must not run twice runs once"),
    (
        "F7",
        "a call ends by its deadline, its attempts start before it, and no run outlasts it",
    ),
    ("F8", "a run ends soon after its call"),
    ("F9", "retries of errors and refusals keep within the budget"),
    ("H2", "when all has healed, every caller reaches every living provider"),
    ("L1", "a provider is not suspected because its handlers are slow"),
    ("L2", "silent providers do not use up a call's time"),
    ("L5", "what dead providers cost is not charged to the retry budget"),
    ("L6", "a dead provider costs round trips, not a timeout"),
    ("N3", "a call does not fail because the directory cannot be reached"),
    ("N4", "when every node has ended, nothing of it is left"),
    ("P2", "a pool holds no more connections than it may"),
    (
        "P4",
        "an answer is one that a provider gave to this very call, and whole",
    ),
];

/// The time that a node has to recover after a fault.
const GRACE: Duration = Duration::from_secs(5);
/// Timers count milliseconds.
const SLACK: Duration = Duration::from_millis(100);
/// The time that a cancellation takes to arrive, lost packets included.
const CANCELLED_WITHIN: Duration = Duration::from_secs(3);
/// The delay that a dead provider may cost: five probe timeouts of this network and 100 ms, and a dial.
const DEAD_COSTS: Duration = Duration::from_secs(1);
/// The bytes a second of a path whose congestion window a bad link has shrunk to the least: two packets in a round trip.
const SHRUNK_RATE: u64 = 80_000;
/// The most attempts of a call by default.
const ATTEMPTS: usize = 3;
/// The retries that a budget allows: a share of the calls, and a number each second.
const BUDGET_SHARE: usize = 5;
const BUDGET_PER_SECOND: usize = 10;
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// A rule that was broken, when, and how.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    pub(super) rule: &'static str,
    pub(super) at: Duration,
    pub(super) text: String,
}

/// The rules that a run has broken, in the order of time.
pub(super) fn judge(schedule: &Schedule, facts: &Facts) -> Vec<Broken> {
    let mut judge = Judge {
        schedule,
        facts,
        runs: BTreeMap::new(),
        broken: Vec::new(),
    };
    for run in &facts.runs {
        judge.runs.entry(run.call).or_default().push(run);
    }
    for (number, call) in facts.calls.iter().enumerate() {
        judge.call(number as u64, call);
    }
    judge.budgets();
    judge.suspicions();
    judge.lists();
    judge.rest();
    judge.broken.sort_by_key(|broken| broken.at);
    judge.broken
}

struct Judge<'a> {
    schedule: &'a Schedule,
    facts: &'a Facts,
    /// By call, in the order of their starts.
    runs: BTreeMap<u64, Vec<&'a Run>>,
    broken: Vec<Broken>,
}

impl<'a> Judge<'a> {
    fn breaks(&mut self, rule: &'static str, at: Duration, text: String) {
        self.broken.push(Broken { rule, at, text });
    }

    /// Whether a node had no fault between two moments, nor shortly before the first.
    fn is_well(&self, member: usize, from: Duration, to: Duration) -> bool {
        let troubles = self.facts.troubles.iter().filter(|it| it.member == member);
        let mut bad = troubles.filter(|it| !it.kind.is_harmless());
        !bad.any(|it| it.from <= to && it.to.is_none_or(|end| end + GRACE > from))
    }

    /// The providers that were well all the time.
    fn well_providers(&self, from: Duration, to: Duration) -> Vec<NodeId> {
        let nodes = self.schedule.nodes;
        let lives = self.facts.lives.iter();
        let lives = lives.filter(|life| part_of(life.member, nodes) == Part::Provider);
        let whole = lives.filter(|life| life.from + GRACE <= from && life.to.is_none_or(|end| end >= to));
        let well = whole.filter(|life| self.is_well(life.member, from, to));
        well.map(|life| life.id).collect()
    }

    fn are_all_well(&self, from: Duration, to: Duration) -> bool {
        (0..self.schedule.nodes).all(|n| self.is_well(n, from, to))
    }

    /// Whether the run was at a provider whose handlers or links were slow, whose call waits as it should.
    fn is_slow(&self, run: &Run) -> bool {
        let member = self.facts.lives[run.life].member;
        let to = run.end.map_or(Duration::MAX, |(end, _)| end);
        self.facts.troubles.iter().any(|it| {
            it.member == member
                && matches!(
                    it.kind,
                    Kind::Slow(_) | Kind::Hang | Kind::Delay(_) | Kind::Bandwidth(_)
                )
                && it.from <= to
                && it.to.is_none_or(|end| end + GRACE > run.from)
        })
    }

    fn call(&mut self, number: u64, call: &'a Called) {
        let runs = self.runs.get(&number).cloned().unwrap_or_default();
        let deadline = call.from + call.plan.timeout;
        self.twice(number, call, &runs);
        for run in &runs {
            let lasted = run.end.map(|(end, _)| end.saturating_sub(run.from));
            if lasted.is_some_and(|lasted| lasted > call.plan.timeout + SLACK) {
                let text = format!(
                    "a run of call {number} took {lasted:?}, with a timeout of {:?}",
                    call.plan.timeout
                );
                self.breaks("F7", run.from, text);
            }
        }
        for attempt in &call.tries {
            if attempt.from >= deadline {
                let text = format!("an attempt of call {number} started at or after its deadline");
                self.breaks("F7", attempt.from, text);
            }
            self.used(attempt.from, &attempt.id, attempt.endpoint.as_slice());
        }
        let Some((end, ended)) = &call.end else {
            self.breaks("F7", deadline, format!("call {number} never ended"));
            return;
        };
        if *end > deadline + SLACK {
            let text = format!("call {number} ended {:?} after its deadline", *end - deadline);
            self.breaks("F7", *end, text);
        }
        self.outlasts(number, call, *end, &runs);
        match ended {
            Ended::Answered {
                runs: told,
                messages,
                by,
            } => {
                self.answer(number, call, *end, (told, *messages, *by));
                self.is_prompt(number, call, *end, &runs);
            }
            Ended::Garbled(text) => self.breaks("P4", *end, format!("call {number} was answered with {text}")),
            Ended::Failed { name, text } => self.failure(number, call, *end, (name, text), &runs),
            Ended::Cancelled => {}
        }
    }

    fn twice(&mut self, number: u64, call: &Called, runs: &[&Run]) {
        let mut lives = BTreeSet::new();
        for run in runs {
            if !lives.insert(run.life) {
                let id = self.facts.lives[run.life].id.short();
                self.breaks("F2", run.from, format!("{id} ran call {number} twice"));
            }
        }
        let honest = runs
            .iter()
            .filter(|run| !matches!(run.end, Some((_, End::Lied))))
            .count();
        if call.plan.policy == Policy::NeverProcessed && honest > 1 {
            let text = format!("call {number} must not run twice and ran {honest} times");
            self.breaks("F6", call.from, text);
        }
    }

    /// A run ends soon after its call, when both ends are well.
    fn outlasts(&mut self, number: u64, call: &Called, end: Duration, runs: &[&Run]) {
        for run in runs {
            let until = end + CANCELLED_WITHIN;
            let life = &self.facts.lives[run.life];
            let ended = run.end.map_or(Duration::MAX, |(at, _)| at);
            let alive = life.to.is_none_or(|to| to > until);
            if ended > until
                && alive
                && self.is_well_but_slow(life.member, run.from, until)
                && self.is_well(call.caller, run.from, until)
            {
                let text = format!(
                    "a run of call {number} went on at {} after the call had ended",
                    life.id.short()
                );
                self.breaks("F8", end, text);
            }
        }
    }

    /// Whether the others could reach a node all the time, however its handlers were.
    fn is_well_but_slow(&self, member: usize, from: Duration, to: Duration) -> bool {
        let troubles = self.facts.troubles.iter().filter(|it| it.member == member);
        let mut bad = troubles.filter(|it| it.kind.is_of_reach());
        !bad.any(|it| it.from <= to && it.to.is_none_or(|end| end + GRACE > from))
    }

    fn answer(&mut self, number: u64, call: &Called, at: Duration, told: (&BTreeSet<u64>, usize, Option<NodeId>)) {
        let (told, messages, by) = told;
        let wanted = match call.plan.shape {
            Shape::Unary | Shape::Stub => 1,
            Shape::Stream(messages) => messages as usize,
        };
        if messages != wanted || told.len() != 1 {
            let text = format!(
                "call {number} had {messages} messages of {} runs for answers, and {wanted} of one are due",
                told.len()
            );
            self.breaks("P4", at, text);
        }
        for &run in told {
            let run = usize::try_from(run).ok().and_then(|run| self.facts.runs.get(run));
            let wrong = match run {
                None => Some("of no run".to_owned()),
                Some(run) if run.call != number => Some(format!("of call {}", run.call)),
                Some(run) if !matches!(run.end, Some((_, End::Answered))) => {
                    Some("of a run that did not end so".to_owned())
                }
                Some(run) => {
                    let id = self.facts.lives[run.life].id;
                    let other = by.filter(|by| *by != id && !self.routes(by));
                    other.map(|by| format!("of {} in the name of {}", id.short(), by.short()))
                }
            };
            if let Some(wrong) = wrong {
                let text = format!(
                    "{} was answered at {at:?} with the answer {wrong}",
                    self.story(number, call)
                );
                self.breaks("P4", at, text);
            }
        }
    }

    /// Whether a node may have passed a call on: one of those where others get in.
    fn routes(&self, id: &NodeId) -> bool {
        let mut lives = self.facts.lives.iter();
        lives.any(|life| life.id == *id && life.member < ROUTERS)
    }

    /// A call in words: its plan, its runs and its attempts.
    fn story(&self, number: u64, call: &Called) -> String {
        use std::fmt::Write as _;
        let plan = &call.plan;
        let mut story = format!(
            "call {number} of node {} at {:?} ({:?}, {:?}, {} bytes",
            call.caller, call.from, plan.shape, plan.policy, plan.bytes
        );
        for run in self.runs.get(&number).into_iter().flatten() {
            let id = self.facts.lives[run.life].id;
            let _ = write!(story, "; ran at {} from {:?} to {:?}", id.short(), run.from, run.end);
        }
        for attempt in &call.tries {
            let _ = write!(
                story,
                "; {} {:?} after {:?}",
                attempt.id.short(),
                attempt.cause,
                attempt.took
            );
        }
        story + ")"
    }

    /// An answer does not come late when a provider was well all the time and no handler was slow.
    fn is_prompt(&mut self, number: u64, call: &Called, end: Duration, runs: &[&Run]) {
        let took = end - call.from;
        let slow = runs.iter().any(|run| self.is_slow(run));
        let once = call.plan.policy == Policy::NeverProcessed || matches!(call.plan.shape, Shape::Stream(_));
        if took <= DEAD_COSTS + self.transfer(call, end) || slow || once || !self.is_well(call.caller, call.from, end) {
            return;
        }
        if !self.well_providers(call.from, end).is_empty() {
            let text = format!("{} took {took:?}", self.story(number, call));
            self.breaks("L6", call.from, text);
        }
    }

    /// The time that a call's messages may need, both ways: a path that was bad has a small congestion window, and carries the messages of
    /// the caller's other calls as well.
    fn transfer(&self, call: &Called, end: Duration) -> Duration {
        if !self.schedule.faults.iter().any(|fault| fault.kind.is_of_reach()) {
            return Duration::ZERO;
        }
        let beside = self.facts.calls.iter().filter(|other| {
            let over = other.end.as_ref().is_some_and(|(over, _)| *over < call.from);
            other.caller == call.caller && other.from <= end && !over
        });
        let bytes: u64 = beside.map(|other| u64::from(other.plan.bytes)).sum();
        Duration::from_millis(2 * bytes * 1_000 / SHRUNK_RATE)
    }

    /// A call fails only when no reachable provider lived during it, or when its attempts or its policy were used up by what providers
    /// answered.
    fn failure(&mut self, number: u64, call: &Called, end: Duration, (name, text): (&str, &str), runs: &[&Run]) {
        let well = self.well_providers(call.from, end);
        if well.is_empty() || !self.is_well(call.caller, call.from, end) || name == "begun" {
            return;
        }
        // The handler of a stub has no way to say that it did not run.
        let refused = |run: &&Run| call.plan.shape != Shape::Stub && matches!(run.end, Some((_, End::Lied)));
        let may_have_run = name == "not_retried"
            || runs.iter().any(|run| !refused(run))
            || call
                .tries
                .iter()
                .any(|it| matches!(it.cause, Cause::TimedOut | Cause::Lost | Cause::Answered));
        if call.plan.policy == Policy::NeverProcessed && may_have_run {
            return;
        }
        let bad = runs.iter().filter(|run| {
            let answered = matches!(run.end, Some((_, End::Failed | End::Lied)));
            answered || self.is_slow(run)
        });
        let waited: Duration = bad
            .clone()
            .map(|run| run.end.map_or(end, |(at, _)| at).saturating_sub(run.from))
            .sum();
        if bad.clone().count() >= ATTEMPTS || waited + DEAD_COSTS >= call.plan.timeout {
            return;
        }
        let all_well = self.are_all_well(call.from, end);
        if call.plan.timeout < DEAD_COSTS && !all_well {
            return;
        }
        let burst = self.facts.troubles.iter().any(|it| {
            let lately = it.to.is_none_or(|to| to + BUDGET_WINDOW > call.from);
            matches!(it.kind, Kind::Burst(_)) && it.member == call.caller && it.from <= end && lately
        });
        // A stub does not tell its attempts, but its text does.
        let refused = text.contains(" refused the call") || call.tries.iter().any(|it| it.cause == Cause::Refused);
        if burst && (refused || bad.count() > 0) {
            return;
        }
        let rule = match name {
            "budget_exhausted" => "L5",
            "max_attempts_exceeded" => "F5",
            "all_providers_failed" | "service_not_found" => "D12",
            "unresolved" => "N3",
            "deadline_exceeded" => "L2",
            _ => "F1",
        };
        let well: Vec<String> = well.iter().map(|id| id.short().to_string()).collect();
        let text = format!(
            "{} failed while {} was well: {name}: {text}",
            self.story(number, call),
            well.join(", ")
        );
        self.breaks(rule, end, text);
    }

    /// Calls are retried after errors and refusals within the budget: a share of the calls, and a number each second.
    fn budgets(&mut self) {
        let mut made: BTreeMap<(usize, usize), Vec<Duration>> = BTreeMap::new();
        let mut again: BTreeMap<(usize, usize), Vec<Duration>> = BTreeMap::new();
        for (number, call) in self.facts.calls.iter().enumerate() {
            let service = match call.plan.shape {
                Shape::Unary => 0,
                Shape::Stream(_) => 1,
                Shape::Stub => 2,
            };
            let key = (call.caller, service);
            made.entry(key).or_default().push(call.from);
            let runs = self.runs.get(&(number as u64)).map_or(&[][..], Vec::as_slice);
            let retries = runs
                .windows(2)
                .filter(|two| matches!(two[0].end, Some((_, End::Failed | End::Lied))));
            again.entry(key).or_default().extend(retries.map(|two| two[1].from));
        }
        for (key, mut retries) in again {
            retries.sort_unstable();
            let made = &made[&key];
            for (at, &from) in retries.iter().enumerate() {
                let to = from + BUDGET_WINDOW;
                let count = retries[at..].iter().take_while(|&&retry| retry < to).count();
                let early = from.saturating_sub(BUDGET_WINDOW);
                let calls = made.iter().filter(|&&call| call >= early && call < to).count();
                let seconds = 2 * BUDGET_WINDOW.as_secs() as usize;
                let allowed = calls / BUDGET_SHARE + BUDGET_PER_SECOND * seconds;
                if count > allowed {
                    let text = format!("node {} made {count} retries in 10 s, and {allowed} are allowed", key.0);
                    self.breaks("F9", from, text);
                    break;
                }
            }
        }
    }

    /// A record was used or listed at this time.
    fn used(&mut self, at: Duration, id: &NodeId, places: &[Address]) {
        let mut lives = self.facts.lives.iter().filter(|life| life.id == *id).peekable();
        if lives.peek().is_none() {
            self.breaks("D9", at, format!("{} never was a node", id.short()));
            return;
        }
        let ended = lives
            .map(|life| life.to.unwrap_or(Duration::MAX))
            .max()
            .unwrap_or_default();
        if at > ended.saturating_add(TTL + SLACK) {
            let text = format!("{} is used {:?} after its end", id.short(), at - ended);
            self.breaks("D4", at, text);
        }
        for place in places {
            if !self.facts.places.contains(&(*id, place.clone())) {
                self.breaks("D9", at, format!("{} never was at {place}", id.short()));
            }
        }
        for withdrawn in self.facts.withdrawn.iter().filter(|it| it.id == *id) {
            let Some(from) = withdrawn.from else { continue };
            if at > from + TTL + SLACK && withdrawn.to.is_none_or(|to| at < to) {
                let text = format!("{} is used {:?} after it withdrew", id.short(), at - from);
                self.breaks("D3", at, text);
            }
        }
    }

    fn lists(&mut self) {
        for listed in &self.facts.lists {
            for (id, places) in &listed.list {
                self.used(listed.from, id, places);
                // A withdrawal that reached every node holds at once.
                for withdrawn in self.facts.withdrawn.iter().filter(|it| it.id == *id) {
                    let Some(from) = withdrawn.from else { continue };
                    let during = listed.from > from + SLACK && withdrawn.to.is_none_or(|to| listed.to < to);
                    if during && self.all_reach_all(from.saturating_sub(TTL), listed.from) {
                        let text = format!("{} is listed {:?} after it withdrew", id.short(), listed.from - from);
                        self.breaks("D3", listed.from, text);
                    }
                }
            }
        }
    }

    /// No peer is suspected while every node can be reached, whatever its handlers do. A connection to what a node was before, or to where it
    /// was, may stay for as long as connections idle, and its silence is rightly suspected.
    fn suspicions(&mut self) {
        let mut before: BTreeMap<usize, &Suspicions> = BTreeMap::new();
        for now in &self.facts.suspicions {
            if let Some(before) = before.insert(now.caller, now)
                && now.count > before.count
                && self.all_reach_all(before.at, now.at)
                && !self.has_left_connections(now.at)
            {
                let text = format!("node {} suspected {}", now.caller, now.count - before.count);
                self.breaks("L1", now.at, text);
            }
        }
    }

    /// Whether a node has left its key or its address before this time.
    fn has_left_connections(&self, at: Duration) -> bool {
        let mut troubles = self.facts.troubles.iter().filter(|it| it.from <= at);
        troubles.any(|it| matches!(it.kind, Kind::Lose | Kind::Replace | Kind::Move | Kind::Rebind))
    }

    fn all_reach_all(&self, from: Duration, to: Duration) -> bool {
        (0..self.schedule.nodes).all(|n| self.is_well_but_slow(n, from, to))
    }

    fn rest(&mut self) {
        let rest = &self.facts.rest;
        let clocks = self.schedule.faults.iter().any(|fault| fault.kind.is_of_clock());
        let rule = if clocks { "D14" } else { "D6" };
        for (caller, found) in &rest.found {
            match found {
                Ok(found) => {
                    for missing in rest.live.difference(found) {
                        let text = format!("node {caller} does not find {}", missing.short());
                        self.breaks(rule, rest.from, text);
                    }
                }
                Err(error) => self.breaks(rule, rest.from, format!("node {caller} finds no provider: {error}")),
            }
        }
        let mut reached: BTreeMap<usize, BTreeSet<NodeId>> = BTreeMap::new();
        for call in self.facts.calls.iter().filter(|call| call.from >= rest.from) {
            let reached = reached.entry(call.caller).or_default();
            if let Some((_, Ended::Answered { by: Some(by), .. })) = &call.end {
                reached.insert(*by);
            }
        }
        for (caller, reached) in reached {
            for missing in rest.live.difference(&reached) {
                let text = format!("node {caller} calls {} no more", missing.short());
                self.breaks("H2", rest.from, text);
            }
        }
        let most = self.facts.most_connections;
        if most > MAX_CONNECTIONS {
            let text = format!("a caller had {most} connections, and {MAX_CONNECTIONS} are allowed");
            self.breaks("P2", rest.from, text);
        }
        if rest.tasks > 0 {
            let text = format!("{} tasks are left", rest.tasks);
            self.breaks("N4", rest.from, text);
        }
    }
}
