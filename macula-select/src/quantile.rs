//! The observed 95th percentile of a service's latency, for hedging (F10).
//!
//! A histogram with sixteen cells to the octave, as HdrHistogram has them: every value is known to within 1/16 of itself. All counts are halved when 4 096 samples are in, so it follows changes.

use std::time::Duration;

use crate::clock::{Nanos, nanos};

const CELLS_PER_OCTAVE_BITS: u32 = 4;
/// 2^10 ns (about a microsecond) to 2^42 ns (73 minutes).
const FIRST_OCTAVE: u32 = 10;
const OCTAVES: usize = 32;
const CELLS: usize = OCTAVES << CELLS_PER_OCTAVE_BITS;
const HALVE_AT: u32 = 4_096;
/// How stale the cached percentile may be, in samples.
const REFRESH_EVERY: u32 = 64;
/// Fewer samples than this make no percentile.
const MIN_SAMPLES: u32 = 20;

#[derive(Debug, Clone)]
pub(crate) struct Quantile {
    cells: Box<[u16; CELLS]>,
    total: u32,
    since_refresh: u32,
    cached: Option<Duration>,
}

impl Quantile {
    pub(crate) fn new() -> Self {
        Self {
            cells: Box::new([0; CELLS]),
            total: 0,
            since_refresh: 0,
            cached: None,
        }
    }

    #[inline]
    pub(crate) fn record(&mut self, latency: Nanos) {
        self.cells[cell(latency)] += 1;
        self.total += 1;
        self.since_refresh += 1;
        if self.total == HALVE_AT {
            self.halve();
        }
    }

    /// A sample that was cut short. It counts if it is beyond the percentile already, wherever it would have ended;
    /// without those, hedging would hide the slow ones from the percentile that it goes by, and hedge ever more.
    pub(crate) fn record_at_least(&mut self, latency: Nanos) {
        if self.cached.is_some_and(|p95| nanos(p95) <= latency) {
            self.record(latency);
        }
    }

    /// The 95th percentile, rounded up to the edge of its cell; `None` until 20 samples are in.
    ///
    /// Up, so that somewhat less than a twentieth of the calls are hedged: at exactly the budget, chance often exhausts it,
    /// and the calls that then cannot be hedged are the slowest.
    pub(crate) fn p95(&mut self) -> Option<Duration> {
        if self.since_refresh >= REFRESH_EVERY || self.cached.is_none() {
            self.cached = self.compute();
            self.since_refresh = 0;
        }
        self.cached
    }

    /// The same without refreshing what [`Quantile::p95`] remembers.
    pub(crate) fn compute(&self) -> Option<Duration> {
        if self.total < MIN_SAMPLES {
            return None;
        }
        let rank = (self.total * 95).div_ceil(100);
        let mut seen = 0;
        for (index, count) in self.cells.iter().enumerate() {
            seen += u32::from(*count);
            if seen >= rank {
                return Some(Duration::from_nanos(upper_edge(index)));
            }
        }
        None
    }

    fn halve(&mut self) {
        self.total = 0;
        for count in self.cells.iter_mut() {
            *count /= 2;
            self.total += u32::from(*count);
        }
    }
}

#[inline]
fn cell(latency: Nanos) -> usize {
    let latency = latency.max(1 << FIRST_OCTAVE);
    let octave = latency.ilog2();
    let within = (latency >> (octave - CELLS_PER_OCTAVE_BITS)) as usize & ((1 << CELLS_PER_OCTAVE_BITS) - 1);
    (((octave - FIRST_OCTAVE) as usize) << CELLS_PER_OCTAVE_BITS | within).min(CELLS - 1)
}

fn upper_edge(cell: usize) -> Nanos {
    let octave = (cell >> CELLS_PER_OCTAVE_BITS) as u32 + FIRST_OCTAVE;
    let within = (cell & ((1 << CELLS_PER_OCTAVE_BITS) - 1)) as u64;
    ((1 << CELLS_PER_OCTAVE_BITS) + 1 + within) << (octave - CELLS_PER_OCTAVE_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn cells_hold_what_their_edges_say() {
        for shift in FIRST_OCTAVE..FIRST_OCTAVE + OCTAVES as u32 {
            for latency in [1u64 << shift, (1 << shift) + 1, (1 << shift) * 3 / 2, (2 << shift) - 1] {
                let edge = upper_edge(cell(latency));
                assert!(
                    edge > latency && edge - latency <= latency / 16 + 1,
                    "{latency} in a cell up to {edge}"
                );
            }
        }
        assert_eq!(cell(0), 0);
        assert_eq!(cell(u64::MAX), CELLS - 1);
    }

    #[test]
    fn f10_the_95th_percentile_is_found_and_followed() {
        let mut quantile = Quantile::new();
        let mut rng = Rng::new(3);
        assert_eq!(quantile.p95(), None);
        for scale in [1.0e6, 1.0e8, 1.0e6] {
            for _ in 0..40_000 {
                quantile.record((rng.unit() * scale) as u64);
            }
            let p95 = quantile.p95().unwrap().as_nanos() as f64 / scale;
            assert!((0.93..1.08).contains(&p95), "{p95}");
        }
    }

    /// Hedging cancels whatever is slower than the percentile; the percentile must not creep down for that.
    #[test]
    fn f10_what_was_cut_short_counts_if_it_was_slow_already() {
        let mut quantile = Quantile::new();
        for latency in 1..=100 {
            quantile.record(latency * 1_000_000);
        }
        let before = nanos(quantile.p95().unwrap());
        for round in 0..50 {
            for latency in 1..=100u64 {
                let latency = latency * 1_000_000 + round;
                if latency > before {
                    quantile.record_at_least(before + 1_000_000);
                } else {
                    quantile.record(latency);
                }
                quantile.record_at_least(1_000);
            }
        }
        let after = nanos(quantile.p95().unwrap());
        assert_eq!(after, before);
    }
}
