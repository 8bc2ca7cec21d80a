//! A connection: the handle that callers hold, and the link behind it that the endpoint's tasks share.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::FutureExt as _;
use macula_wire::proto::{self, GoAwayReason, control};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc};

use crate::{
    CallReply, CallRequest, CallStream, LoadReport, MAX_MOVED_REPLIES, PeerInfo, Protocol, Replies, caller, congestion,
    endpoint::Inner,
    error::{CallError, CloseCode, Lost, NotSent, RequestError, Unknown},
    gate::{Gate, LaneEntry},
    lane::{MAX_CALLS, caller::Lane},
    outcome::{Outcome, Place, Progress, outcome},
    pool::{Activity, ConnectionId},
    report::{REPORT_EVERY, Reporter},
    stream::{self, Outgoing},
};

/// How many control messages may wait to be sent; beyond it they are dropped, as a later one says the same.
const MAX_CONTROL_QUEUE: usize = 16;
/// How many large requests of one peer are put together at a time: each takes up to a whole message of memory.
const MAX_LARGE_REQUESTS: usize = 16;
/// How many large replies of one peer are put together at a time, whatever calls they say they answer.
const MAX_LARGE_REPLIES: usize = 16;
/// How many large requests, and how many large replies, are written to a peer at a time: fewer than a peer puts together. Were there
/// more, those that wait for their turn there could fill the connection's window, and those whose turn it is would never be whole.
const MAX_LARGE_SENDS: usize = 12;
/// A request or reply of more bytes than this is large: as many smaller ones as there may be streams do not fill a connection's window.
const LARGE_BYTES: usize = 66 * 1024;
/// How many lanes a peer may have open: each may hold as much as a lane may queue. A node uses a few.
const MAX_PEER_LANES: usize = 16;

/// An open connection to a peer, out of the pool. Cheap to clone.
///
/// While a handle exists its connection counts as used and is not closed to make room for another, so take it when there is
/// something to send and drop it soon after; the pool gives it again.
#[derive(Debug)]
pub struct Connection {
    link: Arc<Link>,
}

impl Connection {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        link.leases.fetch_add(1, SeqCst);
        Self { link }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Arc<PeerInfo> {
        &self.link.peer
    }

    /// Calls the peer. Dropping the future cancels the call, at the peer too.
    ///
    /// # Errors
    /// When the peer gave no status; the variant says whether the call may have run.
    pub fn call<'a>(
        &'a self,
        request: CallRequest<'a>,
    ) -> impl Future<Output = Result<CallReply, CallError>> + Send + use<'a> {
        caller::call(&self.link, request)
    }

    /// Opens a call whose request and reply are streams of messages; its body, unless empty, is the first message. It may last
    /// until the request's timeout.
    ///
    /// # Errors
    /// When the call was not opened.
    pub async fn open(&self, request: CallRequest<'_>) -> Result<CallStream, CallError> {
        caller::open(&self.link, request).await
    }

    /// Opens a call of one request whose reply is a stream of messages: the request and its end travel in one write. As
    /// [`Connection::open`] with [`Requests::finish`](crate::Requests::finish) after it, but that an empty body is a message, and that
    /// a call whose reply is [expected to be brief](CallRequest::with_brief_reply) shares a stream with others.
    ///
    /// # Errors
    /// When the call was not opened.
    pub async fn open_with_only(&self, request: CallRequest<'_>) -> Result<Replies, CallError> {
        caller::open_with_only(&self.link, request).await
    }

    /// Asks the peer something of another protocol. Dropping the future cancels the request.
    ///
    /// # Errors
    /// When no reply came.
    pub async fn request(&self, protocol: Protocol, body: Bytes, timeout: Duration) -> Result<Bytes, RequestError> {
        caller::request(&self.link, protocol, body, timeout).await
    }

    /// Why the connection has ended; `None` while it has not.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        self.link.quic.close_reason().map(|error| self.link.lost(error))
    }

    /// How busy the peer said it is, and when it said so last; `None` while it has said nothing, which an idle peer does not.
    ///
    /// A peer that is called and busy repeats itself every few seconds: what is older than 10 s says nothing any more.
    #[must_use]
    pub fn load(&self) -> Option<(LoadReport, Instant)> {
        *self.link.peer_load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn downgrade(&self) -> Weak<Link> {
        Arc::downgrade(&self.link)
    }

    /// The current estimate of the path's round trip.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.link.quic.rtt()
    }
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        Self::new(self.link.clone())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.touch();
        self.link.leases.fetch_sub(1, SeqCst);
        self.link.noticed();
    }
}

