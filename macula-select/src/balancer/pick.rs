//! A pick: narrow the set down to a region of equally usable providers, then let the strategy choose in it.
//!
//! In this order: a provider that waits for its probe, if the call can afford it; the healthy ones of the caller's
//! zone; the healthy ones elsewhere; and when no healthy one is left untried, the ejected ones (H3), the suspected ones
//! (L3), and those that are down (H5). Draining ones never.
//!
//! A healthy provider that is not connected gives way to one that is: the call takes the other, and the provider is
//! dialed behind it.

use std::hash::Hash;
use std::ops::Range;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::Balancer;
use super::lease::{Handle, Lease};
use super::roster::{DOWN, HEALTHY, LOCAL, OPEN, REACHABLE, REMOTE, SIDELINED, SUSPECTED, Span, Tier, Tiers, USABLE};
use crate::clock::{Nanos, nanos};
use crate::provider::Link;
use crate::strategy::Strategy;

/// Whether a pick prefers the caller's zone. Without one ([`LocalityConfig::zone`](crate::LocalityConfig::zone)) both
/// are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Locality {
    /// Stay in the zone while it has the capacity.
    #[default]
    Prefer,
    /// All zones alike.
    Ignore,
}

/// Whether a pick may be used to find out if an ejected provider works again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProbeConsent {
    /// It may: if it fails, another provider can be tried.
    #[default]
    Willing,
    /// Only if the provider has waited for a willing one for
    /// [`HealthConfig::probe_patience`](crate::HealthConfig::probe_patience).
    Reluctant,
}

/// What a pick is for.
#[derive(Debug, Clone, Copy)]
pub struct PickContext<'a, K> {
    /// How to choose; `None` is as the balancer is configured.
    pub strategy: Option<Strategy>,
    /// Providers that must not be chosen.
    pub exclude: &'a [K],
    /// The key of [`Strategy::Affinity`].
    pub affinity: Option<u64>,
    /// Whether to prefer the caller's zone.
    pub locality: Locality,
    /// Whether this may be a probe.
    pub probe: ProbeConsent,
    /// The longest that the attempt may take. A lease that is not reported by then counts as lost, and its provider no
    /// longer looks busy. [`DEFAULT_LEASE`] by default.
    pub timeout: Duration,
}

/// The longest that an attempt may take if its pick does not say.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(600);

impl<K> Default for PickContext<'_, K> {
    fn default() -> Self {
        Self {
            strategy: None,
            exclude: &[],
            affinity: None,
            locality: Locality::default(),
            probe: ProbeConsent::default(),
            timeout: DEFAULT_LEASE,
        }
    }
}

/// Why no provider was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PickError {
    /// The set is empty.
    #[error("no provider is known; look the service up again")]
    Empty,
    /// Every provider is excluded or going away.
    #[error("every provider was tried or is shutting down; look the service up again")]
    Exhausted,
}

/// [`PickContext`] without the exclusions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) strategy: Option<Strategy>,
    pub(crate) affinity: Option<u64>,
    pub(crate) locality: Locality,
    /// `None` is no probe as long as a healthy provider is left.
    pub(crate) probe: Option<ProbeConsent>,
    pub(crate) timeout: Duration,
}

/// How many providers of each tier are excluded from the current pick.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Excluded {
    /// In all tiers: most picks exclude none, and need not add up any.
    total: u32,
    tiers: [u32; Tier::COUNT],
}

impl Excluded {
    #[inline]
    fn within(self, (first, last): Tiers) -> u32 {
        if self.total == 0 {
            return 0;
        }
        self.tiers[first as usize..=last as usize].iter().sum()
    }
}

/// Candidates: a range of the roster, some of them excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    span: Span,
    pub(crate) excluded: u32,
}

impl Region {
    #[inline]
    pub(crate) fn len(self) -> u32 {
        self.span.len()
    }

    #[inline]
    pub(crate) fn start(self) -> u32 {
        self.span.start
    }

    #[inline]
    pub(crate) fn free(self) -> u32 {
        self.span.len() - self.excluded
    }

    #[inline]
    pub(crate) fn contains(self, position: u32) -> bool {
        self.span.contains(position)
    }

    pub(crate) fn span(self) -> Span {
        self.span
    }

    pub(crate) fn positions(self) -> Range<u32> {
        self.span.start..self.span.end
    }

