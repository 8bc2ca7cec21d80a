//! The laws of fair shares, and a reference model that walks through all holders.

use std::collections::BTreeMap;

use macula_wire::{Admission, Holder, Network, Shares};
use proptest::prelude::*;

type Peer = Holder<u8>;

/// The rules of `Shares` without any order: every question is a walk through all holders.
#[derive(Default)]
struct Model {
    capacity: u64,
    /// The amount of each holder.
    held: BTreeMap<Peer, u64>,
}

impl Model {
    fn holds(&self, holder: &Peer) -> u64 {
        self.held.get(holder).copied().unwrap_or(0)
    }

    fn network_holds(&self, network: Network) -> u64 {
        self.held
            .iter()
            .filter(|(h, _)| h.network == network)
            .map(|(_, n)| n)
            .sum()
    }

    fn used(&self) -> u64 {
        self.held.values().sum()
    }

    /// The most that any network holds, the newcomer's left out.
    fn largest_network(&self, newcomer: &Peer) -> u64 {
        let others = self.held.keys().filter(|h| h.network != newcomer.network);
        others.map(|h| self.network_holds(h.network)).max().unwrap_or(0)
    }

    /// The most that any other peer of the newcomer's network holds.
    fn largest_neighbour(&self, newcomer: &Peer) -> u64 {
        let neighbours = self
            .held
            .iter()
            .filter(|(h, _)| h.network == newcomer.network && *h != newcomer);
        neighbours.map(|(_, held)| *held).max().unwrap_or(0)
    }

    fn check(&self, newcomer: &Peer, amount: u64, admission: &Admission<u8>) -> Result<(), TestCaseError> {
        let fits = self.used() + amount <= self.capacity;
        let network_gets = self.network_holds(newcomer.network) + amount;
        let peer_gets = self.holds(newcomer) + amount;
        match admission {
            Admission::Granted => prop_assert!(fits, "granted without room"),
            Admission::Evict(victim) => {
                prop_assert!(!fits, "a holder gives way though there is room");
                if victim.network == newcomer.network {
                    prop_assert!(self.holds(victim) > peer_gets, "a smaller neighbour gives way");
                    prop_assert!(
                        self.largest_network(newcomer) <= network_gets,
                        "a larger network is spared"
                    );
                    prop_assert_eq!(self.holds(victim), self.largest_neighbour(newcomer));
                } else {
                    prop_assert!(
                        self.network_holds(victim.network) > network_gets,
                        "a smaller network gives way"
                    );
                    prop_assert_eq!(self.network_holds(victim.network), self.largest_network(newcomer));
                    let peers = self.held.iter().filter(|(h, _)| h.network == victim.network);
                    let most = peers.map(|(_, held)| *held).max().unwrap_or(0);
                    prop_assert_eq!(self.holds(victim), most);
                }
            }
            Admission::Refused => {
                prop_assert!(!fits, "refused though there is room");
                if amount <= self.capacity {
                    prop_assert!(
                        self.largest_network(newcomer) <= network_gets,
                        "a larger network exists"
                    );
                    prop_assert!(
                        self.largest_neighbour(newcomer) <= peer_gets,
                        "a larger neighbour exists"
                    );
                }
            }
        }
        Ok(())
    }
}

fn network(n: u8) -> Network {
    match n {
        0 => Network::Unknown,
        1 => Network::V6([0x20, 1, 0xd, 0xb8, 0, 1, 0, 2]),
        n => Network::of([203, 0, n, 7].into()),
    }
}

fn holder() -> impl Strategy<Value = Peer> {
    (0..4_u8, 0..4_u8).prop_map(|(n, peer)| Holder::new(network(n), peer))
}

