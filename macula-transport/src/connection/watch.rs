//! Looks after a connection's peer while calls wait for it or run for it: finds out whether it is there, and closes the connection
//! when it is not (P3, L1 to L4, N8).
//!
//! One task for each connection keeps the time for all its calls, and only while there are calls. A call sets one flag.

use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Instant,
};

use macula_wire::proto::{self, control};
use tokio::sync::{Notify, watch};

use super::{
    health::{Health, SilenceRules, Verdict},
    link::{Direction, Link},
    suspicion::{Finding, Sight, Suspicion, SuspicionRules},
};
use crate::{config::Timers, error::CloseCode};

/// Whether the peer of a connection is believed to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing speaks against it.
    Up,
    /// It has been silent for longer than a peer that lives: its process or the path is probably gone. One datagram from it ends this.
    Suspected,
}

impl Presence {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspected => "suspected",
        }
    }
}

/// Tells when the [`Presence`] of a connection's peer changes; see [`Connection::watch_presence`](crate::Connection::watch_presence).
#[derive(Debug, Clone)]
pub struct PresenceWatch(watch::Receiver<Presence>);

impl PresenceWatch {
    /// Whether the peer is believed to be there now.
    #[must_use]
    pub fn now(&self) -> Presence {
        *self.0.borrow()
    }

    /// Waits until the peer's presence has changed since this watch was last asked, or made. Pending for good once the connection is
    /// over: its calls end by themselves.
    ///
    /// Cancel safe.
    pub async fn changed(&mut self) -> Presence {
        match self.0.changed().await {
            Ok(()) => *self.0.borrow_and_update(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// What a connection's calls and its watch tell each other.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The watch looks already.
    on: AtomicBool,
    /// A call's time was up since the last look.
    overdue: AtomicBool,
    /// The peer's address was reported as unreachable since the last look.
    hinted: AtomicBool,
    wake: Notify,
    presence: watch::Sender<Presence>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            on: AtomicBool::new(false),
            overdue: AtomicBool::new(false),
            hinted: AtomicBool::new(false),
            wake: Notify::new(),
            presence: watch::Sender::new(Presence::Up),
        }
    }
}

impl Watch {
    /// A call begins, or something else waits for the peer: it is looked after from now on.
    pub(crate) fn need(&self) {
        if !self.on.load(SeqCst) {
            self.on.store(true, SeqCst);
            self.wake.notify_one();
        }
    }

    /// A call's time was up.
    pub(crate) fn timed_out(&self) {
        self.overdue.store(true, SeqCst);
        self.wake.notify_one();
    }

    /// The peer's address was reported as unreachable.
    pub(crate) fn hint(&self) {
        self.hinted.store(true, SeqCst);
        self.wake.notify_one();
    }

    pub(crate) fn presence(&self) -> Presence {
        *self.presence.borrow()
    }

