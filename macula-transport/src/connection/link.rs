//! A connection, as both its sides see it: what is under way on it, how it ends, and what its peer says of itself.
//!
//! A link knows neither calls nor the pool. It counts what is under way, keeps the gate, and closes when its work is done.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::FutureExt as _;
use macula_wire::{
    PASSAGE_SECS, ServiceName,
    proto::{self, GoAwayReason, control},
};
use tokio::sync::{Notify, mpsc};

use super::{
    congestion,
    gate::{Gate, LaneEntry},
    shared::Shared,
    stream::{self, Outgoing, ResetCode, Unserved},
    watch::Watch,
};
use crate::{
    error::{CloseCode, Lost},
    heads::HeadLimits,
    peer::PeerInfo,
    report::{LoadReport, REPORT_EVERY, Reporter},
    share::memory::Memory,
};

/// How many control messages may wait to be sent; beyond it they are dropped, as a later one says the same.
const MAX_CONTROL_QUEUE: usize = 16;
/// The most services for which a router has this node's leave at a time; beyond it they are signed again.
const MAX_PASSAGES: usize = 256;
/// The reason that a peer is given when its connection gives way to others.
const GAVE_WAY: &str = "the node gave the connection up, because it took more than its share";

/// A connection.
pub(crate) struct Link {
    pub(crate) quic: quinn::Connection,
    pub(crate) peer: Arc<PeerInfo>,
    pub(crate) shared: Arc<Shared>,
    /// When both sides had accepted the connection.
    pub(crate) since: Instant,
    /// The bytes that are under way.
    pub(crate) flight: Arc<congestion::Bulk>,
    /// What the peer makes this node keep.
    pub(crate) memory: Memory,
    control: mpsc::Sender<proto::Control>,
    /// Handles to the connection.
    leases: AtomicUsize,
    /// Calls and requests of this side under way.
    outbound: AtomicUsize,
    /// Calls and requests of the peer under way, and whether further ones are taken.
    inbound: Gate,
    /// Inbound calls that are answered: the caller may have the answer already.
    answered: AtomicUsize,
    /// Microseconds since the endpoint's epoch.
    last_used: AtomicU64,
    last_answered: AtomicU64,
    leaving: PeerLeaving,
    /// This side makes no further calls here.
    retired: AtomicBool,
    /// Woken when a call or request ends while a task waits for quiet.
    quiet: Notify,
    closed_as: OnceLock<CloseCode>,
    load: Mutex<LoadTold>,
    /// The watch over the peer while calls are under way.
    pub(crate) watch: Watch,
    /// This node's leave for the peer to pass its calls on, by service, and when each was signed.
    passages: Mutex<BTreeMap<ServiceName, (u64, Bytes)>>,
}

/// What a peer that leaves has said.
#[derive(Debug, Default)]
struct PeerLeaving {
    /// It takes no further calls.
    said: AtomicBool,
    /// It wants the connection closed when it has answered.
    draining: AtomicBool,
    /// The calls of this side that it accepted.
    accepted: OnceLock<proto::Accepted>,
}

/// How busy each side was told that the other is.
#[derive(Debug, Default)]
struct LoadTold {
    by_peer: Option<(LoadReport, Instant)>,
    to_peer: Reporter,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer.node_id)
            .field("at", &self.peer.remote_addr)
            .finish()
    }
}

/// Which side asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Outbound,
    Inbound,
}

