//! Whether a silent peer is suspected to be gone (L1 to L4).
//!
//! A peer that lives acknowledges within its `max_ack_delay`, whatever its handlers do. So the silence of a peer that owes an
//! acknowledgement speaks of its process or of the path.
//!
//! A core: no clock and no socket.
//!
//! ```text
//!            a call waits, a hint          owes, silent for some PTO, ping unanswered
//!   Idle ───────────────────────► Watched ────────────────────────────────────────► Suspected
//!    ▲   ◄───────────────────────  │   ▲                                                │
//!    │       no call waits         └───┘ heard                                          │
//!    └──────────────────────────────────────────────────────────────────────────────────┘ heard
//! ```
//!
//! **Invariants:** one datagram clears a suspicion. A peer is suspected only when it owes an acknowledgement, is silent for as long as
//! the rules say, and has left a ping unanswered for a PTO. After a hint it is enough that two pings are unanswered for a PTO
//! without acknowledgement delay. Pings are bounded between two datagrams of the peer, and hints are bounded in time. When a look comes
//! late, this process stood still: the silence counts from then, once.

use std::time::{Duration, Instant};

use super::pulse::Unacknowledged;

/// The most pings that one silence costs before the peer is suspected.
const MAX_PINGS: u32 = 8;
/// The pings of a silence follow each other after this part of a PTO, so that a few lost packets are not taken for a lost peer.
const PINGS_IN_PTO: u32 = 4;
/// The pings that a hint costs. A peer that lives acknowledges the second packet at once (RFC 9000, section 13.2.2), so the silence after
/// it need not last as long as an acknowledgement may be delayed.
const MAX_HINT_PINGS: u32 = 2;
/// The time between them, so that they are two packets.
const HINT_PING_AGAIN: Duration = Duration::from_millis(1);
/// The least silence after them that confirms a hint: a peer that is busy may be late by less.
const HINT_SILENCE: Duration = Duration::from_millis(10);
/// Ping a peer that owes nothing after this part of the time without progress (1/64), so that the ping adds little to a long wait.
const PART_OF_WAIT: u32 = 64;

/// When silence is suspicious.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SuspicionRules {
    /// The silence, in PTO, after which a peer that owes an acknowledgement is suspected.
    pub(crate) after_ptos: u32,
    /// The least silence before a suspicion.
    pub(crate) after: Duration,
    /// The silence after which a peer that owes nothing is pinged while a call waits, or a PTO where that is longer.
    pub(crate) ping_after: Duration,
    /// The longest time between two pings, however long the calls have waited.
    pub(crate) ping_at_most: Duration,
    /// When a look comes later than it was due by this, the process stood still.
    pub(crate) late: Duration,
    /// Hints that follow another within this time are ignored.
    pub(crate) hint_pause: Duration,
}

/// What the shell sees of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight {
    /// Datagrams of the peer so far.
    pub(crate) heard: u64,
    /// Messages of calls sent and received so far, in frames.
    pub(crate) progress: u64,
    /// Frames sent so far that ask for an acknowledgement.
    pub(crate) eliciting: u64,
    /// The packets that are not acknowledged.
    pub(crate) unanswered: Option<Unacknowledged>,
    /// The path's probe timeout.
    pub(crate) pto: Duration,
    /// The probe timeout for an acknowledgement that the peer may not delay.
    pub(crate) prompt_pto: Duration,
    /// Whether a call waits.
    pub(crate) waiting: bool,
}

/// What the shell must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Nothing before [`Suspicion::poll_timeout`].
    Nothing,
    /// Send something that the peer must acknowledge.
    Ping,
    /// Tell the calls that the peer is suspected.
    Suspect,
    /// Tell the calls that it is there.
    Clear,
}

