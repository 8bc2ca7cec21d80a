//! The first attempt of a call by itself: most calls need no more.
//!
//! **Invariant.** Every operation leaves the balancer in the state that a [`Call`] with the same attempt would leave.

use std::hash::Hash;
use std::time::Instant;

use super::{
    Attempt, AttemptId, Call, CallOptions, Live, State, Times, attempt_until, choose, deadline, limit, probe_consent,
};
use crate::balancer::{Balancer, Excluded, Lease};
use crate::fate::Fate;
use crate::provider::Link;

/// A call's first attempt, before anything has gone wrong: a fraction of a [`Call`] in size and in work.
///
/// When the attempt succeeds, the call is over. When it does not, or the call is to be hedged, [`FirstAttempt::into_call`] makes it
/// the [`Call`] that it would have been.
///
/// ```
/// use macula_select::{AttemptId, Balancer, BalancerConfig, CallOptions, Fate, FirstAttempt, Output, Provider};
/// use std::time::Instant;
///
/// let now = Instant::now();
/// let mut balancer = Balancer::new(BalancerConfig::default(), 7);
/// balancer.update(now, [Provider::new("a"), Provider::new("b")]);
///
/// let options = CallOptions::default();
/// let first = FirstAttempt::start(now, now, &mut balancer, &options).expect("there are providers");
/// let refused = *first.to();
/// # let succeeded = false;
/// if succeeded {
///     first.succeed(now, &mut balancer);
/// } else {
///     let mut call = first.into_call(options);
///     call.on_result(now, &mut balancer, AttemptId::FIRST, Fate::NotSent);
///     let next = call.poll(now, &mut balancer);
///     assert!(matches!(next, Output::Dispatch { to, .. } if to != refused));
/// #   call.cancel(now, &mut balancer);
/// }
/// ```
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
#[must_use = "end it, or its provider looks busy until it times out"]
pub struct FirstAttempt<K> {
    to: K,
    lease: Lease,
    began: Instant,
    started: Instant,
    until: Instant,
}

impl<K: Eq + Hash + Clone> FirstAttempt<K> {
    /// Starts the first attempt of a call that began at `began`, now.
    ///
    /// `None` when there is no provider to send it to, when the call may make no attempt, or when its time is over: nothing has happened
    /// then, and a [`Call`] says which.
    #[inline]
    pub fn start(began: Instant, now: Instant, balancer: &mut Balancer<K>, options: &CallOptions) -> Option<Self> {
        let now = now.max(began);
        let deadline = deadline(options, began);
        if now >= deadline || limit(options) == 0 {
            return None;
        }
        let at = balancer.begin_pick(now);
        let probe = probe_consent(options, 0, false);
        let until = attempt_until(options, now, deadline);
        let (to, lease) = choose(options, probe, Times { now, at, until }, balancer, Excluded::default())?;
        balancer.budget.call(at);
        Some(Self {
            to,
            lease,
            began,
            started: now,
            until,
        })
    }

    /// The provider that it is sent to.
    pub fn to(&self) -> &K {
        &self.to
    }

    /// When it started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// When it times out; never after the call's deadline.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether it should become the [`Call`] now, before its result: its provider is suspected or down, or it still waits for
    /// a dial while another provider is connected. Ask when a link has changed ([`Balancer::link`]), then poll the call.
    #[must_use]
    pub fn is_stalled(&self, balancer: &Balancer<K>) -> bool {
        match balancer.link_of(self.lease.handle) {
            Some(Link::Suspected | Link::Down) => true,
            Some(Link::Idle | Link::Draining) => !self.lease.connected && balancer.any_open(),
            Some(Link::Up) | None => false,
        }
    }

    /// It succeeded, and the call is over.
    #[inline]
    pub fn succeed(self, now: Instant, balancer: &mut Balancer<K>) {
        balancer.take_back(now.max(self.started), self.lease, Fate::Ok);
    }

    /// The caller no longer waits for it.
    pub fn cancel(self, now: Instant, balancer: &mut Balancer<K>) {
        balancer.take_back(now.max(self.started), self.lease, Fate::Cancelled);
    }

    /// The call, with this attempt in flight as [`AttemptId::FIRST`]. `options` are those that it was started with.
    pub fn into_call(self, options: CallOptions) -> Call<K> {
        let mut call = Call::new(self.began, options);
        call.latest = self.started;
        call.probed = self.lease.is_probe();
        let attempt = call.attempts.push(Attempt {
            provider: self.to,
            handle: self.lease.handle,
            started: self.started,
            elapsed: 0,
            fate: Fate::Cancelled,
            hedge: false,
            renewed: false,
        });
        debug_assert_eq!(attempt, AttemptId::FIRST);
        call.sent = 1;
        call.live.push(Live::new(attempt, self.lease, self.until));
        call.state = State::InFlight;
        call
    }
}