    fn covers(self, other: Self) -> bool {
        self.span.start <= other.span.start && other.span.end <= self.span.end
    }

    pub(crate) fn without_one(self) -> Self {
        Self {
            excluded: self.excluded + 1,
            ..self
        }
    }
}

/// Draws that may hit an excluded provider before the free ones are counted instead.
const MAX_REDRAWS: u32 = 32;

impl<K: Eq + Hash + Clone> Balancer<K> {
    /// Chooses a provider.
    ///
    /// Never fails for reasons of health: when only ejected providers are left, one of them is chosen. The lease counts
    /// as a call in flight until it is given to [`Balancer::report`].
    ///
    /// # Errors
    ///
    /// [`PickError::Empty`] without providers, [`PickError::Exhausted`] if all of them are excluded or draining.
    // Inlined, what the caller leaves at its default costs nothing: 8 ns instead of 14.
    #[inline(always)]
    pub fn pick(&mut self, now: Instant, context: &PickContext<'_, K>) -> Result<Lease, PickError> {
        let PickContext {
            strategy,
            exclude,
            affinity,
            locality,
            probe,
            timeout,
        } = *context;
        let now = self.begin_pick(now);
        let excluded = if exclude.is_empty() {
            Excluded::default()
        } else {
            self.exclude_keys(exclude)
        };
        self.choose(
            now,
            Choice {
                strategy,
                affinity,
                locality,
                probe: Some(probe),
                timeout,
            },
            excluded,
        )
    }

    /// The first third of a pick: what is due by now, and a new mark for exclusions.
    #[inline]
    pub(crate) fn begin_pick(&mut self, now: Instant) -> Nanos {
        let now = self.clock.tick(now);
        self.dials.service_used(now);
        self.advance(now);
        self.next_mark();
        now
    }

    /// The second third: excludes a provider that was tried, also if it left and came back since.
    pub(crate) fn exclude_tried(&mut self, handle: Handle, key: &K, excluded: &mut Excluded) {
        if let Some(slot) = self.member(handle).or_else(|| self.find(key)) {
            self.exclude(slot, excluded);
        }
    }

    /// Whether a provider is left to choose.
    pub(crate) fn has_candidates(&self, excluded: Excluded) -> bool {
        self.is_left(USABLE, excluded)
    }

    /// Whether a provider is left that is healthy.
    pub(crate) fn has_ready(&self, excluded: Excluded) -> bool {
        self.is_left(HEALTHY, excluded)
    }

    /// Whether a provider is left that is neither suspected nor down.
    pub(crate) fn has_reachable(&self, excluded: Excluded) -> bool {
        self.is_left(REACHABLE, excluded)
    }

    /// Whether a healthy provider is connected, excluded or not.
    #[inline]
    pub(crate) fn any_open(&self) -> bool {
        self.roster.count(OPEN) > 0
    }

    /// Whether a healthy provider is left that is connected.
    pub(crate) fn has_open(&self, excluded: Excluded) -> bool {
        self.is_left(OPEN, excluded)
    }

    fn is_left(&self, tiers: Tiers, excluded: Excluded) -> bool {
        self.roster.count(tiers) > excluded.within(tiers)
    }

    fn exclude_keys(&mut self, keys: &[K]) -> Excluded {
        let mut excluded = Excluded::default();
        for key in keys {
            if let Some(slot) = self.find(key) {
                self.exclude(slot, &mut excluded);
            }
        }
        excluded
    }

    /// The last third.
    #[inline(always)]
    pub(crate) fn choose(&mut self, now: Nanos, choice: Choice, excluded: Excluded) -> Result<Lease, PickError> {
        if self.half_open > 0
            && let Some(consent) = choice.probe
            && let Some(lease) = self.probe(now, consent, choice.timeout)
        {
            return Ok(lease);
        }
        let mut region = self.region_of(LOCAL, excluded);
        if region.free() == 0 || self.roster.count(REMOTE) > 0 {
            region = self.wider_region(choice.locality, &excluded)?;
        }
        let healthy = self.roster.span(HEALTHY).contains(region.start());
        let mut slot = self
            .choose_in(now, &choice, region, healthy)
            .ok_or(PickError::Exhausted)?;
        let open = self.roster.span(OPEN);
        if open.len() == 0 {
            // Others are dialed beside it, and the first that answers serves.
            self.dials.not_after(now);
        } else if !open.contains(self.hot[slot as usize].position) {
            slot = self.prefer_open(now, &choice, region, &excluded, slot);
        }
        if healthy {
            let connected = open.contains(self.hot[slot as usize].position);
            return Ok(self.grant(now, slot, 0, connected, choice.timeout));
        }
        let epoch = self.panic_pick(now, slot);
        let connected = self.is_connected(slot);
        Ok(self.grant(now, slot, epoch, connected, choice.timeout))
    }