impl Link {
    pub(crate) fn new(
        quic: quinn::Connection,
        peer: PeerInfo,
        shared: Arc<Shared>,
    ) -> (Arc<Self>, mpsc::Receiver<proto::Control>) {
        let (control, queue) = mpsc::channel(MAX_CONTROL_QUEUE);
        let link = Arc::new_cyclic(|link: &Weak<Self>| {
            let holder = peer.holder();
            let link = link.clone();
            let memory = shared.memory.connection(holder, move || {
                link.upgrade().iter().for_each(|link| link.give_way());
            });
            Self {
                flight: congestion::Bulk::of(&quic),
                memory,
                quic,
                peer: Arc::new(peer),
                shared,
                since: tokio::time::Instant::now().into_std(),
                control,
                leases: AtomicUsize::new(0),
                outbound: AtomicUsize::new(0),
                inbound: Gate::default(),
                answered: AtomicUsize::new(0),
                last_used: AtomicU64::new(0),
                last_answered: AtomicU64::new(0),
                leaving: PeerLeaving::default(),
                retired: AtomicBool::new(false),
                quiet: Notify::new(),
                closed_as: OnceLock::new(),
                load: Mutex::default(),
                watch: Watch::default(),
                passages: Mutex::default(),
            }
        });
        link.touch();
        (link, queue)
    }

    /// A handle to the connection was made.
    pub(crate) fn lease(&self) {
        self.leases.fetch_add(1, SeqCst);
    }

    /// A handle to the connection was dropped.
    pub(crate) fn release(&self) {
        self.touch();
        self.leases.fetch_sub(1, SeqCst);
        self.noticed();
    }

    /// Queues a control message; drops it when the peer takes none, as a later one says the same.
    pub(crate) fn tell(&self, kind: control::Kind) {
        if self.control.try_send(proto::Control { kind: Some(kind) }).is_err() {
            tracing::debug!(peer = %self.peer.node_id.short(), "a control message was dropped");
        }
    }

    /// Queues a control message that no later one stands for, and waits for room.
    pub(crate) async fn tell_surely(&self, kind: control::Kind) {
        // Without a receiver the connection is over.
        let _ = self.control.send(proto::Control { kind: Some(kind) }).await;
    }

    /// Counts a stream without an answer, and gives the code that ends it.
    pub(crate) fn unserved(&self, unserved: Unserved) -> ResetCode {
        match unserved {
            Unserved::Broken => {
                self.shared.counters.rejected_frames.add();
                ResetCode::Protocol
            }
            Unserved::Slow => {
                self.shared.counters.slow_streams.add();
                ResetCode::Slow
            }
            Unserved::Exhausted => ResetCode::Exhausted,
            Unserved::NotBegun => ResetCode::NotBegun,
            Unserved::Gone => ResetCode::Cancelled,
        }
    }

    /// Has the peer's QUIC acknowledge something, also when its window is full: a stream that is opened and reset takes no room in it.
    /// Nothing is sent when the peer permits no stream.
    pub(crate) fn ping(&self) {
        if let Some(Ok((send, _))) = self.quic.open_bi().now_or_never() {
            // Dropped, it is reset.
            drop(Outgoing::new(send));
        }
    }

    /// Closes the connection because of what the peer is or did.
    pub(crate) fn close(&self, code: CloseCode, words: &str) {
        let _ = self.closed_as.set(code);
        self.quic.close(code.to_wire(), words.as_bytes());
    }

    /// Closes the connection for this side's own reasons, and names the calls that it accepted: the peer knows that no other ran.
    pub(crate) fn close_naming(&self, code: CloseCode, words: &str) {
        let reason = stream::farewell(self.farewell(GoAwayReason::Unspecified, Some(self.inbound.close()), words));
        let _ = self.closed_as.set(code);
        self.quic.close(code.to_wire(), &reason);
    }

    /// Closes the connection because others need its share.
    pub(crate) fn give_way(&self) {
        // Not "aborted", which its peer takes for the end of this node (L5).
        self.close_naming(CloseCode::Retired, GAVE_WAY);
    }

    fn farewell(&self, reason: GoAwayReason, accepted: Option<&proto::Accepted>, words: &str) -> proto::GoAway {
        proto::GoAway {
            reason: reason.into(),
            accepted: accepted.cloned(),
            words: words.to_owned(),
        }
    }

