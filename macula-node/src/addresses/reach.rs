//! The addresses that a node advertises (D13).
//!
//! A node that listens on one address advertises it. A node that listens on every address advertises those of its interfaces, and
//! the addresses that peers in several networks see it at: that is how a node behind a translating router learns its own address.
//!
//! **Invariants:** a loopback address is advertised only while the node has never had another one; one network alone, or a small part
//! of those that report, cannot make the node advertise an address; reports change at most [`MAX_OBSERVED`] addresses in
//! [`OBSERVED_LASTS`]; at most [`MAX_ENDPOINTS`] addresses are advertised, each once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use macula_wire::{Address, MAX_ENDPOINTS};

use super::interfaces::Interfaces;

/// Networks whose reports are kept; the oldest report makes room.
const MAX_SIGHTINGS: usize = 64;
/// How long a report counts.
const SIGHTING_LASTS: Duration = Duration::from_secs(600);
/// Networks that must report an address before it is advertised, and at least this part of those that report any.
const MIN_NETWORKS: usize = 2;
const MIN_PART: usize = 4;
/// Reported addresses that are advertised.
const MAX_OBSERVED: usize = 2;
/// How long a reported address stays advertised once too few networks report it: each change makes the node publish all its services.
const OBSERVED_LASTS: Duration = Duration::from_secs(60);

/// Where others can reach a node.
#[derive(Debug)]
pub(crate) enum Reach {
    /// At these addresses, which never change; at none, for a client.
    Fixed(Vec<Address>),
    /// At the one address that it listens on.
    Bound(SocketAddr),
    /// At every address of the machine.
    Everywhere(Everywhere),
}

/// A node that listens on an unspecified address.
#[derive(Debug)]
pub(crate) struct Everywhere {
    port: u16,
    /// It listens on `::`, which takes IPv4 too.
    both_families: bool,
    /// The interfaces' addresses in the order in which they are advertised.
    own: Vec<IpAddr>,
    sightings: BTreeMap<IpAddr, Sighting>,
    /// The reported addresses that are advertised, and when enough networks last reported each.
    observed: Vec<(SocketAddr, Instant)>,
}

/// Where a network last saw this node.
#[derive(Debug, Clone, Copy)]
struct Sighting {
    at: SocketAddr,
    reported: Instant,
}

impl Reach {
    /// The reach of a node that is bound to `bound`.
    pub(crate) fn of(bound: SocketAddr) -> Self {
        if !bound.ip().is_unspecified() {
            return Self::Bound(bound);
        }
        Self::Everywhere(Everywhere {
            port: bound.port(),
            both_families: bound.is_ipv6(),
            own: Vec::new(),
            sightings: BTreeMap::new(),
            observed: Vec::new(),
        })
    }

    /// The addresses to advertise, the preferred one first.
    pub(crate) fn addresses(&mut self, now: Instant) -> Vec<Address> {
        match self {
            Self::Fixed(addresses) => addresses.clone(),
            Self::Bound(bound) => Address::try_from(*bound).into_iter().collect(),
            Self::Everywhere(everywhere) => everywhere.addresses(now),
        }
    }
}

impl Everywhere {
    /// Takes in the interfaces as they are now, and says whether an address is gone.
    pub(crate) fn set_interfaces(&mut self, found: &Interfaces) -> bool {
        let before = self.own.clone();
        let mut rest: Vec<_> = found.all.iter().copied().filter(|ip| is_outside(*ip)).collect();
        rest.sort_by_key(|ip| (is_private(*ip), ip.is_ipv6(), *ip));
        let routed = found.routed.iter().filter(|ip| rest.contains(ip)).copied();
        let mut seen = BTreeSet::new();
        let outside: Vec<_> = routed
            .chain(rest.iter().copied())
            .filter(|ip| self.listens_in(*ip) && seen.insert(*ip))
            .collect();
        if !outside.is_empty() {
            self.own = outside;
        } else if self.own.is_empty() {
            let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            let loopback = loopback.into_iter().filter(|ip| found.all.contains(ip));
            self.own = loopback.filter(|ip| self.listens_in(*ip)).collect();
        }
        // Otherwise the node has lost its last address and keeps it: there is no peer left to tell.
        before.iter().any(|ip| !self.own.contains(ip))
    }