    #[inline(always)]
    fn choose_in(&mut self, now: Nanos, choice: &Choice, region: Region, healthy: bool) -> Option<u32> {
        match choice.strategy.unwrap_or(self.config.strategy) {
            Strategy::First => self.first(region),
            Strategy::RoundRobin => self.take_turn(region),
            Strategy::Affinity if choice.affinity.is_some() => {
                choice.affinity.and_then(|key| self.by_affinity(region, key))
            }
            Strategy::Random => self.draw(region),
            // Loads and weights say little about providers that are all put aside.
            Strategy::WeightedRoundRobin
            | Strategy::WeightedRandom
            | Strategy::PeakEwma
            | Strategy::LeastLoaded
            | Strategy::Affinity
                if !healthy =>
            {
                self.draw(region)
            }
            Strategy::WeightedRoundRobin => self.take_weighted_turn(region),
            Strategy::WeightedRandom => self.draw_weighted(region),
            Strategy::PeakEwma | Strategy::Affinity => self.peak_ewma(now, region),
            Strategy::LeastLoaded => self.least_loaded(region),
        }
    }

    /// Replaces a provider without a connection by a connected one, if any. The dial runs behind the call.
    #[inline(never)]
    fn prefer_open(&mut self, now: Nanos, choice: &Choice, region: Region, excluded: &Excluded, slot: u32) -> u32 {
        let open = self.region_of(OPEN, *excluded);
        if open.free() == 0 {
            return slot;
        }
        self.want(now, slot);
        // In the same zone if possible.
        let here = [
            OPEN,
            (Tier::OpenLocal, Tier::OpenLocal),
            (Tier::OpenRemote, Tier::OpenRemote),
        ]
        .map(|tiers| self.region_of(tiers, *excluded))
        .into_iter()
        .find(|part| part.free() > 0 && region.covers(*part));
        let other = self.choose_in(now, choice, here.unwrap_or(open), true);
        other.unwrap_or(slot)
    }

    /// Where to choose if not simply among all the healthy ones.
    #[inline(never)]
    fn wider_region(&mut self, locality: Locality, excluded: &Excluded) -> Result<Region, PickError> {
        let excluded = *excluded;
        let healthy = self.region_of(HEALTHY, excluded);
        if healthy.free() > 0 {
            let (local, remote) = (self.region_of(LOCAL, excluded), self.region_of(REMOTE, excluded));
            if locality == Locality::Ignore || local.free() == 0 || remote.free() == 0 {
                return Ok(healthy);
            }
            return Ok(if self.spills(local) { remote } else { local });
        }
        for tiers in [SIDELINED, SUSPECTED, DOWN] {
            let region = self.region_of(tiers, excluded);
            if region.free() > 0 {
                return Ok(region);
            }
        }
        Err(if self.list.is_empty() {
            PickError::Empty
        } else {
            PickError::Exhausted
        })
    }

    #[inline]
    fn region_of(&self, tiers: Tiers, excluded: Excluded) -> Region {
        Region {
            span: self.roster.span(tiers),
            excluded: excluded.within(tiers),
        }
    }

    /// Whether a pick leaves the caller's zone though it need not: too many of its providers are unhealthy, or they are
    /// all busy.
    fn spills(&mut self, local: Region) -> bool {
        let config = self.config.locality;
        if self.local_in_flight / local.len() >= config.spill_above.max(1) {
            return true;
        }
        let capacity = f64::from(local.len()) / f64::from(self.local.max(1)) * config.overprovision;
        capacity < 1.0 && self.rng.unit() >= capacity
    }

    /// Leases the provider that waits for a probe, if this pick may be the probe.
    #[cold]
    fn probe(&mut self, now: Nanos, consent: ProbeConsent, timeout: Duration) -> Option<Lease> {
        let slot = self.due_for_probe(now, consent == ProbeConsent::Willing)?;
        let epoch = self.start_probe(now, slot);
        Some(self.grant(now, slot, epoch, self.is_connected(slot), timeout))
    }