    /// Why the connection ended. quinn does not remember this side's own reason.
    pub(crate) fn lost(&self, error: quinn::ConnectionError) -> Lost {
        self.refine(error.into())
    }

    pub(crate) fn refine(&self, lost: Lost) -> Lost {
        match (lost, self.closed_as.get()) {
            // A peer that shuts down leaves the end to this side, which closes the connection when nothing runs on it.
            (Lost::ClosedHere(_), Some(CloseCode::Retired)) if self.leaving.draining.load(SeqCst) => {
                Lost::ClosedByPeer {
                    code: CloseCode::Shutdown,
                    reason: CloseCode::Shutdown.to_string().into(),
                }
            }
            (Lost::ClosedHere(_), Some(&code)) => Lost::ClosedHere(code),
            (lost, _) => lost,
        }
    }

    /// This node's leave for the peer to pass its calls of `service` on; empty when this node has no valid grant.
    pub(crate) fn passage(&self, service: &ServiceName) -> Bytes {
        let config = &self.shared.config;
        let (Ok(own), now) = (config.access.own(), config.access.now()) else {
            return Bytes::new();
        };
        let mut passages = self.passages.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = passages
            .get(service)
            .filter(|(at, _)| now.abs_diff(*at) < PASSAGE_SECS / 2);
        if let Some((_, passage)) = fresh {
            return passage.clone();
        }
        if passages.len() >= MAX_PASSAGES {
            passages.clear();
        }
        let realm = config.access.realm().hash();
        let passage = own.passage(config.identity.secret(), &realm, &self.peer.node_id, service, now);
        passages.insert(service.clone(), (now, passage.clone()));
        passage
    }

    /// The largest payload of a message to the peer, in bytes.
    pub(crate) fn message_limit(&self) -> usize {
        self.shared
            .config
            .limits
            .max_message_bytes
            .min(self.peer.max_message_bytes)
    }

    /// How much of a call or a reply to the peer may be no payload.
    pub(crate) fn head_limits(&self) -> HeadLimits {
        self.shared.config.limits.heads().and(self.peer.heads())
    }

    /// The calls of this side that the peer accepted, once it has named them.
    pub(crate) fn peer_accepted(&self) -> Option<&proto::Accepted> {
        if self.leaving.accepted.get().is_none()
            && let Some(quinn::ConnectionError::ApplicationClosed(close)) = self.quic.close_reason()
            && let Some(accepted) = stream::read_farewell(&close).and_then(|farewell| farewell.accepted)
        {
            let _ = self.leaving.accepted.set(accepted);
        }
        self.leaving.accepted.get()
    }

    /// Waits until the peer has named the calls that it accepted, or the connection is over.
    pub(crate) async fn peer_named(&self) {
        self.until(|link| link.peer_accepted().is_some()).await;
    }

    pub(crate) fn touch(&self) {
        self.last_used.fetch_max(self.shared.lately(), Relaxed);
    }

    pub(crate) fn enter(self: &Arc<Self>, direction: Direction) -> InFlight {
        match direction {
            Direction::Outbound => {
                self.shared.load.started();
                self.outbound.fetch_add(1, SeqCst);
            }
            Direction::Inbound => self.inbound.follow(),
        }
        self.watch.need();
        InFlight {
            link: self.clone(),
            direction,
            answered: false,
        }
    }

    /// Whether something waits for the peer: a call of this side, or, where this side leaves, the peer's word that it has its replies.
    pub(crate) fn waits(&self) -> bool {
        self.running(Direction::Outbound) > 0 || (self.is_shut() && !self.is_done())
    }

    /// As [`Link::enter`], for an answer to the peer.
    pub(crate) fn enter_answered(self: &Arc<Self>) -> InFlight {
        // First, so that it is not taken for a call that runs.
        self.answered.fetch_add(1, SeqCst);
        let mut in_flight = self.enter(Direction::Inbound);
        in_flight.answered = true;
        in_flight
    }

