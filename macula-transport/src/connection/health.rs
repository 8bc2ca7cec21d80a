//! Whether the peer is still there while calls wait for it (P3).
//!
//! QUIC's own idle timeout is for quiet connections; a call must not hang that long.
//!
//! A core: no clock and no socket.
//!
//! **Invariants:** nothing is sent while nothing waits for the peer; a peer that is heard, in any way, is not given up; a peer that
//! is silent while a call waits is asked, and given up after [`SilenceRules::dead_after`], or soon after a call's time is up. When a look
//! comes late, it is this process that stood still: the peer is asked, and its silence counts from then, once. A shorter stop is not
//! noticed, so a last look follows before a peer is given up with a call: by then all that had come was read.

use std::time::{Duration, Instant};

/// When silence becomes suspicious.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SilenceRules {
    /// The silence after which the peer is asked, while a call waits.
    pub(crate) ask_after: Duration,
    /// The pause between two questions.
    pub(crate) ask_again: Duration,
    /// The silence after which the peer is given up.
    pub(crate) dead_after: Duration,
    /// How long an answer may take once a call's time is up, beside three round trips.
    pub(crate) grace: Duration,
    /// How long after that the last look is. An answer may wait to be read, because this process stood still.
    pub(crate) last_look_after: Duration,
}

/// What the shell must do, the gravest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Nothing before [`Health::poll_timeout`].
    Wait,
    /// Ask the peer for a sign of life.
    Ask,
    /// Close the connection.
    Dead,
}

/// The watch over one peer.
#[derive(Debug)]
pub(crate) struct Health {
    rules: SilenceRules,
    /// What the peer has sent so far, in datagrams.
    heard: u64,
    /// Since when it is silent; `None` while no call waits.
    silent_since: Option<Instant>,
    asked_at: Option<Instant>,
    /// A call's time is up: an answer must come before this.
    answer_by: Option<Instant>,
    /// None had come by then, and the last look is to come.
    looks_again: bool,
    /// The last look while a call waits.
    looked_at: Option<Instant>,
    /// The silence has been counted again once.
    excused: bool,
}

impl Health {
    pub(crate) fn new(rules: SilenceRules) -> Self {
        Self {
            rules,
            heard: 0,
            silent_since: None,
            asked_at: None,
            answer_by: None,
            looks_again: false,
            looked_at: None,
            excused: false,
        }
    }

    /// Looks at the peer: how many datagrams it has sent so far, and whether a call waits.
    pub(crate) fn look(&mut self, now: Instant, heard: u64, waiting: bool) -> Verdict {
        let late = self.poll_timeout().is_some_and(|due| now >= due + self.late());
        if heard != self.heard || (!waiting && self.answer_by.is_none()) {
            self.heard = heard;
            (self.silent_since, self.asked_at, self.answer_by) = (None, None, None);
            (self.excused, self.looks_again) = (false, false);
        }
        if !waiting && self.answer_by.is_none() {
            self.looked_at = None;
            return Verdict::Wait;
        }
        self.looked_at = Some(now);
        if late && self.silent_since.is_some() && !self.excused {
            (self.excused, self.looks_again) = (true, false);
            self.silent_since = Some(now);
            // A call that is over is not reported again.
            self.answer_by = self.answer_by.map(|_| now + self.rules.grace + self.late());
            return self.ask(now);
        }
        let silent_since = *self.silent_since.get_or_insert(now);
        if now >= silent_since + self.rules.dead_after {
            return Verdict::Dead;
        }
        if self.answer_by.is_some_and(|by| now >= by) {
            if self.looks_again {
                return Verdict::Dead;
            }
            self.look_again(now);
        }
        let ask_at = self
            .asked_at
            .map_or(silent_since + self.rules.ask_after, |at| at + self.rules.ask_again);
        if now >= ask_at { self.ask(now) } else { Verdict::Wait }
    }

    /// Looks at the peer because a call's time was up.
    pub(crate) fn look_overdue(&mut self, now: Instant, heard: u64, rtt: Duration) -> Verdict {
        // A question that is due now counts for the call, too.
        self.look(now, heard, true).max(self.timed_out(now, rtt))
    }

    /// A call's time was up. Look first.
    fn timed_out(&mut self, now: Instant, rtt: Duration) -> Verdict {
        if self.silent_since.is_none() {
            return Verdict::Wait;
        }
        let grace = self.rules.grace + 3 * rtt;
        match self.asked_at {
            Some(_) if self.looks_again => Verdict::Wait,
            Some(asked) => {
                let by = asked + grace;
                self.answer_by = Some(by);
                if now >= by {
                    self.look_again(now);
                }
                Verdict::Wait
            }
            None => {
                self.answer_by = Some(now + grace);
                self.ask(now)
            }
        }
    }