/// What the endpoint's tasks share of one connection.
pub(crate) struct Link {
    pub(crate) quic: quinn::Connection,
    pub(crate) peer: Arc<PeerInfo>,
    pub(crate) inner: Arc<Inner>,
    /// Set once, when the pool has taken the connection.
    pub(crate) id: OnceLock<ConnectionId>,
    control: mpsc::Sender<proto::Control>,
    leases: AtomicUsize,
    /// Calls and requests of ours under way.
    outbound: AtomicUsize,
    /// Calls and requests of the peer under way, and whether further ones are taken.
    inbound: Gate,
    /// Those of them that are answered: the answer is under way, and the caller may have it.
    answered: AtomicUsize,
    /// Microseconds since the endpoint's epoch.
    last_used: AtomicU64,
    last_answered: AtomicU64,
    /// The peer takes no further calls.
    peer_leaving: AtomicBool,
    /// The calls of this side that the peer accepted, once it has named them.
    peer_accepted: OnceLock<proto::Accepted>,
    /// The peer wants the connection closed when it has answered.
    peer_draining: AtomicBool,
    /// This side makes no further calls here.
    retired: AtomicBool,
    /// Woken when something ended while somebody waits for quiet.
    pub(crate) quiet: Notify,
    closed_as: OnceLock<CloseCode>,
    /// How busy the peer said it is, and when.
    peer_load: Mutex<Option<(LoadReport, Instant)>>,
    /// How busy the peer was told that this node is.
    reporter: Mutex<Reporter>,
    /// How many further lanes the peer may open.
    pub(crate) peer_lanes: Semaphore,
    /// How many further large replies of the peer are put together at a time.
    pub(crate) large_replies: Semaphore,
    /// How many further large requests are written at a time.
    request_sends: Semaphore,
    /// How many further large replies are written at a time, on streams opened for them.
    reply_sends: Semaphore,
    /// How many further calls of the peer on a lane may have their replies on streams opened for them.
    pub(crate) moved_replies: Arc<Semaphore>,
    /// The peer has told of a reply that it was brief, which peers that do not take such calls on a lane never do.
    pub(crate) knows_brief: AtomicBool,
    /// Somebody looks after the peer while calls wait.
    watched: AtomicBool,
    /// A call's time was up since somebody looked.
    overdue: AtomicBool,
    /// Woken when a call waits that nobody looks after, or when a call's time was up.
    pub(crate) watch: Notify,
    /// The calls the peer takes beyond those under way.
    pub(crate) credit: Arc<Semaphore>,
    /// How many further large requests of the peer are put together at a time.
    pub(crate) large_requests: Semaphore,
    /// Where small calls go.
    lane: Mutex<Option<Arc<Lane>>>,
    /// What is under way.
    pub(crate) flight: Arc<congestion::Shared>,
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
        inner: Arc<Inner>,
    ) -> (Arc<Self>, mpsc::Receiver<proto::Control>) {
        let (control, queue) = mpsc::channel(MAX_CONTROL_QUEUE);
        let credit = Arc::new(Semaphore::new(peer.max_concurrent_calls.clamp(1, MAX_CALLS)));
        let link = Self {
            flight: congestion::Shared::of(&quic),
            quic,
            peer: Arc::new(peer),
            inner,
            id: OnceLock::new(),
            control,
            leases: AtomicUsize::new(0),
            outbound: AtomicUsize::new(0),
            inbound: Gate::default(),
            answered: AtomicUsize::new(0),
            last_used: AtomicU64::new(0),
            last_answered: AtomicU64::new(0),
            peer_leaving: AtomicBool::new(false),
            peer_accepted: OnceLock::new(),
            peer_draining: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            quiet: Notify::new(),
            closed_as: OnceLock::new(),
            peer_load: Mutex::default(),
            reporter: Mutex::default(),
            peer_lanes: Semaphore::new(MAX_PEER_LANES),
            large_replies: Semaphore::new(MAX_LARGE_REPLIES),
            request_sends: Semaphore::new(MAX_LARGE_SENDS),
            reply_sends: Semaphore::new(MAX_LARGE_SENDS),
            moved_replies: Arc::new(Semaphore::new(MAX_MOVED_REPLIES)),
            knows_brief: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            overdue: AtomicBool::new(false),
            watch: Notify::new(),
            credit,
            large_requests: Semaphore::new(MAX_LARGE_REQUESTS),
            lane: Mutex::new(None),
        };
        link.touch();
        (Arc::new(link), queue)
    }

    /// Queues a control message; drops it when the peer takes none, as a later one says the same.
    pub(crate) fn tell(&self, kind: control::Kind) {
        if self.control.try_send(proto::Control { kind: Some(kind) }).is_err() {
            tracing::debug!(peer = %self.peer.node_id.short(), "a control message was dropped");
        }
    }

    /// Has the peer's QUIC acknowledge something, be the window full of what nobody reads there: a stream that is opened and reset takes
    /// no room in it. Where the peer permits no stream either, nothing is sent.
    pub(crate) fn nudge(&self) {
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

    fn farewell(&self, reason: GoAwayReason, accepted: Option<&proto::Accepted>, words: &str) -> proto::GoAway {
        proto::GoAway {
            reason: reason.into(),
            accepted: accepted.cloned(),
            words: words.to_owned(),
        }
    }

    /// What became of the connection, in our terms: quinn does not remember why we closed it.
    pub(crate) fn lost(&self, error: quinn::ConnectionError) -> Lost {
        self.refine(error.into())
    }

    pub(crate) fn refine(&self, lost: Lost) -> Lost {
        match (lost, self.closed_as.get()) {
            (Lost::ClosedHere(_), Some(&code)) => Lost::ClosedHere(code),
            (lost, _) => lost,
        }
    }

    /// The largest payload of a message to the peer, in bytes.
    pub(crate) fn message_limit(&self) -> usize {
        self.inner
            .config
            .limits
            .max_message_bytes
            .min(self.peer.max_message_bytes)
    }

    /// The calls of this side that the peer accepted, once it has named them.
    pub(crate) fn peer_accepted(&self) -> Option<&proto::Accepted> {
        if self.peer_accepted.get().is_none()
            && let Some(quinn::ConnectionError::ApplicationClosed(close)) = self.quic.close_reason()
            && let Some(accepted) = stream::read_farewell(&close).and_then(|farewell| farewell.accepted)
        {
            let _ = self.peer_accepted.set(accepted);
        }
        self.peer_accepted.get()
    }

    /// Waits until the peer has named the calls that it accepted, or the connection is over.
    pub(crate) async fn peer_named(&self) {
        self.until(|link| link.peer_accepted().is_some()).await;
    }

    /// What a call at this place came to; of one without a place nothing was sent.
    pub(crate) fn call_over(&self, unknown: Unknown, place: Option<Place>) -> CallError {
        let unknown = match unknown {
            Unknown::Lost(lost) => Unknown::Lost(self.refine(lost)),
            unknown => unknown,
        };
        let progress = place.map_or(Progress::Unsent, |place| Progress::of(place, self.peer_accepted()));
        match (outcome((&unknown).into(), progress), unknown) {
            (Outcome::Unknown, unknown) => CallError::Unknown(unknown),
            (Outcome::NotSent, Unknown::Lost(lost)) => CallError::NotSent(NotSent::Lost(lost)),
            (Outcome::NotSent, _) => CallError::NotSent(NotSent::GoingAway),
        }
    }

    /// Waits until a request of so many bytes may be written; its turn lasts until what is given is dropped.
    pub(crate) async fn turn_of_request(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        turn(&self.request_sends, bytes).await
    }

    /// As [`Link::turn_of_request`], for a reply on a stream opened for it.
    pub(crate) async fn turn_of_reply(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        turn(&self.reply_sends, bytes).await
    }

    pub(crate) fn touch(&self) {
        self.last_used.fetch_max(self.inner.lately(), Relaxed);
    }

    pub(crate) fn enter(self: &Arc<Self>, direction: Direction) -> InFlight {
        match direction {
            Direction::Outbound => {
                self.inner.load.started();
                self.outbound.fetch_add(1, SeqCst);
                self.look_after_peer();
            }
            Direction::Inbound => self.inbound.follow(),
        }
        InFlight {
            link: self.clone(),
            direction,
            answered: false,
        }
    }

    /// The peer is looked after from now on, while something waits for it.
    fn look_after_peer(&self) {
        if !self.watched.load(SeqCst) {
            self.watched.store(true, SeqCst);
            self.watch.notify_one();
        }
    }

    /// Whether something waits for the peer: a call of this side, or, where this side leaves, the peer's word that it has its replies.
    fn waits(&self) -> bool {
        self.running(Direction::Outbound) > 0 || (self.is_shut() && !self.is_done())
    }

    /// As [`Link::enter`], for an answer to the peer.
    pub(crate) fn enter_answered(self: &Arc<Self>) -> InFlight {
        // First, so that nobody takes it for a call that runs.
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

    /// Lets so many calls of the peer in that were read from a lane; `None` when no further ones are taken.
    pub(crate) fn let_in_on(self: &Arc<Self>, lane: &LaneEntry, calls: usize) -> Option<InFlight> {
        lane.read(calls);
        self.inbound.enter().then(|| self.inside())
    }

    fn inside(self: &Arc<Self>) -> InFlight {
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
        self.look_after_peer();
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

    /// The peer takes no further calls; one that drains leaves it to this side to close, which knows when it has the answers.
    pub(crate) fn peer_leaves(&self, draining: bool, accepted: Option<proto::Accepted>) {
        if let Some(accepted) = accepted {
            // What it named first holds.
            let _ = self.peer_accepted.set(accepted);
        }
        self.peer_leaving.store(true, SeqCst);
        self.peer_draining.fetch_or(draining, SeqCst);
        self.quiet.notify_waiters();
    }

    pub(crate) fn is_peer_leaving(&self) -> bool {
        self.peer_leaving.load(SeqCst)
    }

    /// A call's time was up.
    pub(crate) fn timed_out(&self) {
        self.overdue.store(true, SeqCst);
        self.watch.notify_one();
    }

    /// Whether something waits for the peer; when nothing does, the next call wakes the watch. And whether a call's time was up since
    /// the last look.
    pub(crate) fn waiting(&self) -> (bool, bool) {
        let overdue = self.overdue.swap(false, SeqCst);
        if self.waits() {
            return (true, overdue);
        }
        self.watched.store(false, SeqCst);
        // A call that came in between has seen the watch on.
        let waiting = self.waits();
        self.watched.store(waiting, SeqCst);
        (waiting, overdue)
    }

    /// No further call is made here: the connection is closed once nothing runs on it and nobody holds it.
    pub(crate) fn retire(&self) {
        self.retired.store(true, SeqCst);
        self.quiet.notify_waiters();
    }

    /// Waits until the connection has nothing left to do.
    pub(crate) async fn spent(&self) {
        let spent = |link: &Self| {
            let retired = link.retired.load(SeqCst) && link.leases.load(SeqCst) == 0;
            (retired || link.peer_draining.load(SeqCst)) && link.is_quiet()
        };
        self.until(spent).await;
    }

    /// Waits until something holds, which is looked at whenever something ended here, or the connection is over.
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
    /// A peer that lives has the last replies of its lanes within a few round trips: one that has not by the time at which a silent
    /// one counts as dead is not waited for, and is told that its calls are not finished.
    pub(crate) async fn leave(&self, code: CloseCode, words: &str) {
        self.until(Self::is_quiet).await;
        let done = self.until(Self::is_done);
        match tokio::time::timeout(self.inner.config.timers.dead_after, done).await {
            Ok(()) => self.close_naming(code, words),
            Err(_) => self.close_naming(CloseCode::Aborted, words),
        }
    }

    fn noticed(&self) {
        if self.is_peer_leaving() || self.retired.load(SeqCst) || self.is_shut() {
            self.quiet.notify_waiters();
        }
    }

    /// The lane that small calls take, a new one when the last is over.
    pub(crate) fn lane(self: &Arc<Self>) -> Arc<Lane> {
        let mut lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        match &*lane {
            Some(lane) if !lane.is_over() => lane.clone(),
            _ => lane.insert(Lane::open(self)).clone(),
        }
    }

    /// The lane that runs on this stream of ours.
    pub(crate) fn lane_on(&self, stream: u64) -> Option<Arc<Lane>> {
        let lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        lane.clone().filter(|lane| lane.stream() == Some(stream))
    }

    /// The peer said how busy it is.
    pub(crate) fn peer_is_busy(&self, load: LoadReport) {
        let now = tokio::time::Instant::now().into_std();
        *self.peer_load.lock().unwrap_or_else(PoisonError::into_inner) = Some((load, now));
    }

    /// Tells a peer that has called lately how busy this node is, when there is something to tell.
    pub(crate) fn report(&self, now: Instant, load: LoadReport) {
        let called = match self.last_answered.load(Relaxed) {
            0 => false,
            micros => now <= self.inner.epoch + Duration::from_micros(micros) + 2 * REPORT_EVERY,
        } || self.running(Direction::Inbound) > 0;
        let mut reporter = self.reporter.lock().unwrap_or_else(PoisonError::into_inner);
        if called && reporter.is_due(now, load) {
            self.tell(control::Kind::Load(load.to_wire()));
        }
    }

    /// What the pool's rules are told of this connection.
    pub(crate) fn activity(&self) -> Activity {
        let at = |micros: &AtomicU64| self.inner.epoch + Duration::from_micros(micros.load(Relaxed));
        if self.leases.load(SeqCst) > 0 || !self.is_quiet() {
            Activity::Busy
        } else {
            Activity::IdleSince(at(&self.last_used))
        }
    }
}

/// What is not large needs no turn, and a closed semaphore there is none.
async fn turn(sends: &Semaphore, bytes: usize) -> Option<SemaphorePermit<'_>> {
    if bytes > LARGE_BYTES {
        sends.acquire().await.ok()
    } else {
        None
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
            // A handler may have run for long since somebody looked at the clock, and a farewell waits for what left just now.
            self.link.inner.saw_clock(tokio::time::Instant::now().into_std());
        }
        let now = self.link.inner.lately();
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
                self.link.inner.load.ended();
                self.link.outbound.fetch_sub(1, SeqCst);
            }
        }
        self.link.noticed();
    }
}
