//! The parts of the key space whose nodes are all known from recent lookups.
//!
//! A lookup that ends with k answers at distances up to `d` has met every node within `d` of its target. So it knows the whole
//! subtree that shares one bit more with the target than the farthest of them. With fewer than k answers it knows all nodes.
//! Where enough neighbouring subtrees are known, the k closest of any key in them follow without a lookup.
//!
//! Knowledge ages as nodes come and go: it is forgotten after [`MAX_AGE`], or when it has grown past [`MAX_NODES`].

use std::collections::BTreeMap;

use crate::{Contact, Distance, K, Point, clock::Tick, point::BITS};

/// How long the nodes that a lookup met count as known, in nanoseconds.
const MAX_AGE: Tick = 30_000_000_000;
/// The most nodes remembered.
const MAX_NODES: usize = 1024;
/// The most points that are named to be looked up at once.
const MAX_GAPS: usize = 4;
/// How often a region is halved towards the key: to a 256th.
const REGION_DEPTH: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Coverage {
    nodes: BTreeMap<Point, Contact>,
    /// Disjoint intervals, first to last point.
    known: BTreeMap<Point, Point>,
    since: Tick,
}

impl Coverage {
    /// Takes the nodes that a lookup for `target` met, closest first.
    pub(super) fn add<'a>(&mut self, tick: Tick, target: &Point, met: impl Iterator<Item = &'a Contact>) {
        if self.nodes.len() > MAX_NODES || tick.saturating_sub(self.since) > MAX_AGE {
            *self = Self {
                since: tick,
                ..Self::default()
            };
        }
        let mut kth = None;
        for (at, contact) in met.enumerate() {
            let point = Point::from(contact.node_id());
            if at == K - 1 {
                kth = Some(point.distance(target));
            }
            self.nodes.insert(point, contact.clone());
        }
        let bits = kth.map_or(0, |kth: Distance| kth.shared_bits() + 1);
        let (mut first, mut last) = (target.with_tail(bits, false), target.with_tail(bits, true));
        // Join it with the intervals that it overlaps or touches.
        while let Some((&start, &end)) = self.known.range(..=last.successor().unwrap_or(last)).next_back()
            && end.successor().is_none_or(|next| next >= first)
        {
            (first, last) = (first.min(start), last.max(end));
            self.known.remove(&start);
        }
        self.known.insert(first, last);
    }

    /// Whether every node of the subtree that shares `bits` bits with `point` is known.
    pub(super) fn knows(&self, tick: Tick, point: &Point, bits: usize) -> bool {
        let (first, last) = (point.with_tail(bits, false), point.with_tail(bits, true));
        tick.saturating_sub(self.since) <= MAX_AGE
            && self
                .known
                .range(..=first)
                .next_back()
                .is_some_and(|(_, &end)| end >= last)
    }

    /// The known nodes by their distance to `key`.
    fn by_distance(&self, key: &Point) -> Vec<(Distance, &Contact)> {
        let mut nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(point, contact)| (point.distance(key), contact))
            .collect();
        nodes.sort_unstable_by_key(|(distance, _)| *distance);
        nodes
    }

    /// The k closest of the known nodes, and all within `region`, closest first.
    pub(super) fn best(&self, key: &Point, region: Option<Distance>) -> Vec<Contact> {
        let within = |distance| region.is_some_and(|region| distance <= region);
        let nodes = self.by_distance(key).into_iter().enumerate();
        let closest = nodes.filter(|(at, (distance, _))| *at < K || within(*distance));
        closest.map(|(_, (_, contact))| contact.clone()).collect()
    }

    /// The k closest nodes to `key`, and all within `region`. When they are not known, the points to look up first: at most
    /// [`MAX_GAPS`], the point of the largest unknown part first.
    ///
    /// Of a region only the first [`REGION_DEPTH`] halvings towards the key are asked for. The rest is so small a part of it
    /// that an honest node is hardly in it, and may be so full of ids made for the purpose that asking has no end.
    pub(super) fn closest(
        &self,
        tick: Tick,
        key: &Point,
        region: Option<Distance>,
    ) -> Result<Vec<Contact>, Vec<Point>> {
        let nodes = self.by_distance(key);
        let kth = nodes.get(K - 1).map(|(distance, _)| *distance);
        // The smallest subtree around the key with k nodes and the region in it.
        let bits = kth.map_or(0, |kth| kth.max(region.unwrap_or(kth)).shared_bits());
        if self.knows(tick, key, bits) {
            return Ok(self.best(key, region));
        }
        // From the largest half that branches off on the way to the key, down to the key itself.
        let depth = if region.is_some() { REGION_DEPTH } else { BITS };
        let gaps: Vec<_> = (bits..BITS)
            .take(depth)
            .take_while(|&bit| !self.knows(tick, key, bit))
            .filter_map(|bit| self.gap_within(tick, &key.diverging_at(bit, key.words()), bit + 1))
            .take(MAX_GAPS)
            .collect();
        match (gaps.is_empty(), region) {
            (true, Some(_)) => Ok(self.best(key, region)),
            (true, None) => Err(vec![*key]),
            (false, _) => Err(gaps),
        }
    }

    /// A point that is not known in the subtree that shares `bits` bits with `point`: that point itself if possible.
    fn gap_within(&self, tick: Tick, point: &Point, bits: usize) -> Option<Point> {
        if self.knows(tick, point, bits) {
            return None;
        }
        if !self.knows(tick, point, BITS) {
            return Some(*point);
        }
        let first = point.with_tail(bits, false);
        match self.known.range(..=first).next_back() {
            Some((_, &end)) if end >= first => end.successor(),
            _ => Some(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use macula_wire::NodeId;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// After any lookups the nodes named as the closest are the closest, and looking up the gaps leads to them.
        #[test]
        fn the_closest_are_exact_and_gaps_lead_to_them(
            ids in prop::collection::btree_set(any::<[u8; 32]>(), 0..200),
            crowd in prop::collection::vec(any::<u8>(), 0..60),
            keys in prop::collection::vec(any::<[u8; 32]>(), 1..8),
            region in prop::option::of(0.01..0.3_f64),
        ) {
            let mut ids: Vec<_> = ids.into_iter().collect();
            // Ids that share all but the last byte with the first key.
            ids.extend(crowd.iter().map(|&last| { let mut id = keys[0]; id[31] = last; id }));
            let contacts: Vec<_> = ids.iter().map(|id| Contact::new(NodeId::from_bytes(*id), [])).collect();
            let lookup = |target: &Point, count: usize, region: Option<Distance>| -> Vec<Contact> {
                let mut all = contacts.clone();
                all.sort_by_key(|c| Point::from(c.node_id()).distance(target));
                all.dedup_by(|a, b| a.node_id() == b.node_id());
                let within = |c: &Contact| region.is_some_and(|r| Point::from(c.node_id()).distance(target) <= r);
                all.into_iter().enumerate().filter(|(at, c)| *at < count || within(c)).map(|(_, c)| c).collect()
            };
            let mut coverage = Coverage::default();
            for key in &keys {
                let key = Point::from_bytes(key);
                let region = region.map(Distance::from_fraction);
                let mut lookups = 0;
                let closest = loop {
                    match coverage.closest(0, &key, region) {
                        Ok(closest) => break closest,
                        Err(gaps) => {
                            prop_assert!((1..=MAX_GAPS).contains(&gaps.len()));
                            for gap in gaps {
                                coverage.add(0, &gap, lookup(&gap, K, None).iter());
                            }
                        }
                    }
                    lookups += 1;
                    prop_assert!(lookups < 300, "no end");
                };
                let expected = lookup(&key, K, region);
                if region.is_none() {
                    prop_assert_eq!(closest, expected);
                } else {
                    // All but the innermost part of the region.
                    let innermost = |c: &Contact| {
                        let bits = region.unwrap_or(Distance::MAX).shared_bits() + REGION_DEPTH;
                        Point::from(c.node_id()).distance(&key).shared_bits() >= bits
                    };
                    let missing = expected.iter().filter(|c| !closest.contains(c) && !innermost(c)).count();
                    prop_assert_eq!(missing, 0);
                }
            }
        }
    }

    #[test]
    fn knowledge_is_forgotten_in_time() {
        let mut coverage = Coverage::default();
        coverage.add(5, &Point::MIN, [].iter());
        assert!(coverage.closest(5, &Point::MIN, None).is_ok());
        assert!(coverage.closest(6 + MAX_AGE, &Point::MIN, None).is_err());
    }
}
