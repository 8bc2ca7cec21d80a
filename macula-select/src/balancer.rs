//! The providers of one service: which there are, how they do, and which is next.
//!
//! **Invariants.** Every lease is reported once, and a report of an earlier life of a provider touches nothing.
//! At most [`HealthConfig::max_ejected`] of the providers are ejected, after every report and every update. Neither
//! a pick nor a report allocates. Time never runs backward in here, whatever the caller's clock does.
//!
//! It knows nothing of calls, payloads, connections: [`Call`](crate::Call) and the caller do.

mod affinity;
mod config;
mod dial;
mod dial_queue;
mod event;
mod health;
mod index;
mod lease;
mod leases;
mod links;
mod member;
mod p2c;
mod pick;
mod roster;
mod rotation;
mod stats;
mod timers;
mod turns;
mod update;

use std::hash::Hash;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use config::{AffinityConfig, BalancerConfig, HealthConfig, LocalityConfig};
pub use dial::MAX_REDIAL;
pub use dial_queue::{DIAL_EVERY, MAX_DIALS_AT_ONCE};
pub use event::{EjectionReason, Event, MAX_EVENTS, RestoreReason};
pub use lease::{ForeignLease, Lease};
pub use pick::{DEFAULT_LEASE, Locality, PickContext, PickError, ProbeConsent};
pub use stats::{ProviderState, ProviderStats, Stats};
pub use update::Changes;

pub(crate) use lease::Handle;
pub(crate) use pick::{Choice, Excluded};

use crate::budget::Budget;
use crate::clock::{Clock, NEVER, Nanos, nanos};
use crate::fate::{Fate, Pushback, Refusal, Verdict};
use crate::identity;
use crate::latency::{Decay, Estimate};
use crate::provider::Link;
use crate::quantile::Quantile;
use crate::rng::Rng;
use crate::weights::Weights;
use dial_queue::Dials;
use event::Events;
use index::Index;
use leases::Leases;
use member::{Circuit, Cold, Hot, WEIGHT_UNIT};
use roster::{DOWN, DRAINING, HEALTHY, OPEN, Roster, SILENT, SUSPECTED, Tiers};
use rotation::Rotation;

/// Chooses among the providers of one service, and learns from what becomes of each choice.
///
/// `K` names a provider: a node id, an address, anything that is `Eq + Hash + Clone`. Cloning it should be cheap
/// (`Copy`, or an `Arc`), because every dispatch does.
///
/// ```
/// use macula_select::{Balancer, BalancerConfig, Fate, PickContext, Provider};
/// use std::time::Instant;
///
/// let now = Instant::now();
/// let mut balancer = Balancer::new(BalancerConfig::default(), 42);
/// balancer.update(now, ["a", "b", "c"].map(Provider::new));
///
/// let lease = balancer.pick(now, &PickContext::default())?;
/// println!("send it to {}", balancer.provider(&lease).expect("it was just picked"));
/// balancer.report(now, lease, Fate::Ok)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It has many fields, because each part is borrowed by itself.
#[derive(Debug, Clone)]
pub struct Balancer<K> {
    /// Tells its leases from those of other balancers. Clones share it, with the leases of before.
    id: u32,
    config: BalancerConfig,
    decay: Decay,
    pub(crate) clock: Clock,
    pub(crate) rng: Rng,
    hot: Vec<Hot>,
    cold: Vec<Cold<K>>,
    vacant: Vec<u32>,
    index: Index,
    /// Slots in the caller's order.
    list: Vec<u32>,
    /// When the set last ceased to be empty.
    began: Nanos,
    rotation: Rotation,
    roster: Roster,
    weights: Weights,
    /// The number of the current pick; members that carry it are excluded from it.
    mark: u32,
    /// The typical latency of a success, for providers that were never measured; 1 ns until there is one.
    typical: f64,
    /// What a provider that was never measured is taken to need: a little less than the typical latency, decaying from the
    /// last time that one was added or tried.
    newcomer: Estimate,
    quantile: Quantile,
    pub(crate) budget: Budget,
    budget_exhausted: bool,
    events: Events<K>,
    panicking: bool,
    /// Members whose circuit is not closed.
    ejected: u32,
    /// Of these, waiting for a probe.
    half_open: u32,
    /// Members in the caller's zone, and their calls in flight.
    local: u32,
    local_in_flight: u32,
    next_due: Nanos,
    next_tune: Nanos,
    leases: Leases,
    dials: Dials,
    counters: Counters,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    issued: u64,
    reported: u64,
    lost: u64,
    panic_picks: u64,
    probes: u64,
    ejections: u64,
    ejections_capped: u64,
}