    fn look_again(&mut self, now: Instant) {
        self.looks_again = true;
        self.answer_by = Some(now + self.rules.last_look_after);
    }

    /// When a look comes later than it was due by this, the process stood still: stopped, asleep, or starved.
    fn late(&self) -> Duration {
        2 * self.rules.ask_after
    }

    fn ask(&mut self, now: Instant) -> Verdict {
        self.asked_at = Some(now);
        Verdict::Ask
    }

    /// When to look next; `None` while nothing waits.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let since = self.silent_since?;
        let ask_at = self
            .asked_at
            .map_or(since + self.rules.ask_after, |at| at + self.rules.ask_again);
        // Between two questions, too: silence counts from the look after the last that was heard.
        let look_at = self.looked_at.map(|at| at + self.rules.ask_after);
        [
            Some(ask_at),
            Some(since + self.rules.dead_after),
            self.answer_by,
            look_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: SilenceRules = SilenceRules {
        ask_after: Duration::from_millis(500),
        ask_again: Duration::from_secs(2),
        dead_after: Duration::from_secs(6),
        grace: Duration::from_millis(250),
        last_look_after: Duration::from_millis(20),
    };

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn p3_a_silent_peer_is_asked_and_given_up() {
        let (start, mut health) = (Instant::now(), Health::new(RULES));
        let mut asked = Vec::new();
        let mut now = start;
        assert_eq!(health.look(now, 0, true), Verdict::Wait);
        loop {
            now = health.poll_timeout().unwrap();
            match health.look(now, 0, true) {
                Verdict::Wait => {}
                Verdict::Ask => asked.push(now - start),
                Verdict::Dead => break,
            }
        }
        assert_eq!((asked, now - start), (vec![ms(500), ms(2500), ms(4500)], ms(6000)));
    }

    #[test]
    fn p3_a_silent_peer_is_given_up_with_the_call_that_waited_for_it() {
        let (start, mut health) = (Instant::now(), Health::new(RULES));
        assert_eq!(health.look(start, 0, true), Verdict::Wait);
        assert_eq!(health.look(start + ms(500), 0, true), Verdict::Ask);
        assert_eq!(health.look(start + ms(1000), 0, false), Verdict::Wait);
        assert_eq!(
            health.timed_out(start + ms(1000), ms(1)),
            Verdict::Wait,
            "nothing waits any more"
        );

        assert_eq!(health.look(start, 0, true), Verdict::Wait);
        assert_eq!(health.look(start + ms(500), 0, true), Verdict::Ask);
        assert_eq!(health.timed_out(start + ms(1000), ms(1)), Verdict::Wait);
        assert_eq!(health.look(start + ms(1020), 0, false), Verdict::Dead);
    }

    /// The answer is there, and this process has stood still before it read it.
    #[test]
    fn p3_a_last_look_follows_before_a_peer_is_given_up_with_a_call() {
        let (start, late) = (Instant::now(), ms(600));
        let stopped = |overdue_at: Instant| {
            let mut health = Health::new(RULES);
            assert_eq!(health.look(start, 0, true), Verdict::Wait);
            assert_eq!(health.look(start + ms(500), 0, true), Verdict::Ask);
            assert_eq!(health.look_overdue(overdue_at, 0, ms(1)), Verdict::Wait);
            health
        };
        // It stops after the call's time was up, and before.
        for (mut health, woken) in [
            (stopped(start + ms(510)), start + ms(510) + late),
            (stopped(start + ms(510) + late), start + ms(510) + late),
        ] {
            assert_eq!(health.look(woken, 0, false), Verdict::Wait);
            let look = health.poll_timeout().unwrap();
            assert_eq!(look, woken + RULES.last_look_after);
            assert_eq!(health.look(look, 1, false), Verdict::Wait, "it has answered");
            assert_eq!(health.poll_timeout(), None);
        }
    }

    #[test]
    fn a_short_timeout_asks_first() {
        let (start, mut health) = (Instant::now(), Health::new(RULES));
        assert_eq!(health.look(start, 0, true), Verdict::Wait);
        assert_eq!(health.timed_out(start + ms(100), ms(1)), Verdict::Ask);
        assert_eq!(health.poll_timeout(), Some(start + ms(353)));
        // The call is gone, and the question stands.
        assert_eq!(health.look(start + ms(200), 0, false), Verdict::Wait);
        assert_eq!(health.look(start + ms(353), 0, false), Verdict::Wait);
        assert_eq!(health.look(start + ms(373), 0, false), Verdict::Dead);
        // An answer clears it.
        let mut health = Health::new(RULES);
        assert_eq!(health.look(start, 0, true), Verdict::Wait);
        assert_eq!(health.timed_out(start + ms(100), ms(1)), Verdict::Ask);
        assert_eq!(health.look(start + ms(353), 1, false), Verdict::Wait);
        assert_eq!(health.poll_timeout(), None);
    }

    #[test]
    fn p3_a_question_due_when_the_calls_time_is_up_is_followed_up() {
        let (start, mut health) = (Instant::now(), Health::new(RULES));
        assert_eq!(health.look(start, 0, true), Verdict::Wait);
        let now = start + RULES.ask_after;
        assert_eq!(health.look_overdue(now, 0, ms(1)), Verdict::Ask);
        let by = health.poll_timeout().unwrap();
        assert_eq!(by, now + RULES.grace + ms(3));
        assert_eq!(health.look(by, 0, false), Verdict::Wait);
        assert_eq!(health.look(by + RULES.last_look_after, 0, false), Verdict::Dead);
    }

    #[test]
    fn p3_silence_counts_from_the_last_that_was_heard_also_when_that_answered_a_question() {
        let (start, mut health) = (Instant::now(), Health::new(RULES));
        assert_eq!(health.look(start, 0, true), Verdict::Wait);
        assert_eq!(health.look(start + ms(500), 0, true), Verdict::Ask);
        // The answer comes at once, and nothing after it.
        let (mut now, mut asked) = (start, Vec::new());
        loop {
            now = health.poll_timeout().unwrap_or(now);
            match health.look(now, 1, true) {
                Verdict::Wait => {}
                Verdict::Ask => asked.push(now - start),
                Verdict::Dead => break,
            }
        }
        assert_eq!((asked[0], now - start), (ms(1500), ms(7000)));
    }

    #[test]
    fn p3_a_process_that_stood_still_asks_before_it_judges() {
        let (start, mut health) = (Instant::now(), Health::new(RULES));
        assert_eq!(health.look(start, 0, true), Verdict::Wait);
        let woken = start + 10 * RULES.dead_after;
        assert_eq!(health.look(woken, 0, true), Verdict::Ask);
        assert_eq!(health.look(woken + ms(500), 1, true), Verdict::Wait, "it answers");

        // One that does not is given up in time, and is not excused again.
        let (mut now, mut health) = (start, Health::new(RULES));
        assert_eq!(health.look(now, 0, true), Verdict::Wait);
        assert_eq!(health.look(woken, 0, true), Verdict::Ask);
        while health.look(now.max(woken), 0, true) != Verdict::Dead {
            now = now.max(woken) + ms(1600);
            assert!(now < woken + RULES.dead_after + ms(1600));
        }

        // Also when the call's time was up meanwhile.
        let mut health = Health::new(RULES);
        assert_eq!(health.look(start, 0, true), Verdict::Wait);
        assert_eq!(health.look_overdue(woken, 0, ms(1)), Verdict::Ask);
        let by = health.poll_timeout().unwrap();
        assert!(by <= woken + RULES.ask_after);
        let mut now = by;
        while health.look(now, 0, false) == Verdict::Wait {
            now = health.poll_timeout().unwrap();
        }
        assert_eq!(now, woken + RULES.grace + ms(3) + RULES.last_look_after);
    }

    proptest! {
        #[test]
        fn p3_a_peer_that_is_heard_is_not_given_up_and_a_silent_one_is(
            steps in prop::collection::vec((0..700_u64, any::<bool>(), any::<bool>(), any::<bool>()), 1..100),
        ) {
            let (mut now, mut health, mut heard) = (Instant::now(), Health::new(RULES), 0);
            // Since when a call waits and nothing was heard, as seen at the looks.
            let mut silent: Option<Instant> = None;
            for (advance, hears, waits, times_out) in steps {
                now += ms(advance);
                heard += u64::from(hears);
                let verdict = health.look(now, heard, waits);
                if hears {
                    silent = None;
                    prop_assert_ne!(verdict, Verdict::Dead);
                }
                if waits {
                    let since = *silent.get_or_insert(now);
                    prop_assert!(now < since + RULES.dead_after || verdict == Verdict::Dead);
                } else if health.poll_timeout().is_none() {
                    silent = None;
                }
                if verdict == Verdict::Dead {
                    return Ok(());
                }
                prop_assert!(health.poll_timeout().is_none_or(|at| at > now), "a look leaves nothing due");
                if times_out && health.timed_out(now, ms(10)) == Verdict::Dead {
                    prop_assert!(silent.is_some_and(|since| since + RULES.grace <= now), "it was heard a moment ago");
                    return Ok(());
                }
            }
        }
    }
}