proptest! {
    /// Every answer obeys the laws, and the counts agree with the model's.
    #[test]
    fn answers_obey_the_laws(
        capacity in 0..40_u64,
        steps in prop::collection::vec((holder(), 0..8_u64, any::<bool>()), 0..200),
    ) {
        let mut shares = Shares::new(capacity);
        let mut model = Model { capacity, ..Model::default() };
        for (at, (holder, amount, asks)) in steps.into_iter().enumerate() {
            if asks {
                let amount = amount.max(1);
                // Evict one unit at a time until the request is answered for good.
                let mut rounds = 0;
                loop {
                    let admission = shares.admit(&holder, amount, at as u64);
                    model.check(&holder, amount, &admission)?;
                    match admission {
                        Admission::Granted => {
                            *model.held.entry(holder).or_default() += amount;
                            break;
                        }
                        Admission::Refused => break,
                        Admission::Evict(victim) => {
                            shares.release(&victim, 1);
                            *model.held.entry(victim).or_default() -= 1;
                        }
                    }
                    rounds += 1;
                    prop_assert!(rounds <= capacity, "the request has no end");
                }
            } else {
                shares.release(&holder, amount);
                let held = model.held.entry(holder).or_default();
                *held = held.saturating_sub(amount);
            }
            model.held.retain(|_, held| *held > 0);
            prop_assert_eq!(shares.used(), model.used());
            prop_assert!(shares.used() <= capacity);
            prop_assert_eq!(shares.holders(), model.held.len());
            for (holder, held) in &model.held {
                prop_assert_eq!(shares.holds(holder), *held);
                prop_assert_eq!(shares.network_holds(holder.network), model.network_holds(holder.network));
            }
        }
    }

    /// A network that stays within an equal share of the capacity is never refused for the sake of another network.
    #[test]
    fn a_network_within_its_share_is_admitted(
        capacity in 4..60_u64,
        others in prop::collection::vec((2..5_u8, 0..4_u8, 1..30_u64), 0..30),
        newcomer in 0..4_u8,
    ) {
        let mut shares = Shares::new(capacity);
        for (n, peer, amount) in others {
            let holder = Holder::new(network(n), peer);
            while let Admission::Evict(victim) = shares.admit(&holder, amount, 0) {
                shares.release(&victim, 1);
            }
        }
        // Three other networks at most, and the newcomer's.
        let holder = Holder::new(network(1), newcomer);
        for at in 0..capacity / 4 {
            loop {
                match shares.admit(&holder, 1, at) {
                    Admission::Granted => break,
                    Admission::Evict(victim) => shares.release(&victim, 1),
                    Admission::Refused => prop_assert!(false, "refused at {at} of {capacity}"),
                }
            }
        }
        prop_assert_eq!(shares.holds(&holder), capacity / 4);
    }

    /// Holders that always ask for more end with equal amounts: no holder wins by asking more often.
    #[test]
    fn greedy_holders_end_with_equal_shares(order in prop::collection::vec(0..5_u8, 300..400)) {
        let mut shares = Shares::new(20);
        let holders: Vec<_> = (0..5).map(|n| Holder::new(network(2 + n), n)).collect();
        let all = (0..5_u8).cycle().take(200);
        for (at, n) in order.into_iter().chain(all).enumerate() {
            while let Admission::Evict(victim) = shares.admit(&holders[usize::from(n)], 1, at as u64) {
                shares.release(&victim, 1);
            }
        }
        for holder in &holders {
            prop_assert_eq!(shares.holds(holder), 4);
        }
    }
}

/// Of two equal holders the one that was served longer ago gives way.
#[test]
fn the_longest_served_of_equals_gives_way() {
    let mut shares = Shares::new(6);
    let [a, b, c] = [2, 3, 4].map(|n| Holder::new(network(n), n));
    for (at, holder) in [&b, &b, &b, &a, &a, &a].into_iter().enumerate() {
        assert_eq!(shares.admit(holder, 1, at as u64), Admission::Granted);
    }
    assert_eq!(shares.victim(&c, 1), Some(b));
    assert_eq!(shares.largest(), Some(b));
}

/// Many identities on one host are one network, and do not add up to more than its share.
#[test]
fn x4_many_identities_of_one_network_share_one_share() {
    let mut shares = Shares::new(100);
    let crowd = |peer| Holder::new(network(2), peer);
    for peer in 0..100 {
        assert_eq!(shares.admit(&crowd(peer), 1, 0), Admission::Granted);
    }
    let honest = Holder::new(network(3), 1);
    let mut taken = 0;
    while let Admission::Evict(victim) = shares.admit(&honest, 1, 1) {
        assert_eq!(victim.network, network(2));
        shares.release(&victim, 1);
        assert_eq!(shares.admit(&honest, 1, 1), Admission::Granted);
        taken += 1;
    }
    assert_eq!(taken, 50, "each network holds half in the end");
}

/// In one network a flooder gives way to its neighbours, which hold less.
#[test]
fn x8_a_neighbour_within_one_network_takes_from_the_flooder() {
    let mut shares = Shares::new(64);
    let peer = |peer| Holder::new(network(2), peer);
    for _ in 0..64 {
        assert_eq!(shares.admit(&peer(0), 1, 0), Admission::Granted);
    }
    for honest in 1..32 {
        assert_eq!(shares.admit(&peer(honest), 1, 1), Admission::Evict(peer(0)));
        shares.release(&peer(0), 1);
        assert_eq!(shares.admit(&peer(honest), 1, 1), Admission::Granted);
    }
    assert_eq!(shares.holders(), 32);
}

#[test]
fn amounts_beyond_the_capacity_and_of_nothing_are_bounded() {
    let mut shares = Shares::new(4);
    let holder = Holder::new(network(2), 1);
    assert_eq!(shares.admit(&holder, 5, 0), Admission::Refused);
    assert_eq!(shares.admit(&holder, u64::MAX, 0), Admission::Refused);
    assert_eq!(shares.admit(&holder, 0, 0), Admission::Granted);
    assert_eq!(shares.used(), 1, "a holder has at least one unit");
    shares.release(&holder, u64::MAX);
    assert_eq!((shares.used(), shares.holders()), (0, 0));
    shares.release(&holder, 1);
    assert_eq!(shares.used(), 0);
}

#[test]
fn networks_are_24_and_64_bits_wide() {
    let of = |ip: &str| Network::of(ip.parse().unwrap());
    assert_eq!(of("203.0.113.1"), of("203.0.113.250"));
    assert_ne!(of("203.0.113.1"), of("203.0.112.1"));
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("::ffff:203.0.113.9"), of("203.0.113.1"));
    assert_eq!(Network::from(None), Network::Unknown);
}
