//! H5, L3 and Y12 to Y13: what a balancer makes of the links that it is told.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{at, balancer, start};
use macula_select::{
    Balancer, DIAL_EVERY, Fate, Link, Loss, MAX_DIALS_AT_ONCE, MAX_REDIAL, PickContext, Provider, ProviderState,
    Strategy,
};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

fn picked(balancer: &mut Balancer<u32>, now: u64, strategy: Strategy, exclude: &[u32]) -> u32 {
    let context = PickContext {
        strategy: Some(strategy),
        exclude,
        affinity: Some(now),
        ..PickContext::default()
    };
    let lease = balancer.pick(at(now), &context).expect("a provider is untried");
    let key = *balancer.provider(&lease).expect("it was just picked");
    balancer
        .report(at(now), lease, Fate::Cancelled)
        .expect("this balancer issued it");
    key
}

fn state(balancer: &Balancer<u32>, key: u32) -> ProviderState {
    let mut providers = balancer.providers();
    providers
        .find(|provider| *provider.provider == key)
        .expect("it is in the set")
        .state
}

fn dials(balancer: &mut Balancer<u32>, now: u64) -> Vec<u32> {
    std::iter::from_fn(|| balancer.poll_dial(at(now))).collect()
}

#[test]
fn h5_connected_comes_before_idle_suspected_and_down_whatever_the_strategy() {
    for strategy in Strategy::ALL {
        let mut balancer = balancer(8);
        for (key, link) in [
            (0, Link::Down),
            (1, Link::Suspected),
            (4, Link::Up),
            (5, Link::Up),
            (7, Link::Draining),
        ] {
            balancer.link(start(), &key, link);
        }
        let classes: [&[u32]; 4] = [&[4, 5], &[2, 3, 6], &[1], &[0]];
        let mut excluded = Vec::new();
        for class in classes {
            for now in 0..40 {
                let key = picked(&mut balancer, now, strategy, &excluded);
                assert!(class.contains(&key), "{strategy}: {key}, where {class:?} are the best");
            }
            excluded.extend(class);
        }
    }
}

/// S2 holds among those that are connected, whichever are not.
#[test]
fn s2_round_robin_is_even_among_the_connected() {
    let mut balancer = balancer(7);
    for key in [1, 2, 5] {
        balancer.link(start(), &key, Link::Up);
    }
    let turns: Vec<u32> = (0..9)
        .map(|now| picked(&mut balancer, now, Strategy::RoundRobin, &[]))
        .collect();
    assert_eq!(turns, [1, 2, 5, 1, 2, 5, 1, 2, 5]);
}

#[test]
fn h5_a_pick_that_passes_over_an_idle_provider_has_it_dialed() {
    let mut balancer = balancer(3);
    balancer.link(start(), &2, Link::Up);
    assert!(dials(&mut balancer, 0).is_empty(), "the service is not called");
    assert_eq!(picked(&mut balancer, 0, Strategy::First, &[]), 2);
    assert_eq!(dials(&mut balancer, 0), [0]);
    assert_eq!(picked(&mut balancer, 1, Strategy::First, &[]), 2);
    assert!(dials(&mut balancer, 1).is_empty(), "it is being dialed");
    balancer.link(at(2), &0, Link::Up);
    assert_eq!(picked(&mut balancer, 2, Strategy::First, &[]), 0);
    assert!(dials(&mut balancer, 2).is_empty());
}

/// The outcome of a dial may be lost: that blocks nothing for ever.
#[test]
fn h5_a_dial_that_is_never_answered_is_made_again() {
    let mut balancer = balancer(2);
    balancer.link(start(), &1, Link::Up);
    let mut dialed = 0;
    for now in 0..100 {
        assert_eq!(picked(&mut balancer, now * 100, Strategy::First, &[]), 1);
        dialed += dials(&mut balancer, now * 100).len();
    }
    assert!((4..=6).contains(&dialed), "{dialed} dials in ten seconds");
}

#[test]
fn h5_a_newcomer_searches_a_list_by_several_dials_at_once() {
    let mut balancer = balancer(9);
    let context = PickContext::default();
    let lease = balancer.pick(start(), &context).expect("there are providers");
    let first = *balancer.provider(&lease).expect("it was just picked");
    let mut dialed = dials(&mut balancer, 0);
    assert_eq!(dialed.len(), 8, "all but the one that the call dials itself");
    dialed.push(first);
    assert_eq!(dialed.into_iter().collect::<BTreeSet<_>>(), (0..9).collect());
    balancer
        .report(at(0), lease, Fate::Cancelled)
        .expect("this balancer issued it");
}