    pub(crate) fn subscribe(&self) -> PresenceWatch {
        PresenceWatch(self.presence.subscribe())
    }
}

/// Why the watch looks.
#[derive(Debug, Clone, Copy)]
struct Needs {
    /// Calls of ours wait.
    calls: bool,
    /// Something waits for the peer, a call of ours or its last word.
    waits: bool,
    /// Calls of the peer run.
    serves: bool,
    overdue: bool,
    hinted: bool,
}

impl Needs {
    fn of(link: &Link) -> Self {
        let overdue = link.watch.overdue.swap(false, SeqCst);
        let hinted = link.watch.hinted.swap(false, SeqCst);
        let running = || (link.waits(), link.running(Direction::Inbound) > 0);
        let (mut waits, mut serves) = running();
        if !waits && !serves {
            link.watch.on.store(false, SeqCst);
            // A call that came in between has seen the watch on.
            (waits, serves) = running();
            link.watch.on.store(waits || serves, SeqCst);
        }
        Self {
            calls: link.running(Direction::Outbound) > 0,
            waits,
            serves,
            overdue,
            hinted,
        }
    }
}

/// The three judgements of one peer.
struct Judges {
    /// While calls of ours wait.
    calls: Health,
    /// While calls of the peer run.
    serves: Health,
    suspicion: Suspicion,
}

impl Judges {
    fn new(timers: &Timers) -> Self {
        let calls = SilenceRules {
            ask_after: timers.probe_after,
            ask_again: timers.probe_again,
            dead_after: timers.dead_after,
            grace: timers.probe_grace,
            last_look_after: timers.stood_still_after,
        };
        let serves = SilenceRules {
            ask_after: timers.serving_probe_after,
            ..calls
        };
        let suspicion = SuspicionRules {
            after_ptos: timers.suspect_after_ptos,
            after: timers.suspect_after,
            ping_after: timers.ping_after,
            // A peer that answers its pings is never silent for long enough to be asked more.
            ping_at_most: 4 * timers.probe_after / 5,
            late: timers.stood_still_after,
            hint_pause: timers.hint_pause,
        };
        Self {
            calls: Health::new(calls),
            serves: Health::new(serves),
            suspicion: Suspicion::new(suspicion),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        [
            self.calls.poll_timeout(),
            self.serves.poll_timeout(),
            self.suspicion.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn look(&mut self, now: Instant, link: &Link) -> (Finding, Verdict) {
        let needs = Needs::of(link);
        let stats = link.quic.stats();
        let heard = stats.udp_rx.datagrams;
        let pulse = link.flight.pulse();
        let sight = Sight {
            heard,
            progress: stats.frame_tx.stream + stats.frame_rx.stream,
            eliciting: eliciting(&stats.frame_tx),
            unanswered: pulse.unanswered(),
            pto: pulse.pto(stats.path.rtt),
            prompt_pto: pulse.prompt_pto(stats.path.rtt),
            waiting: needs.calls,
        };
        if needs.hinted {
            self.suspicion.hint(now, &sight);
        }
        let finding = self.suspicion.look(now, &sight);
        // A suspected peer is watched until it is heard or given up, even when its calls have moved to another provider.
        let waiting = needs.waits || self.suspicion.is_suspected();
        let verdict = if needs.overdue {
            self.calls.look_overdue(now, heard, stats.path.rtt)
        } else {
            self.calls.look(now, heard, waiting)
        };
        (finding, verdict.max(self.serves.look(now, heard, needs.serves)))
    }
}

/// Ack-eliciting frames sent (RFC 9000, section 13.2.1).
fn eliciting(sent: &quinn::FrameStats) -> u64 {
    [
        sent.stream,
        sent.ping,
        sent.reset_stream,
        sent.stop_sending,
        sent.max_data,
        sent.max_stream_data,
        sent.max_streams_bidi,
        sent.max_streams_uni,
        sent.data_blocked,
        sent.stream_data_blocked,
        sent.streams_blocked_bidi,
        sent.streams_blocked_uni,
        sent.new_connection_id,
        sent.retire_connection_id,
    ]
    .iter()
    .sum()
}

/// Watches the peer until it is given up.
pub(crate) async fn peer(link: &Link) {
    let mut judges = Judges::new(&link.shared.config.timers);
    let mut nonce = 0;
    loop {
        // Before the look, which then misses no acknowledgement.
        let acknowledged = link.flight.acknowledged();
        let now = tokio::time::Instant::now().into_std();
        let (finding, verdict) = judges.look(now, link);
        match finding {
            Finding::Nothing => {}
            Finding::Ping => link.ping(),
            Finding::Suspect => {
                link.shared.counters.suspicions.add();
                tracing::debug!(peer = %link.peer.node_id.short(), "the peer is silent and suspected to be gone");
                link.watch.presence.send_replace(Presence::Suspected);
            }
            Finding::Clear => {
                tracing::debug!(peer = %link.peer.node_id.short(), "the suspected peer is heard again");
                link.watch.presence.send_replace(Presence::Up);
            }
        }
        match verdict {
            Verdict::Wait => {}
            Verdict::Ask => {
                nonce += 1;
                link.tell(control::Kind::Probe(proto::Probe { nonce }));
                link.ping();
            }
            Verdict::Dead => {
                link.close(CloseCode::Unresponsive, "no answer came");
                return;
            }
        }
        let suspected = judges.suspicion.is_suspected();
        let due = judges.poll_timeout();
        let due = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = link.watch.wake.notified() => {}
            () = acknowledged, if suspected => {}
            () = due => {}
        }
    }
}
