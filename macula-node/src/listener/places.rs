//! Which connections to a port stay, and which give way to others.
//!
//! A connection has a place until it ends. When all places are taken, a newcomer takes one of the address that has most, without a request
//! if there is one. Where none has to give way, it takes the place of a connection without a request: of its own address, or of one that
//! has more. Connections that have never brought a request go first, and the oldest of equals. So clients that connect and say nothing
//! keep no one out, not even others of their own address.
//!
//! A core: no clock, no lock, no socket. The shell ends the connections that give way.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use macula_wire::{Admission, Holder, Network, Shares};

/// The connections to a port. `H` ends one.
#[derive(Debug)]
pub(super) struct Places<H> {
    shares: Shares<IpAddr>,
    /// By their numbers, the oldest first.
    places: BTreeMap<u64, Place<H>>,
    next: u64,
}

#[derive(Debug)]
struct Place<H> {
    holder: Holder<IpAddr>,
    /// Its requests that run.
    running: usize,
    /// Whether it has ever brought a request.
    asked: bool,
    /// When it came, or its last request ended.
    idle_since: Instant,
    handle: H,
}

impl<H> Place<H> {
    /// The first in this order gives way first.
    fn rank(&self) -> (bool, bool, Instant) {
        (self.running > 0, self.asked, self.idle_since)
    }
}

impl<H> Places<H> {
    pub(super) fn new(places: usize) -> Self {
        Self {
            shares: Shares::new(places as u64),
            places: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes a place for a connection from this address. Gives its number and those that give way to it; `None` when there is no place.
    pub(super) fn take(&mut self, now: Instant, from: IpAddr, handle: H) -> Option<(u64, Vec<H>)> {
        let from = from.to_canonical();
        let holder = Holder::new(Network::of(from), from);
        let mut displaced = Vec::new();
        self.next += 1;
        let number = self.next;
        loop {
            let gives_way = match self.shares.admit(&holder, 1, number) {
                Admission::Granted => break,
                Admission::Evict(largest) => self.first(|place| place.holder == largest),
                Admission::Refused => {
                    self.first(|place| place.running == 0 && self.shares.may_replace(&holder, &place.holder))
                }
            };
            displaced.extend(self.leave(gives_way?));
        }
        let place = Place {
            holder,
            running: 0,
            asked: false,
            idle_since: now,
            handle,
        };
        self.places.insert(number, place);
        Some((number, displaced))
    }

    /// The one of these that gives way first.
    fn first(&self, among: impl Fn(&Place<H>) -> bool) -> Option<u64> {
        let among = self.places.iter().filter(|(_, place)| among(place));
        among.min_by_key(|(_, place)| place.rank()).map(|(number, _)| *number)
    }

    /// A request of a connection begins.
    pub(super) fn begin(&mut self, number: u64) {
        if let Some(place) = self.places.get_mut(&number) {
            place.running += 1;
            place.asked = true;
        }
    }

    /// A request of a connection has ended, its answer included.
    pub(super) fn end(&mut self, now: Instant, number: u64) {
        if let Some(place) = self.places.get_mut(&number) {
            place.running -= 1;
            place.idle_since = now;
        }
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, number: u64) -> Option<H> {
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

    fn take(places: &mut Places<&'static str>, from: IpAddr, name: &'static str) -> Option<(u64, Vec<&'static str>)> {
        places.take(Instant::now(), from, name)
    }

    #[test]
    fn x8_a_newcomer_takes_a_place_of_the_address_that_has_most() {
        let mut places = Places::new(3);
        take(&mut places, ip(2, 1), "other");
        let (busy, _) = take(&mut places, ip(1, 1), "busy").unwrap();
        take(&mut places, ip(1, 1), "silent");
        places.begin(busy);
        let (_, displaced) = take(&mut places, ip(3, 1), "newcomer").unwrap();
        assert_eq!(displaced, ["silent"]);
        assert_eq!(take(&mut places, ip(3, 1), "second").unwrap().1, ["newcomer"]);
    }

    #[test]
    fn x8_requests_of_the_address_that_has_most_give_way_too() {
        let mut places = Places::new(2);
        for name in ["first", "second"] {
            let (number, _) = take(&mut places, ip(1, 1), name).unwrap();
            places.begin(number);
        }
        assert_eq!(take(&mut places, ip(1, 1), "third"), None);
        assert_eq!(take(&mut places, ip(2, 1), "newcomer").unwrap().1, ["first"]);
    }

    #[test]
    fn x8_a_connection_without_a_request_gives_way_to_one_of_its_own_address() {
        let mut places = Places::new(3);
        let (kept, _) = take(&mut places, ip(1, 1), "kept").unwrap();
        places.begin(kept);
        places.end(Instant::now(), kept);
        let (busy, _) = take(&mut places, ip(1, 1), "busy").unwrap();
        places.begin(busy);
        take(&mut places, ip(1, 1), "silent");
        let (newcomer, displaced) = take(&mut places, ip(1, 1), "newcomer").unwrap();
        assert_eq!(displaced, ["silent"]);
        places.begin(newcomer);
        let (last, displaced) = take(&mut places, ip(1, 1), "last").unwrap();
        assert_eq!(displaced, ["kept"]);
        places.begin(last);
        assert_eq!(take(&mut places, ip(1, 1), "late"), None);
        places.leave(busy);
        assert!(take(&mut places, ip(1, 1), "late").is_some());
    }

    proptest! {
        /// However many connections others hold, an address without any is let in at once.
        #[test]
        fn x8_an_address_without_a_connection_is_let_in_at_once(
            crowd in prop::collection::vec((0..3_u8, 0..4_u8, any::<bool>()), 20..100),
        ) {
            let mut places = Places::new(16);
            let now = Instant::now();
            for (network, host, asks) in crowd {
                if let Some((number, displaced)) = places.take(now, ip(network, host), ()) {
                    prop_assert!(displaced.len() <= 1);
                    if asks {
                        places.begin(number);
                    }
                }
                prop_assert!(places.places.len() <= 16);
                prop_assert_eq!(places.shares.used(), places.places.len() as u64);
            }
            prop_assert!(places.take(now, ip(9, 9), ()).is_some());
        }
    }
}