/// Y3, Y13: its share of the set does not matter, nor does the rate of the calls.
#[test]
fn y13_what_is_down_stays_out_until_a_dial_succeeds() {
    for every in [20, 1_500, 40_000] {
        let mut balancer = balancer(9);
        balancer.link(start(), &8, Link::Up);
        for key in 0..8 {
            balancer.link(start(), &key, Link::Down);
        }
        for n in 0..200 {
            let now = n * every;
            assert_eq!(picked(&mut balancer, now, Strategy::Random, &[]), 8);
            for key in dials(&mut balancer, now) {
                balancer.link(at(now), &key, Link::Down);
            }
        }
        balancer.link(at(200 * every), &3, Link::Up);
        let next: BTreeSet<u32> = (0..40)
            .map(|_| picked(&mut balancer, 200 * every, Strategy::Random, &[]))
            .collect();
        assert_eq!(next, BTreeSet::from([3, 8]));
    }
}

/// News of the old connection that comes late does not bring a provider back.
#[test]
fn y13_neither_time_nor_old_news_bring_back_what_is_down() {
    let mut balancer = balancer(2);
    balancer.link(start(), &0, Link::Down);
    for link in [Link::Idle, Link::Suspected, Link::Down] {
        balancer.link(at(1), &0, link);
        balancer.handle_timeout(at(600_000));
        assert_eq!(state(&balancer, 0), ProviderState::Down);
    }
    balancer.renew(at(600_001), &0);
    assert_eq!(state(&balancer, 0), ProviderState::Ready);
}

/// Y12: whenever it comes back, it is used within two seconds.
#[test]
fn y12_a_provider_that_comes_back_is_dialed_within_two_seconds() {
    for away in [300, 2_000, 10_000, 90_000, 3_600_000] {
        let mut balancer = balancer(3);
        for key in [1, 2] {
            balancer.link(start(), &key, Link::Up);
        }
        balancer.link(start(), &0, Link::Down);
        let mut now = 0;
        let back = loop {
            now += 10;
            assert_ne!(picked(&mut balancer, now, Strategy::Random, &[]), 0);
            if !dials(&mut balancer, now).is_empty() && now >= away {
                break now;
            }
        };
        assert!(
            back - away <= MAX_REDIAL.as_millis() as u64 + 10,
            "away {away} ms, back after {back}"
        );
        balancer.link(at(now), &0, Link::Up);
        let uses = (0..60).filter(|_| picked(&mut balancer, now, Strategy::Random, &[]) == 0);
        assert!(uses.count() > 5);
    }
}

/// The waits between dials grow from 0.1 s by 1.6 ± 20 % up to 2 s.
#[test]
fn h5_redials_back_off_within_their_bounds() {
    let mut balancer = balancer(2);
    balancer.link(start(), &1, Link::Up);
    balancer.link(start(), &0, Link::Down);
    let mut times = vec![0];
    for now in 0..20_000 {
        picked(&mut balancer, now, Strategy::Random, &[]);
        times.extend(dials(&mut balancer, now).iter().map(|_| now));
    }
    let waits: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (wait, n) in waits.iter().zip(0..) {
        let wanted = 100.0 * 1.6f64.powi(n);
        let (least, most) = ((wanted * 0.79).min(1_599.0), (wanted * 1.21).min(2_001.0));
        assert!(
            (least..=most).contains(&(*wait as f64)),
            "wait {n}: {wait} ms, {waits:?}"
        );
    }
    assert!(waits.len() >= 14, "{waits:?}");
}

#[test]
fn h5_dials_are_bounded_however_many_are_down_and_end_when_the_service_is_not_called() {
    let mut balancer = Balancer::new(macula_select::BalancerConfig::default(), 1);
    balancer.update(start(), (0..5_000).map(Provider::new));
    for key in 0..5_000 {
        balancer.link(start(), &key, Link::Down);
    }
    let mut dialed = 0u32;
    for now in 0..3_000 {
        picked(&mut balancer, now, Strategy::Random, &[]);
        dialed += dials(&mut balancer, now).len() as u32;
        let most = MAX_DIALS_AT_ONCE + (u128::from(now) / DIAL_EVERY.as_millis()) as u32 + 1;
        assert!(dialed <= most, "{dialed} dials after {now} ms");
    }
    assert!(dialed > 90, "{dialed}");
    let later = 3_000 + 10_500;
    balancer.handle_timeout(at(later));
    assert_eq!(balancer.next_dial(), None);
    assert!(dials(&mut balancer, later).is_empty());
    picked(&mut balancer, later, Strategy::Random, &[]);
    assert!(balancer.next_dial().is_some());
    assert_eq!(dials(&mut balancer, later).len() as u32, MAX_DIALS_AT_ONCE);
}

