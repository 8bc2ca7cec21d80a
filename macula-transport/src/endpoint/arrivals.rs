//! Which handshakes of peers go on, and which give way to others.
//!
//! A handshake has a place until its peer has introduced itself. When all places are taken, a newcomer takes the oldest place of the
//! address that has most of them. A handshake that takes long also gives way to an address that has fewer, and to its own. So peers that
//! never introduce themselves keep others out for no longer than [`PATIENCE`].
//!
//! A peer without a place is not answered: QUIC sends its first packet again, several times within a dial's time (RFC 9002, section
//! 6.2), and so a crowd that comes at once is let in one after another.
//!
//! A core: no clock, no lock, no socket. The shell ends the handshakes that give way.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use macula_wire::{Admission, Holder, Network, Shares};

/// A handshake that is older than this gives way to an address that has fewer. A handshake takes two round trips, and the time in which
/// the peers compute.
const PATIENCE: Duration = Duration::from_secs(1);

/// The handshakes under way. `H` ends one.
#[derive(Debug)]
pub(crate) struct Arrivals<H> {
    shares: Shares<IpAddr>,
    /// By their numbers, the oldest first.
    places: BTreeMap<u64, Arrival<H>>,
    next: u64,
}

#[derive(Debug)]
struct Arrival<H> {
    holder: Holder<IpAddr>,
    since: Instant,
    handle: H,
}

impl<H> Arrivals<H> {
    pub(crate) fn new(places: usize) -> Self {
        Self {
            shares: Shares::new(places as u64),
            places: BTreeMap::new(),
            next: 0,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Begins a handshake with a peer at this address, and gives those that give way to it; `None` when there is no place yet.
    pub(crate) fn begin(&mut self, now: Instant, from: IpAddr, begin: impl FnOnce(u64) -> H) -> Option<Vec<H>> {
        let from = from.to_canonical();
        let holder = Holder::new(Network::of(from), from);
        let mut displaced = Vec::new();
        self.next += 1;
        let number = self.next;
        loop {
            let gives_way = match self.shares.admit(&holder, 1, number) {
                Admission::Granted => break,
                Admission::Evict(largest) => self.places.iter().find(|(_, place)| place.holder == largest),
                Admission::Refused => self
                    .places
                    .iter()
                    .take_while(|(_, place)| now.saturating_duration_since(place.since) >= PATIENCE)
                    .find(|(_, place)| self.shares.may_replace(&holder, &place.holder)),
            };
            let (&oldest, _) = gives_way?;
            displaced.extend(self.end(oldest));
        }
        let place = Arrival {
            holder,
            since: now,
            handle: begin(number),
        };
        self.places.insert(number, place);
        Some(displaced)
    }

    /// A handshake has ended.
    pub(crate) fn end(&mut self, number: u64) -> Option<H> {
        let place = self.places.remove(&number)?;
        self.shares.release(&place.holder, 1);
        Some(place.handle)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(network: u8, host: u8) -> IpAddr {
        [10, 0, network, host].into()
    }

    #[test]
    fn x8_a_newcomer_takes_the_oldest_place_of_the_address_that_has_most() {
        let mut arrivals = Arrivals::new(4);
        let now = Instant::now();
        for (network, host) in [(2, 1), (1, 1), (1, 2), (1, 1)] {
            arrivals.begin(now, ip(network, host), |number| number).unwrap();
        }
        let displaced = arrivals.begin(now, ip(3, 1), |number| number).unwrap();
        assert_eq!(displaced, [2], "the first of the address with two");
        assert_eq!(arrivals.len(), 4);
        assert!(arrivals.begin(now, ip(1, 1), |number| number).is_none());
    }

    #[test]
    fn y16_a_crowd_from_one_address_gets_places_as_they_become_free() {
        let mut arrivals = Arrivals::new(2);
        let now = Instant::now();
        arrivals.begin(now, ip(1, 1), |number| number).unwrap();
        arrivals.begin(now, ip(1, 1), |number| number).unwrap();
        assert!(arrivals.begin(now, ip(1, 1), |number| number).is_none());
        assert_eq!(arrivals.end(1), Some(1));
        assert!(arrivals.begin(now, ip(1, 1), |number| number).is_some());
    }

    #[test]
    fn x8_a_handshake_that_does_not_end_gives_way_to_a_newcomer_of_its_own_address() {
        let mut arrivals = Arrivals::new(2);
        let now = Instant::now();
        for _ in 0..2 {
            arrivals.begin(now, ip(1, 1), |number| number).unwrap();
        }
        assert!(arrivals.begin(now + PATIENCE / 2, ip(1, 1), |number| number).is_none());
        let displaced = arrivals.begin(now + PATIENCE, ip(1, 1), |number| number).unwrap();
        assert_eq!(displaced, [1]);
    }

    #[test]
    fn x8_the_network_with_most_handshakes_takes_no_place_of_others_however_long_they_take() {
        let mut arrivals = Arrivals::new(4);
        let now = Instant::now();
        for (network, host) in [(2, 1), (1, 1), (1, 2), (1, 3)] {
            arrivals.begin(now, ip(network, host), |number| number).unwrap();
        }
        let later = now + PATIENCE;
        let displaced = arrivals.begin(later, ip(1, 4), |number| number).unwrap();
        assert_eq!(displaced, [2], "a place of its own network");
        assert!(arrivals.begin(later + PATIENCE, ip(3, 1), |number| number).is_some());
        assert!(arrivals.end(1).is_some(), "the other network keeps its place");
    }

    proptest! {
        /// However many silent handshakes others begin, an address without any is let in at once.
        #[test]
        fn x8_an_address_without_a_handshake_is_let_in_at_once(
            crowd in prop::collection::vec((0..3_u8, 0..4_u8), 20..100),
        ) {
            let mut arrivals = Arrivals::new(16);
            let now = Instant::now();
            for (network, host) in crowd {
                let displaced = arrivals.begin(now, ip(network, host), |number| number);
                prop_assert!(displaced.is_none_or(|displaced| displaced.len() <= 1));
                prop_assert!(arrivals.len() <= 16);
                prop_assert_eq!(arrivals.shares.used(), arrivals.len() as u64);
            }
            prop_assert!(arrivals.begin(now, ip(9, 9), |number| number).is_some());
        }
    }
}