/// The judgement of one peer.
#[derive(Debug)]
pub(crate) struct Suspicion {
    rules: SuspicionRules,
    belief: Belief,
    heard: u64,
    /// Frames that asked for an acknowledgement before the look that last heard the peer. They may be acknowledged already.
    eliciting: u64,
    /// When the peer was first asked for an acknowledgement after that, or the look that noticed it.
    asked_at: Option<Instant>,
    progress: u64,
    progressed_at: Option<Instant>,
    hinted_at: Option<Instant>,
    /// When to look next.
    due: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Belief {
    /// No call waits, and nothing speaks against the peer.
    Idle,
    Watched(Silence),
    Suspected {
        pinged_at: Instant,
        pings: u32,
    },
}

/// What is known of a silence.
#[derive(Debug, Clone, Copy)]
struct Silence {
    /// The look at which it began.
    since: Instant,
    /// The first ping, the last one, and how many there were.
    pings: Option<(Instant, Instant, u32)>,
    /// The address of the peer was said to be unreachable.
    hint: bool,
    /// It was counted again, because this process stood still.
    excused: bool,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            pings: None,
            hint: false,
            excused: false,
        }
    }

    fn ping(&mut self, now: Instant) -> Finding {
        let (first, count) = self.pings.map_or((now, 0), |(first, _, count)| (first, count));
        self.pings = Some((first, now, count + 1));
        Finding::Ping
    }
}

impl Suspicion {
    pub(crate) fn new(rules: SuspicionRules) -> Self {
        Self {
            rules,
            belief: Belief::Idle,
            heard: 0,
            eliciting: 0,
            asked_at: None,
            progress: 0,
            progressed_at: None,
            hinted_at: None,
            due: None,
        }
    }

    pub(crate) fn is_suspected(&self) -> bool {
        match self.belief {
            Belief::Suspected { .. } => true,
            Belief::Idle | Belief::Watched(_) => false,
        }
    }

    /// When to look next; `None` while nothing is to be found out.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// The address of the peer is said to be unreachable (L4): the look that follows asks the peer. A flood of hints counts as one.
    pub(crate) fn hint(&mut self, now: Instant, sight: &Sight) {
        if self.hinted_at.is_some_and(|at| now < at + self.rules.hint_pause) {
            return;
        }
        let silence = match self.belief {
            Belief::Suspected { .. } => return,
            Belief::Idle => Silence::new(now),
            Belief::Watched(silence) if silence.hint => return,
            // Pings that went before the hint stand for themselves: they asked the peer when it may have been there.
            Belief::Watched(silence) => Silence {
                excused: silence.excused,
                ..Silence::new(now)
            },
        };
        // Packets that were heard until now do not answer the hint.
        (self.heard, self.eliciting, self.asked_at) = (sight.heard, sight.eliciting, None);
        self.hinted_at = Some(now);
        self.belief = Belief::Watched(Silence { hint: true, ..silence });
        self.due = Some(now);
    }

    /// Looks at the peer.
    pub(crate) fn look(&mut self, now: Instant, sight: &Sight) -> Finding {
        let late = self.due.is_some_and(|due| now >= due + self.late());
        if sight.progress != self.progress || self.progressed_at.is_none() {
            (self.progress, self.progressed_at) = (sight.progress, Some(now));
        }
        let is_heard = std::mem::replace(&mut self.heard, sight.heard) != sight.heard;
        if is_heard {
            (self.eliciting, self.asked_at) = (sight.eliciting, None);
        } else if self.asked_at.is_none() && sight.eliciting != self.eliciting {
            self.asked_at = Some(self.pinged_at().unwrap_or(now));
        }
        let was_suspected = self.is_suspected();
        if is_heard || matches!(self.belief, Belief::Idle) {
            self.belief = if sight.waiting {
                Belief::Watched(Silence::new(now))
            } else {
                Belief::Idle
            };
        }
        let finding = match self.belief {
            _ if is_heard && was_suspected => Finding::Clear,
            Belief::Idle => Finding::Nothing,
            // A doubt that has begun is settled, although the call that waited has ended.
            Belief::Watched(silence) if !sight.waiting && !silence.hint && silence.pings.is_none() => {
                self.belief = Belief::Idle;
                Finding::Nothing
            }
            Belief::Watched(silence) => self.judge(now, sight, silence, late),
            Belief::Suspected { pinged_at, pings } => {
                if now < pinged_at + self.patience(sight, pings) {
                    Finding::Nothing
                } else {
                    self.belief = Belief::Suspected {
                        pinged_at: now,
                        pings: pings.saturating_add(1),
                    };
                    Finding::Ping
                }
            }
        };
        self.due = self.next_look(now, sight);
        finding
    }