    /// How many calls of the peer run: those that are answered do not, for the caller may have the answer and call again.
    pub(crate) fn unanswered(&self) -> usize {
        let running = self.running(Direction::Inbound);
        running.saturating_sub(self.answered.load(SeqCst))
    }

    /// Lets a call of the peer in that came on a stream of its own; `None` when no further ones are taken.
    pub(crate) fn let_in_from(self: &Arc<Self>, stream: u64) -> Option<InFlight> {
        self.inbound.enter_from(stream).then(|| self.inside())
    }

    /// Lets in `calls` calls of the peer that were read from a lane; `None` when no further ones are taken.
    pub(crate) fn let_in_on(self: &Arc<Self>, lane: &LaneEntry, calls: usize) -> Option<InFlight> {
        lane.read(calls);
        self.inbound.enter().then(|| self.inside())
    }

    fn inside(self: &Arc<Self>) -> InFlight {
        self.watch.need();
        InFlight {
            link: self.clone(),
            direction: Direction::Inbound,
            answered: false,
        }
    }

    /// The peer opened a lane.
    pub(crate) fn lane_opened(&self, stream: u64) -> Arc<LaneEntry> {
        self.inbound.lane_opened(stream)
    }

    /// The peer's lane is over, and has acknowledged its replies or never will.
    pub(crate) fn lane_over(&self, lane: &Arc<LaneEntry>) {
        self.inbound.lane_over(lane);
        self.noticed();
    }

    /// Whether no further calls of the peer are taken.
    pub(crate) fn is_shut(&self) -> bool {
        self.inbound.is_closed()
    }

    /// Takes no further calls of the peer, and tells it which were accepted.
    pub(crate) fn shut(&self, reason: GoAwayReason) {
        let accepted = self.inbound.close();
        self.tell(control::Kind::GoAway(self.farewell(reason, Some(accepted), "")));
        self.watch.need();
        self.quiet.notify_waiters();
    }

    /// Tells the peer that no further call of its is wanted here. Those under way are still taken.
    pub(crate) fn say_retired(&self) {
        self.tell(control::Kind::GoAway(self.farewell(GoAwayReason::Retired, None, "")));
    }

    /// Takes no further calls of the peer, and closes the connection when nothing is under way on it.
    pub(crate) fn close_unused(&self, words: &str) -> bool {
        self.shut(GoAwayReason::Retired);
        // In this order: a call that came before the gate was shut is seen now.
        let unused = self.is_done();
        if unused {
            self.close_naming(CloseCode::Retired, words);
        }
        unused
    }

    pub(crate) fn running(&self, direction: Direction) -> usize {
        match direction {
            Direction::Outbound => self.outbound.load(SeqCst),
            Direction::Inbound => self.inbound.inside(),
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.running(Direction::Outbound) == 0 && self.running(Direction::Inbound) == 0
    }

    /// Whether nothing is under way, and the peer has every reply.
    fn is_done(&self) -> bool {
        self.is_quiet() && self.inbound.lanes() == 0
    }

    /// The peer takes no further calls. A peer that drains leaves the closing to this side, which knows when it has the answers.
    pub(crate) fn peer_leaves(&self, draining: bool, accepted: Option<proto::Accepted>) {
        if let Some(accepted) = accepted {
            // Only the first list that it named counts.
            let _ = self.leaving.accepted.set(accepted);
        }
        self.leaving.said.store(true, SeqCst);
        self.leaving.draining.fetch_or(draining, SeqCst);
        self.quiet.notify_waiters();
    }

    pub(crate) fn is_peer_leaving(&self) -> bool {
        self.leaving.said.load(SeqCst)
    }

    /// A call's time was up.
    pub(crate) fn timed_out(&self) {
        self.watch.timed_out();
    }

    /// No further call is made here: the connection is closed once nothing runs on it and no handle to it exists.
    pub(crate) fn retire(&self) {
        self.retired.store(true, SeqCst);
        self.quiet.notify_waiters();
    }

    /// Waits until the connection has nothing left to do.
    pub(crate) async fn spent(&self) {
        let spent = |link: &Self| {
            let retired = link.retired.load(SeqCst) && link.leases.load(SeqCst) == 0;
            (retired || link.leaving.draining.load(SeqCst)) && link.is_quiet()
        };
        self.until(spent).await;
    }

    /// Waits until `holds` says yes, or the connection is over. It is asked again whenever a call or request ends here.
    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let held = async {
            loop {
                let quiet = self.quiet.notified();
                if holds(self) {
                    return;
                }
                quiet.await;
            }
        };
        tokio::select! {
            biased;
            () = held => {}
            _ = self.quic.closed() => {}
        }
    }