/// L3: suspicion changes where new calls go, and nothing that is counted.
#[test]
fn l3_suspicion_counts_nothing_and_one_sign_of_life_lifts_it() {
    let mut balancer = balancer(3);
    for key in 0..3 {
        balancer.link(start(), &key, Link::Up);
    }
    let before = |balancer: &Balancer<u32>| {
        let stats = balancer.stats();
        let counts: Vec<_> = balancer
            .providers()
            .map(|it| (it.counts, it.consecutive_failures, it.ramp))
            .collect();
        (stats.ejections, stats.ready, format!("{counts:?}"))
    };
    let healthy = before(&balancer);
    for _ in 0..100 {
        balancer.link(at(1), &0, Link::Suspected);
        assert_ne!(picked(&mut balancer, 1, Strategy::Random, &[]), 0);
        balancer.link(at(2), &0, Link::Up);
    }
    assert_eq!(before(&balancer), healthy);
    let next: BTreeSet<u32> = (0..60)
        .map(|_| picked(&mut balancer, 3, Strategy::Random, &[]))
        .collect();
    assert_eq!(next.len(), 3);
}

/// H5: the attempts that a dead provider takes with it are no matter of health, so they use up no ejection.
#[test]
fn h5_unreachability_uses_up_no_ejection() {
    let mut balancer = balancer(4);
    for key in 0..3 {
        let context = PickContext {
            strategy: Some(Strategy::First),
            ..PickContext::default()
        };
        let leases: Vec<_> = (0..9)
            .map(|_| balancer.pick(start(), &context).expect("there are providers"))
            .collect();
        balancer.link(at(1), &key, Link::Down);
        for lease in leases {
            balancer
                .report(at(1), lease, Fate::Unknown(Loss::ConnectionLost))
                .expect("this balancer issued it");
        }
    }
    let stats = balancer.stats();
    assert_eq!((stats.down, stats.ejections, stats.ejections_capped), (3, 0, 0));
}

/// A half-open provider that is not connected is not probed by a call that would wait for the dial.
#[test]
fn h5_no_call_probes_what_it_would_have_to_dial() {
    let mut balancer = balancer(3);
    for _ in 0..5 {
        let context = PickContext {
            exclude: &[1, 2],
            ..PickContext::default()
        };
        let lease = balancer.pick(start(), &context).expect("it is usable");
        balancer
            .report(start(), lease, Fate::Unknown(Loss::TimedOut))
            .expect("this balancer issued it");
    }
    assert_eq!(state(&balancer, 0), ProviderState::Ejected);
    balancer.link(at(1), &1, Link::Up);
    for now in [6_000, 20_000, 60_000] {
        assert_eq!(picked(&mut balancer, now, Strategy::Random, &[]), 1);
        assert_eq!(state(&balancer, 0), ProviderState::HalfOpen);
    }
    assert!(dials(&mut balancer, 60_000).contains(&0));
    balancer.link(at(60_000), &0, Link::Up);
    assert_eq!(state(&balancer, 0), ProviderState::Ready);
    assert_eq!(balancer.stats().probes, 0);
}

proptest! {
    /// H5 and L3 as a law: a pick is of the best class that has an untried provider, and never fails while one is left.
    #[test]
    fn h5_a_pick_is_of_the_best_class_that_is_untried(
        news in proptest::collection::vec((0u32..8, 0u8..5), 0..40), exclude in any::<u8>(), strategy in 0usize..8,
    ) {
        let mut balancer = balancer(8);
        for (key, link) in news {
            let link = [Link::Idle, Link::Up, Link::Suspected, Link::Down, Link::Draining][usize::from(link)];
            balancer.link(start(), &key, link);
        }
        let excluded: Vec<u32> = (0..8).filter(|key| exclude & 1 << key != 0).collect();
        let class = |link: Link| match link {
            Link::Up => Some(0),
            Link::Idle => Some(1),
            Link::Suspected => Some(2),
            Link::Down => Some(3),
            Link::Draining => None,
        };
        let links: Vec<_> = balancer.providers().map(|provider| (*provider.provider, provider.link)).collect();
        let best = links.iter().filter(|(key, _)| !excluded.contains(key)).filter_map(|(_, link)| class(*link)).min();
        let context = PickContext {
            strategy: Some(Strategy::ALL[strategy]), exclude: &excluded, affinity: Some(9), ..PickContext::default()
        };
        let found = balancer.pick(start(), &context).ok().and_then(|lease| balancer.provider(&lease).copied());
        let found = found.and_then(|found| links.iter().find(|(key, _)| *key == found)).and_then(|(_, link)| class(*link));
        prop_assert_eq!(found, best);
        prop_assert!(balancer.stats().in_flight() <= 1);
    }
}

/// Time passes, but what is told last holds.
#[test]
fn a_draining_provider_returns_by_a_new_connection_or_record_only() {
    let mut balancer = balancer(2);
    balancer.link(start(), &0, Link::Draining);
    balancer.link(at(1), &0, Link::Idle);
    balancer.handle_timeout(start() + Duration::from_secs(600));
    assert_eq!(state(&balancer, 0), ProviderState::Draining);
    balancer.renew(at(2), &0);
    assert_eq!(state(&balancer, 0), ProviderState::Ready);
}