    /// Counts a pick that disregards health. If its provider was due for a probe, this is the probe.
    #[cold]
    fn panic_pick(&mut self, now: Nanos, slot: u32) -> u16 {
        self.counters.panic_picks += 1;
        let cold = &self.cold[slot as usize];
        if cold.circuit == super::Circuit::HalfOpen {
            self.start_probe(now, slot)
        } else {
            0
        }
    }

    fn is_connected(&self, slot: u32) -> bool {
        match self.cold[slot as usize].link {
            Link::Up | Link::Suspected => true,
            Link::Idle | Link::Down | Link::Draining => false,
        }
    }

    #[inline]
    fn grant(&mut self, now: Nanos, slot: u32, probe: u16, connected: bool, timeout: Duration) -> Lease {
        self.counters.issued += 1;
        let hot = &mut self.hot[slot as usize];
        hot.in_flight += 1;
        if self.config.locality.zone.is_some() && !self.cold[slot as usize].remote {
            self.local_in_flight += 1;
        }
        let handle = Handle {
            slot,
            generation: hot.generation,
        };
        Lease {
            connected,
            issuer: self.id,
            ticket: self.leases.grant(handle, now.saturating_add(nanos(timeout))),
            handle,
            probe,
            started: now,
        }
    }

    fn first(&self, region: Region) -> Option<u32> {
        self.list.iter().copied().find(|slot| {
            let hot = &self.hot[*slot as usize];
            hot.mark != self.mark && region.contains(hot.position)
        })
    }

    /// One candidate, all equally likely.
    #[inline]
    pub(super) fn draw(&mut self, region: Region) -> Option<u32> {
        if region.excluded > 0 {
            return self.draw_unmarked(region);
        }
        (region.len() > 0).then(|| self.roster.slot(region.start() + self.rng.below(region.len())))
    }

    #[inline(never)]
    fn draw_unmarked(&mut self, region: Region) -> Option<u32> {
        if region.free() >= region.excluded {
            for _ in 0..MAX_REDRAWS {
                let slot = self.roster.slot(region.start() + self.rng.below(region.len()));
                if self.hot[slot as usize].mark != self.mark {
                    return Some(slot);
                }
            }
        }
        let nth = self.rng.below(region.free()) as usize;
        self.candidates(region).nth(nth)
    }

    /// One candidate in proportion to its weight.
    #[inline(never)]
    pub(super) fn draw_weighted(&mut self, region: Region) -> Option<u32> {
        for _ in 0..MAX_REDRAWS {
            let slot = self.weights.locate(self.rng.below_u64(self.weights.total())) as u32;
            let hot = self.hot.get(slot as usize)?;
            if hot.mark != self.mark && region.contains(hot.position) {
                return Some(slot);
            }
        }
        let weight = |balancer: &Self, slot: u32| u64::from(balancer.cold[slot as usize].effective);
        let total = self.candidates(region).map(|slot| weight(self, slot)).sum();
        let mut point = self.rng.below_u64(total);
        self.candidates(region).find(|slot| {
            let weight = weight(self, *slot);
            let here = point < weight;
            point = point.saturating_sub(weight);
            here
        })
    }

    pub(super) fn candidates(&self, region: Region) -> impl Iterator<Item = u32> {
        region
            .positions()
            .map(|position| self.roster.slot(position))
            .filter(|slot| self.hot[*slot as usize].mark != self.mark)
    }

    fn exclude(&mut self, slot: u32, excluded: &mut Excluded) {
        let hot = &mut self.hot[slot as usize];
        if hot.mark != self.mark {
            hot.mark = self.mark;
            excluded.total += 1;
            excluded.tiers[self.roster.tier(hot.position) as usize] += 1;
        }
    }

    /// A number that no member carries.
    #[inline]
    pub(super) fn next_mark(&mut self) {
        self.mark = self.mark.wrapping_add(1);
        if self.mark == 0 {
            self.forget_marks();
        }
    }

    #[cold]
    fn forget_marks(&mut self) {
        self.hot.iter_mut().for_each(|hot| hot.mark = 0);
        self.mark = 1;
    }
}