    /// Waits until no call of the peer runs, and the peer has the replies that came on streams. The gate was shut before.
    pub(crate) async fn drained(&self) {
        self.until(|link| link.running(Direction::Inbound) == 0).await;
    }

    /// Waits until nothing is under way and the peer has every reply, then closes the connection. The gate was shut before.
    ///
    /// It ends earlier only with the connection: while it waits, [`Link::waits`] has the peer watched, and a silent one is given up.
    pub(crate) async fn leave(&self, code: CloseCode, words: &str) {
        self.until(Self::is_done).await;
        self.close_naming(code, words);
    }

    fn noticed(&self) {
        if self.shared.room.is_wanted() && self.idle_since().is_some() {
            self.shared.room.freed();
        }
        if self.is_peer_leaving() || self.retired.load(SeqCst) || self.is_shut() {
            self.quiet.notify_waiters();
        }
    }

    fn lock_load(&self) -> std::sync::MutexGuard<'_, LoadTold> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer said how busy it is.
    pub(crate) fn peer_is_busy(&self, load: LoadReport) {
        self.lock_load().by_peer = Some((load, tokio::time::Instant::now().into_std()));
    }

    /// How busy the peer said it is, and when.
    pub(crate) fn peer_load(&self) -> Option<(LoadReport, Instant)> {
        self.lock_load().by_peer
    }

    /// Tells a peer that has called lately how busy this node is, when there is something to tell.
    pub(crate) fn report(&self, now: Instant, load: LoadReport) {
        let called = match self.last_answered.load(Relaxed) {
            0 => false,
            micros => now <= self.shared.epoch + Duration::from_micros(micros) + 2 * REPORT_EVERY,
        } || self.running(Direction::Inbound) > 0;
        if called && self.lock_load().to_peer.is_due(now, load) {
            self.tell(control::Kind::Load(load.to_wire()));
        }
    }

    /// The last use of a connection that is in no use now; `None` while a handle, a call or a request needs it.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let idle = self.leases.load(SeqCst) == 0 && self.is_quiet();
        idle.then(|| self.shared.epoch + Duration::from_micros(self.last_used.load(Relaxed)))
    }
}

/// One call or request under way; ends when dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    link: Arc<Link>,
    direction: Direction,
    answered: bool,
}

impl InFlight {
    /// A call of the peer has its answer, which is about to be sent.
    pub(crate) fn answered(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            self.link.answered.fetch_add(1, SeqCst);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.direction == Direction::Inbound {
            // A handler may have run for long since the last look at the clock.
            self.link.shared.saw_clock(tokio::time::Instant::now().into_std());
        }
        let now = self.link.shared.lately();
        self.link.last_used.fetch_max(now, Relaxed);
        match self.direction {
            Direction::Inbound => {
                self.link.last_answered.fetch_max(now, Relaxed);
                self.link.inbound.leave();
                if self.answered {
                    self.link.answered.fetch_sub(1, SeqCst);
                }
            }
            Direction::Outbound => {
                self.link.shared.load.ended();
                self.link.outbound.fetch_sub(1, SeqCst);
            }
        }
        self.link.noticed();
    }
}