    /// A peer at `by` says that this node's packets come from `at`.
    pub(crate) fn observed(&mut self, now: Instant, by: IpAddr, at: SocketAddr) {
        if !is_outside(by) || !is_outside(at.ip()) || at.port() == 0 || !self.listens_in(at.ip()) {
            return;
        }
        let network = network(by);
        if self.sightings.len() >= MAX_SIGHTINGS && !self.sightings.contains_key(&network) {
            let oldest = self.sightings.iter().min_by_key(|(_, sighting)| sighting.reported);
            if let Some(oldest) = oldest.map(|(network, _)| *network) {
                self.sightings.remove(&oldest);
            }
        }
        self.sightings.insert(network, Sighting { at, reported: now });
    }

    fn addresses(&mut self, now: Instant) -> Vec<Address> {
        self.heed_reports(now);
        let own = self.own.iter().map(|ip| SocketAddr::new(*ip, self.port));
        let (first, rest): (Vec<_>, Vec<_>) = own.enumerate().partition(|(place, _)| *place == 0);
        let own = |part: Vec<(usize, SocketAddr)>| part.into_iter().map(|(_, address)| address);
        own(first)
            .chain(self.observed.iter().map(|(at, _)| *at))
            .chain(own(rest))
            .filter_map(|address| Address::try_from(address).ok())
            .take(MAX_ENDPOINTS)
            .collect()
    }

    /// Decides which reported addresses are advertised. One that is stays for a while, so that reports which change all the time
    /// change little; others take the places that are free.
    fn heed_reports(&mut self, now: Instant) {
        let agreed = self.agreed(now);
        for (at, agreed_at) in &mut self.observed {
            if agreed.contains(at) {
                *agreed_at = now;
            }
        }
        let own = &self.own;
        self.observed.retain(|(at, agreed_at)| {
            !own.contains(&at.ip()) && now.saturating_duration_since(*agreed_at) < OBSERVED_LASTS
        });
        for at in agreed {
            if self.observed.len() < MAX_OBSERVED && self.observed.iter().all(|(known, _)| *known != at) {
                self.observed.push((at, now));
            }
        }
    }

    /// The addresses that enough networks report, those of the most networks first.
    fn agreed(&self, now: Instant) -> Vec<SocketAddr> {
        let fresh = self.sightings.values();
        let fresh: Vec<_> = fresh
            .filter(|sighting| now.saturating_duration_since(sighting.reported) < SIGHTING_LASTS)
            .collect();
        let mut counts = BTreeMap::<_, usize>::new();
        for sighting in fresh.iter().filter(|sighting| !self.own.contains(&sighting.at.ip())) {
            *counts.entry(sighting.at).or_default() += 1;
        }
        let enough = MIN_NETWORKS.max(fresh.len().div_ceil(MIN_PART));
        let mut agreed: Vec<_> = counts.into_iter().filter(|(_, count)| *count >= enough).collect();
        agreed.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        agreed.into_iter().map(|(at, _)| at).collect()
    }

    fn listens_in(&self, ip: IpAddr) -> bool {
        self.both_families || ip.is_ipv4()
    }
}

/// Whether all of these addresses are of this host only.
pub(crate) fn is_this_host_only(addresses: &[Address]) -> bool {
    let is_loopback = |address: &Address| match address.ip() {
        Some(ip) => ip.is_loopback(),
        None => address.host() == "localhost",
    };
    !addresses.is_empty() && addresses.iter().all(is_loopback)
}

