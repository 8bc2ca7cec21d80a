//! How large the network is, from how densely nodes lie around random points.
//!
//! In a network of n nodes with random ids the i-th closest to any point is at about i / (n + 1) of the key space. A least
//! squares fit of that line through the k closest of a lookup gives one estimate of 1 / (n + 1); the mean over lookups, newer
//! ones weighing more, gives the one used (the method of mainline and of go-libp2p-kad-dht's network size estimator).
//!
//! The estimate tells a crowd from a neighbourhood: ids ground to lie next to one key make its neighbourhood far denser than others.

use crate::{K, point::Distance};

/// How much the newest estimate weighs, once there are enough.
const WEIGHT: f64 = 0.1;
/// The k closest of a key are a crowd when they lie within this share of the region that k nodes take up on average. By
/// chance that happens to one key in 4000: the count in a region is Poisson distributed.
const CROWDED: f64 = 0.4;

/// The density of the network.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SizeEstimate {
    /// The mean distance from one node to the next, as a share of the key space.
    spacing: f64,
    samples: u32,
}

impl SizeEstimate {
    /// Takes the distances of the k closest nodes to a point, ascending. Fewer than k say nothing: that was all there are.
    pub(crate) fn observe(&mut self, distances: impl Iterator<Item = Distance>) {
        let (mut count, mut product, mut squares) = (0, 0.0, 0.0);
        for (rank, distance) in (1..=K).zip(distances) {
            let rank = rank as f64;
            product += rank * distance.fraction();
            squares += rank * rank;
            count += 1;
        }
        if count < K {
            return;
        }
        let spacing = product / squares;
        self.samples = self.samples.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(self.samples));
        self.spacing += (spacing - self.spacing) * weight;
    }

    /// The number of nodes; `None` when it is not known.
    pub(crate) fn nodes(&self) -> Option<f64> {
        (self.samples > 0 && self.spacing > 0.0).then(|| (1.0 / self.spacing - 1.0).max(1.0))
    }

    /// The region around any key that holds `times` k nodes on average.
    pub(crate) fn region(&self, times: f64) -> Option<Distance> {
        self.nodes()
            .map(|nodes| Distance::from_fraction(times * K as f64 / nodes))
    }

    /// Whether the k closest to a key, the farthest of them at `kth`, lie closer than chance would have it.
    pub(crate) fn is_crowded(&self, kth: Distance) -> bool {
        // A few samples of a small network are too coarse to call a neighbourhood a crowd.
        self.samples >= 8 && self.region(CROWDED).is_some_and(|region| kth < region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Point, rng::Rng};

    fn distances(rng: &mut Rng, nodes: usize) -> Vec<Distance> {
        let points: Vec<_> = (0..nodes).map(|_| Point::MIN.diverging_at(0, rng.words())).collect();
        let target = Point::MIN.diverging_at(0, rng.words());
        let mut distances: Vec<_> = points.iter().map(|point| point.distance(&target)).collect();
        distances.sort_unstable();
        // The first bit of every one is set, which halves the space they lie in.
        distances
    }

    #[test]
    fn the_estimate_is_within_a_tenth_after_fifty_lookups() {
        let mut rng = Rng::new(1);
        let mut size = SizeEstimate::default();
        for _ in 0..50 {
            size.observe(distances(&mut rng, 1000).into_iter());
        }
        // Half the key space is empty here, so that lookups see twice the density.
        let nodes = size.nodes().unwrap();
        assert!((1800.0..2200.0).contains(&nodes), "{nodes}");
    }

    #[test]
    fn a_crowd_is_told_from_a_neighbourhood() {
        let mut rng = Rng::new(2);
        let mut size = SizeEstimate::default();
        for _ in 0..50 {
            size.observe(distances(&mut rng, 2000).into_iter());
        }
        let crowded = (0..500)
            .filter(|_| size.is_crowded(distances(&mut rng, 2000)[K - 1]))
            .count();
        assert!(crowded <= 2, "{crowded} of 500 honest neighbourhoods");
        assert!(size.is_crowded(distances(&mut rng, 16_000)[K - 1]));
    }

    #[test]
    fn fewer_than_k_say_nothing() {
        let mut size = SizeEstimate::default();
        size.observe(distances(&mut Rng::new(3), 19).into_iter());
        assert!(size.nodes().is_none() && size.region(1.0).is_none());
    }
}