/// The next balancer's id. It wraps after four thousand million of them, long after the leases of the first are over.
static NEXT_ID: AtomicU32 = AtomicU32::new(0);

/// The first hold of a provider that refuses for overload without saying when it wants to be asked again.
const OVERLOAD_HOLD: Duration = Duration::from_millis(100);
/// The longest such hold.
const MAX_OVERLOAD_HOLD: Duration = Duration::from_secs(2);

/// Of the typical latency, what an unmeasured provider starts with: below it, so that it is tried at all.
const NEWCOMER_SHARE: f64 = 0.95;

/// Weight of one sample in the typical latency.
const TYPICAL_WEIGHT: f64 = 1.0 / 32.0;

impl<K: Eq + Hash + Clone> Balancer<K> {
    /// An empty balancer. All its chance comes from `seed`.
    #[must_use]
    pub fn new(config: BalancerConfig, seed: u64) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            decay: Decay::new(config.latency),
            clock: Clock::default(),
            rng: Rng::new(seed),
            hot: Vec::new(),
            cold: Vec::new(),
            vacant: Vec::new(),
            index: Index::default(),
            list: Vec::new(),
            began: 0,
            rotation: Rotation::default(),
            roster: Roster::default(),
            weights: Weights::default(),
            mark: 0,
            typical: 1.0,
            newcomer: Estimate::UNMEASURED,
            quantile: Quantile::new(),
            budget: Budget::new(config.budget),
            budget_exhausted: false,
            events: Events::new(),
            panicking: false,
            ejected: 0,
            half_open: 0,
            local: 0,
            local_in_flight: 0,
            next_due: NEVER,
            next_tune: NEVER,
            leases: Leases::new(),
            dials: Dials::new(),
            counters: Counters::default(),
            config,
        }
    }

    /// The configuration that it was made with.
    #[must_use]
    pub fn config(&self) -> &BalancerConfig {
        &self.config
    }

    /// The number of providers in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether this provider is in the set.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.find(key).is_some()
    }

    /// The provider that a lease is for, or `None` if an update removed it meanwhile or another balancer issued it.
    #[must_use]
    pub fn provider(&self, lease: &Lease) -> Option<&K> {
        if lease.issuer != self.id {
            return None;
        }
        self.member(lease.handle)
            .and_then(|slot| self.cold[slot as usize].key.as_ref())
    }

    /// Takes back a lease and learns how the attempt ended.
    ///
    /// Also fine after the lease's deadline, and after the provider was removed, or removed and added again: its new life
    /// then starts unburdened.
    ///
    /// # Errors
    ///
    /// [`ForeignLease`] if another balancer issued it.
    pub fn report(&mut self, now: Instant, lease: Lease, fate: Fate) -> Result<(), ForeignLease> {
        if lease.issuer != self.id {
            return Err(ForeignLease(lease));
        }
        let now = self.clock.tick(now);
        let held = self.leases.take(lease.ticket);
        if !held {
            // A lease that a clone of this balancer issued was never lost here.
            match self.counters.lost.checked_sub(1) {
                Some(lost) => self.counters.lost = lost,
                None => return Err(ForeignLease(lease)),
            }
        }
        self.counters.reported += 1;
        let Some(slot) = self.member(lease.handle) else {
            return Ok(());
        };
        let unit = self.unit(now);
        let hot = &mut self.hot[slot as usize];
        let cold = &mut self.cold[slot as usize];
        if held {
            hot.in_flight -= 1;
            if self.config.locality.zone.is_some() && !cold.remote {
                self.local_in_flight -= 1;
            }
        }
        let elapsed = now.saturating_sub(lease.started);
        let verdict = match (cold.link, fate) {
            // Known already, and no matter of health: it returns when it can be reached.
            (Link::Down, Fate::NotSent | Fate::Unknown(_)) => return Ok(()),
            (Link::Idle | Link::Up | Link::Suspected | Link::Down | Link::Draining, fate) => fate.verdict(),
        };
        let unmeasured = !hot.latency.is_measured();
        match verdict {
            Verdict::Success => {
                cold.consecutive = 0;
                cold.window.record(now, true);
                if fate == Fate::Ok {
                    cold.cut_short = 0;
                    cold.refusals = 0;
                    hot.latency
                        .observe(unit, &self.decay, now - cold.observed, elapsed, self.typical);
                    cold.observed = now;
                    let sample = elapsed as i64 as f64 + 1.0;
                    self.typical = if self.typical <= 1.0 {
                        sample
                    } else {
                        self.typical + (sample - self.typical) * TYPICAL_WEIGHT
                    };
                    self.quantile.record(elapsed);
                } else {
                    // Errors are answered fast; that is no reason to prefer the provider that gives them.
                    hot.latency
                        .observe_no_work(unit, &self.decay, now - cold.observed, elapsed, self.typical);
                    cold.observed = now;
                }
            }
            Verdict::Failure => {
                cold.consecutive = cold.consecutive.saturating_add(1);
                cold.window.record(now, false);
                let share = 1.0 - cold.window.counts(now).success_rate();
                hot.latency.penalise(unit, &self.decay, elapsed, share);
                cold.observed = now;
            }
            Verdict::Neutral => {
                // Shorter than is usual, and a cancellation says nothing.
                if fate == Fate::Cancelled && elapsed as i64 as f64 > self.typical {
                    cold.cut_short = cold.cut_short.saturating_add(1);
                    self.quantile.record_at_least(elapsed);
                }
                if fate != Fate::Cancelled {
                    hot.latency
                        .observe_no_work(unit, &self.decay, now - cold.observed, elapsed, self.typical);
                    cold.observed = now;
                } else if hot.latency.observe_at_least(unit, elapsed, cold.cut_short.max(1)) {
                    cold.observed = now;
                }
            }
        }
        if unmeasured {
            self.newcomer = Estimate::of(unit, self.typical * NEWCOMER_SHARE);
        }
        self.judge(now, slot, lease.probe, verdict);
        let hold = match fate.pushback() {
            Some(Pushback::After(wait)) => wait.min(self.config.health.max_hold),
            Some(Pushback::Stop) | None => Duration::ZERO,
        };
        let hold = match fate {
            Fate::Refused {
                reason: Refusal::Draining,
                ..
            } => hold.max(self.config.health.draining_hold),
            Fate::Refused {
                reason: Refusal::Overloaded,
                pushback: None,
            } => self.default_hold(now, slot),
            Fate::Ok
            | Fate::NotSent
            | Fate::Refused { .. }
            | Fate::Unknown(_)
            | Fate::Answered { .. }
            | Fate::Cancelled => hold,
        };
        if !hold.is_zero() {
            self.hold(now, slot, now.saturating_add(nanos(hold)));
            self.heed_cap(now);
        }
        Ok(())
    }

    /// The hold of an overloaded provider that names no time; it doubles while the overload lasts.
    ///
    /// Refusals during a hold are of earlier calls and do not count.
    fn default_hold(&mut self, now: Nanos, slot: u32) -> Duration {
        let cold = &mut self.cold[slot as usize];
        if cold.hold > now {
            return Duration::ZERO;
        }
        let doubled = OVERLOAD_HOLD.saturating_mul(1 << cold.refusals.min(16));
        cold.refusals = cold.refusals.saturating_add(1);
        doubled.min(MAX_OVERLOAD_HOLD).min(self.config.health.max_hold)
    }

    /// Takes a server's report of its own load: 0 is idle, 1 is full.
    ///
    /// It makes p2c picks costlier by 1 / (1 − load), as waiting grows in a queue, for
    /// [`HealthConfig::load_ttl`]. Unknown keys are ignored, numbers outside `0..=1` clamped.
    pub fn report_load(&mut self, now: Instant, key: &K, load: f64) {
        let now = self.clock.tick(now);
        let Some(slot) = self.find(key) else { return };
        let cold = &mut self.cold[slot as usize];
        cold.load = (load.clamp(0.0, 1.0) * 100.0) as u8;
        cold.load_at = (now / 1_000_000_000) as u32;
        self.tune(now, slot);
    }

    /// The next event, oldest first.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event<K>> {
        self.events.pop()
    }

    /// When [`Balancer::handle_timeout`] has something to do next. Later than the `now` last given to it.
    ///
    /// Observers need this: picks notice by themselves what is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.clock.instant(self.next_moment())
    }

    /// Advances time. Early or repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = self.clock.tick(now);
        self.advance(now);
        debug_assert!(self.next_moment() > now);
    }

    fn next_moment(&self) -> Nanos {
        self.next_due.min(self.next_tune).min(self.leases.due())
    }

    /// A snapshot as of the latest moment it was told of.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            providers: self.roster.len(),
            ready: self.roster.count(HEALTHY),
            open: self.roster.count(OPEN),
            ejected: self.ejected,
            suspected: self.roster.count(SUSPECTED),
            down: self.roster.count(DOWN),
            draining: self.roster.count(DRAINING),
            issued: self.counters.issued,
            reported: self.counters.reported,
            lost: self.counters.lost,
            panic_picks: self.counters.panic_picks,
            probes: self.counters.probes,
            ejections: self.counters.ejections,
            ejections_capped: self.counters.ejections_capped,
            events_lost: self.events.lost(),
            spending: self.budget.spending(self.clock.latest()),
            p95: self.quantile.compute(),
        }
    }

    /// Every provider in the caller's order, as of the latest moment it was told of.
    pub fn providers(&self) -> impl Iterator<Item = ProviderStats<'_, K>> {
        let now = self.clock.latest();
        let unit = self.decay.unit(now);
        self.list.iter().filter_map(move |slot| {
            let (hot, cold) = (&self.hot[*slot as usize], &self.cold[*slot as usize]);
            let latency = hot
                .latency
                .is_measured()
                .then(|| Duration::from_nanos(hot.latency.nanos(unit, self.typical) as u64));
            Some(ProviderStats {
                provider: cold.key.as_ref()?,
                state: match (cold.link, cold.circuit) {
                    (Link::Draining, _) => ProviderState::Draining,
                    (Link::Down, _) => ProviderState::Down,
                    (Link::Suspected, _) => ProviderState::Suspected,
                    (Link::Idle | Link::Up, Circuit::Open) => ProviderState::Ejected,
                    (Link::Idle | Link::Up, Circuit::HalfOpen) => ProviderState::HalfOpen,
                    (Link::Idle | Link::Up, Circuit::Probing) => ProviderState::Probing,
                    (Link::Idle | Link::Up, Circuit::Closed) if cold.hold == 0 => ProviderState::Ready,
                    (Link::Idle | Link::Up, Circuit::Closed) => ProviderState::Held,
                },
                link: cold.link,
                in_flight: hot.in_flight,
                latency,
                counts: cold.window.counts(now),
                consecutive_failures: u32::from(cold.consecutive),
                ejections: u32::from(cold.ejections),
                ramp: f64::from(cold.effective) / (f64::from(cold.weight) * f64::from(WEIGHT_UNIT)),
            })
        })
    }

    /// The observed 95th percentile of the latency of successes.
    pub(crate) fn p95(&mut self) -> Option<Duration> {
        self.quantile.p95()
    }

    /// Takes back the lease of a call's attempt.
    pub(crate) fn take_back(&mut self, now: Instant, lease: Lease, fate: Fate) {
        // Refused when the call was driven with two balancers. The one that issued it reclaims it at the deadline.
        let _refused = self.report(now, lease, fate);
    }

    /// Takes a retry from the budget, if there is one.
    pub(crate) fn take_retry(&mut self, now: Nanos) -> bool {
        let allowed = self.budget.try_retry(now);
        if allowed {
            self.budget_exhausted = false;
        } else if !self.budget_exhausted {
            self.budget_exhausted = true;
            self.events.push(Event::BudgetExhausted);
        }
        allowed
    }

    /// The slot of a handle, if it still lives the same life.
    #[inline]
    fn member(&self, handle: Handle) -> Option<u32> {
        (self.hot.get(handle.slot as usize)?.generation == handle.generation).then_some(handle.slot)
    }

    #[cfg(test)]
    pub(crate) fn current_epoch(&self, handle: Handle) -> u16 {
        self.member(handle).map_or(0, |slot| self.cold[slot as usize].epoch)
    }

    /// The link of a provider; `None` once it has left.
    pub(crate) fn link_of(&self, handle: Handle) -> Option<Link> {
        self.member(handle).map(|slot| self.cold[slot as usize].link)
    }

    /// Whether a provider is suspected or down.
    pub(crate) fn is_silent(&self, handle: Handle) -> bool {
        match self.link_of(handle) {
            Some(Link::Suspected | Link::Down) => true,
            Some(Link::Idle | Link::Up | Link::Draining) | None => false,
        }
    }

    /// Whether any provider is suspected or down.
    #[inline]
    pub(crate) fn any_silent(&self) -> bool {
        self.roster.count(SILENT) > 0
    }

    /// Whether at most half of the providers are suspected or down: so few are more likely dead than overloaded (L5).
    pub(crate) fn few_are_silent(&self) -> bool {
        self.roster.count(SILENT) * 2 <= self.roster.len()
    }

    /// The slots of these tiers.
    fn slots(&self, tiers: Tiers) -> impl Iterator<Item = u32> {
        let span = self.roster.span(tiers);
        (span.start..span.end).map(|position| self.roster.slot(position))
    }

    fn find(&self, key: &K) -> Option<u32> {
        self.index.find(identity::of(key), |slot| {
            self.cold[slot as usize].key.as_ref() == Some(key)
        })
    }
}