/// Whether a packet from another host can be sent to `ip` without naming an interface.
fn is_outside(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(is_link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        // RFC 1918, RFC 6598.
        IpAddr::V4(ip) => ip.is_private() || ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64,
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// The network of an address: 24 bits of IPv4, 48 bits of IPv6.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << 8)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 80)).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn everywhere(bound: &str) -> Everywhere {
        match Reach::of(bound.parse().unwrap()) {
            Reach::Everywhere(everywhere) => everywhere,
            one => panic!("{one:?}"),
        }
    }

    fn interfaces(routed: &[&str], all: &[&str]) -> Interfaces {
        let parse = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
        Interfaces {
            routed: parse(routed),
            all: parse(all),
        }
    }

    fn texts(everywhere: &mut Everywhere, now: Instant) -> Vec<String> {
        everywhere.addresses(now).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn d13_a_node_on_one_address_advertises_that_one() {
        let mut reach = Reach::of("127.0.0.1:4000".parse().unwrap());
        assert_eq!(reach.addresses(Instant::now()), ["127.0.0.1:4000".parse().unwrap()]);
    }

    /// Y7: it joins through 127.0.0.1 and advertises addresses that other hosts can dial.
    #[test]
    fn y7_a_node_that_joins_through_loopback_advertises_its_interfaces() {
        let mut node = everywhere("0.0.0.0:4000");
        node.set_interfaces(&interfaces(
            &["127.0.0.1", "10.0.0.2"],
            &[
                "127.0.0.1",
                "::1",
                "172.17.0.1",
                "10.0.0.2",
                "fe80::1",
                "2001:db8::2",
                "169.254.1.1",
            ],
        ));
        assert_eq!(
            texts(&mut node, Instant::now()),
            ["https://10.0.0.2:4000", "https://172.17.0.1:4000"]
        );
    }

    #[test]
    fn y19_a_node_on_both_families_advertises_both() {
        let mut node = everywhere("[::]:4000");
        node.set_interfaces(&interfaces(
            &["2001:db8::2"],
            &["::1", "10.0.0.2", "2001:db8::2", "fe80::1"],
        ));
        assert_eq!(
            texts(&mut node, Instant::now()),
            ["https://[2001:db8::2]:4000", "https://10.0.0.2:4000"]
        );
        let mut only_v6 = everywhere("[::]:4000");
        only_v6.set_interfaces(&interfaces(&[], &["::1", "2001:db8::2"]));
        assert_eq!(texts(&mut only_v6, Instant::now()), ["https://[2001:db8::2]:4000"]);
    }

    #[test]
    fn d13_loopback_is_advertised_only_by_a_host_without_a_network() {
        let (mut node, now) = (everywhere("[::]:4000"), Instant::now());
        node.set_interfaces(&interfaces(&[], &["127.0.0.1", "::1"]));
        assert_eq!(texts(&mut node, now), ["https://127.0.0.1:4000", "https://[::1]:4000"]);
        assert!(is_this_host_only(&node.addresses(now)));
        node.set_interfaces(&interfaces(&[], &["127.0.0.1", "10.0.0.2"]));
        assert_eq!(texts(&mut node, now), ["https://10.0.0.2:4000"]);
        assert!(!is_this_host_only(&node.addresses(now)));
        node.set_interfaces(&interfaces(&[], &["127.0.0.1"]));
        assert_eq!(texts(&mut node, now), ["https://10.0.0.2:4000"], "the last one is kept");
    }

    #[test]
    fn d13_an_observed_address_counts_when_two_networks_report_it() {
        let (mut node, now) = (everywhere("0.0.0.0:4000"), Instant::now());
        node.set_interfaces(&interfaces(&["10.0.0.2"], &["10.0.0.2", "10.1.0.2"]));
        let at = "198.51.100.7:31000".parse().unwrap();
        node.observed(now, "203.0.113.1".parse().unwrap(), at);
        node.observed(now, "203.0.113.99".parse().unwrap(), at);
        assert_eq!(texts(&mut node, now).len(), 2, "both reports are of one network");
        node.observed(now, "192.0.2.1".parse().unwrap(), at);
        let all = [
            "https://10.0.0.2:4000",
            "https://198.51.100.7:31000",
            "https://10.1.0.2:4000",
        ];
        assert_eq!(texts(&mut node, now), all);
        assert_eq!(texts(&mut node, now + SIGHTING_LASTS).len(), 2, "reports grow old");
        let moved = "198.51.100.8:31000".parse().unwrap();
        node.observed(now, "192.0.2.1".parse().unwrap(), moved);
        let later = now + OBSERVED_LASTS;
        assert_eq!(texts(&mut node, later).len(), 2, "a network has one opinion");
    }

    fn report(node: &mut Everywhere, now: Instant, networks: std::ops::Range<u8>, at: &str) {
        for network in networks {
            node.observed(now, Ipv4Addr::new(203, 0, network, 1).into(), at.parse().unwrap());
        }
    }

    #[test]
    fn d13_reports_that_change_all_the_time_change_few_addresses() {
        let (mut node, mut now) = (everywhere("0.0.0.0:4000"), Instant::now());
        node.set_interfaces(&interfaces(&["10.0.0.2"], &["10.0.0.2"]));
        let (start, mut changes, mut before) = (now, 0, texts(&mut node, now));
        while now < start + OBSERVED_LASTS {
            report(&mut node, now, 0..3, "198.51.100.7:4000");
            let seconds = (now - start).as_secs();
            report(&mut node, now, 3..5, &format!("192.0.2.{seconds}:4000"));
            let after = texts(&mut node, now);
            assert!(after.contains(&"https://198.51.100.7:4000".to_owned()), "{after:?}");
            changes += u32::from(after != before);
            (now, before) = (now + Duration::from_secs(2), after);
        }
        assert!(changes <= 2, "{changes}");
    }

    #[test]
    fn d13_two_networks_of_many_are_not_heeded() {
        let (mut node, now) = (everywhere("0.0.0.0:4000"), Instant::now());
        node.set_interfaces(&interfaces(&["10.0.0.2"], &["10.0.0.2"]));
        report(&mut node, now, 0..10, "198.51.100.7:4000");
        report(&mut node, now, 10..12, "192.0.2.1:4000");
        assert_eq!(
            texts(&mut node, now),
            ["https://10.0.0.2:4000", "https://198.51.100.7:4000"]
        );
    }

    #[test]
    fn d13_only_an_address_of_an_interface_is_gone_with_it() {
        let (mut node, now) = (everywhere("0.0.0.0:4000"), Instant::now());
        assert!(!node.set_interfaces(&interfaces(&["10.0.0.2"], &["10.0.0.2"])));
        report(&mut node, now, 0..3, "198.51.100.7:4000");
        assert_eq!(texts(&mut node, now).len(), 2);
        let later = now + SIGHTING_LASTS;
        assert!(!node.set_interfaces(&interfaces(&["10.0.0.2"], &["10.0.0.2", "10.1.0.2"])));
        assert_eq!(
            texts(&mut node, later),
            ["https://10.0.0.2:4000", "https://10.1.0.2:4000"]
        );
        assert!(node.set_interfaces(&interfaces(&["10.0.0.2"], &["10.0.0.2"])));
    }

    prop_compose! {
        fn ip()(v6 in any::<bool>(), bits in any::<u128>(), kind in 0..5) -> IpAddr {
            match (kind, v6) {
                (0, false) => Ipv4Addr::LOCALHOST.into(),
                (0, true) => Ipv6Addr::LOCALHOST.into(),
                (1, false) => Ipv4Addr::new(10, 0, 0, bits as u8).into(),
                (1, true) => Ipv6Addr::from_bits(0xfe80 << 112 | bits & 0xff).into(),
                (_, false) => Ipv4Addr::from_bits(bits as u32).into(),
                (_, true) => Ipv6Addr::from_bits(bits).into(),
            }
        }
    }

    proptest! {
        /// For any interfaces and any reports of peers.
        #[test]
        fn d13_what_is_advertised_keeps_the_invariants(
            both in any::<bool>(),
            steps in prop::collection::vec((prop::collection::vec(ip(), 0..12), prop::collection::vec((ip(), ip()), 0..6)), 1..6),
        ) {
            let mut node = everywhere(if both { "[::]:7" } else { "0.0.0.0:7" });
            let (mut had_outside, mut reporters) = (false, BTreeMap::<SocketAddr, BTreeSet<IpAddr>>::new());
            let now = Instant::now();
            for (all, reports) in steps {
                had_outside |= all.iter().any(|ip| is_outside(*ip) && (both || ip.is_ipv4()));
                node.set_interfaces(&Interfaces { routed: all.iter().rev().take(2).copied().collect(), all });
                for (by, at) in reports {
                    let at = SocketAddr::new(at, 9);
                    reporters.entry(at).or_default().insert(network(by));
                    node.observed(now, by, at);
                }
                let advertised = node.addresses(now);
                prop_assert!(advertised.len() <= MAX_ENDPOINTS);
                prop_assert!(node.sightings.len() <= MAX_SIGHTINGS);
                let distinct: BTreeSet<_> = advertised.iter().map(ToString::to_string).collect();
                prop_assert_eq!(distinct.len(), advertised.len());
                for address in &advertised {
                    let ip = address.ip().unwrap();
                    prop_assert!(both || ip.is_ipv4());
                    prop_assert!(!ip.is_loopback() || !had_outside);
                    if address.port() == 9 {
                        prop_assert!(reporters[&SocketAddr::new(ip, 9)].len() >= MIN_NETWORKS);
                    }
                }
            }
        }
    }
}