    fn judge(&mut self, now: Instant, sight: &Sight, mut silence: Silence, late: bool) -> Finding {
        if late && !silence.excused && silence.since < now {
            silence = Silence {
                hint: silence.hint,
                excused: true,
                ..Silence::new(now)
            };
            let finding = silence.ping(now);
            self.belief = Belief::Watched(silence);
            return finding;
        }
        if self.suspect_at(sight, &silence).is_some_and(|at| now >= at) {
            self.belief = Belief::Suspected {
                pinged_at: now,
                pings: 0,
            };
            return Finding::Suspect;
        }
        let finding = if self.ping_at(now, sight, &silence).is_some_and(|at| now >= at) {
            silence.ping(now)
        } else {
            Finding::Nothing
        };
        self.belief = Belief::Watched(silence);
        finding
    }

    /// Since when the peer owes something in this silence. The first packet without an acknowledgement may have asked for none.
    fn owes_since(&self, sight: &Sight, silence: &Silence) -> Option<Instant> {
        let unanswered = sight.unanswered?;
        let since = unanswered.since.max(silence.since);
        match (unanswered.certain, self.asked_at) {
            (true, _) => Some(since),
            (false, asked_at) => asked_at.map(|at| at.max(since)),
        }
    }

    /// The last ping of this silence.
    fn pinged_at(&self) -> Option<Instant> {
        match self.belief {
            Belief::Watched(silence) => silence.pings.map(|(_, last, _)| last),
            Belief::Idle | Belief::Suspected { .. } => None,
        }
    }

    /// A look that comes so late comes from a process that stood still. After a hint a shorter silence counts, and so does a shorter stop.
    fn late(&self) -> Duration {
        match self.belief {
            Belief::Watched(silence) if silence.hint => self.rules.late.min(HINT_SILENCE / 2),
            Belief::Watched(_) | Belief::Idle | Belief::Suspected { .. } => self.rules.late,
        }
    }

    fn suspect_at(&self, sight: &Sight, silence: &Silence) -> Option<Instant> {
        let owes_since = self.owes_since(sight, silence)?;
        let (first_ping, last_ping, count) = silence.pings?;
        if silence.hint {
            let silent = sight.prompt_pto.max(HINT_SILENCE);
            return (count >= MAX_HINT_PINGS).then(|| owes_since.max(last_ping) + silent);
        }
        let silent = (self.rules.after_ptos * sight.pto).max(self.rules.after);
        Some((owes_since + silent).max(first_ping + sight.pto))
    }

    fn ping_at(&self, now: Instant, sight: &Sight, silence: &Silence) -> Option<Instant> {
        let (most, step) = if silence.hint {
            (MAX_HINT_PINGS, HINT_PING_AGAIN)
        } else {
            (MAX_PINGS, sight.pto / PINGS_IN_PTO)
        };
        let owes_since = self.owes_since(sight, silence);
        match (silence.pings, owes_since) {
            (None, _) if silence.hint => Some(silence.since),
            (None, Some(at)) => Some(at + sight.pto),
            (None, None) => Some(silence.since + self.quiet(now, sight)),
            (Some((_, _, count)), _) if count >= most => None,
            (Some((_, last, _)), _) if silence.hint => Some(last + step),
            (Some((_, last, _)), Some(at)) => Some((last + step).max(at + sight.pto)),
            // The ping has not left yet.
            (Some((_, last, _)), None) => Some(last + sight.pto),
        }
    }

    /// How long a peer that owes nothing may be silent.
    fn quiet(&self, now: Instant, sight: &Sight) -> Duration {
        let still = self.progressed_at.map_or(Duration::ZERO, |at| now - at);
        let least = self.rules.ping_after.max(sight.pto);
        (still / PART_OF_WAIT).min(self.rules.ping_at_most).max(least)
    }

    /// How long a suspected peer is left alone after so many pings.
    fn patience(&self, sight: &Sight, pings: u32) -> Duration {
        let most = self.rules.ping_at_most.max(sight.pto);
        sight.pto.saturating_mul(1 << pings.min(16)).min(most)
    }

    fn next_look(&self, now: Instant, sight: &Sight) -> Option<Instant> {
        match self.belief {
            Belief::Idle => None,
            Belief::Watched(silence) => {
                // Packets that are sent meanwhile are seen at the next look.
                let look = now + self.rules.ping_after.max(sight.pto);
                let ping = self.ping_at(now, sight, &silence);
                let suspect = self.suspect_at(sight, &silence);
                [Some(look), ping, suspect].into_iter().flatten().min()
            }
            Belief::Suspected { pinged_at, pings } => Some(pinged_at + self.patience(sight, pings)),
        }
    }
}

#[cfg(test)]
#[path = "suspicion_tests.rs"]
mod tests;
