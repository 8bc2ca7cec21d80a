//! S1, S2, S4: what each strategy promises, exactly where it can be exact, by χ² where it is chance. Seeds are fixed.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::{at, balancer_with, start};
use macula_select::{Balancer, BalancerConfig, Fate, Link, Locality, PickContext, Provider, Strategy, Zone};
use proptest::prelude::{Strategy as _, any, prop_assert, prop_assert_eq, proptest};

fn of(strategy: Strategy, providers: u32) -> Balancer<u32> {
    balancer_with(
        BalancerConfig {
            strategy,
            ..BalancerConfig::default()
        },
        providers,
    )
}

/// Picks and returns the lease at once.
fn next(balancer: &mut Balancer<u32>, context: &PickContext<'_, u32>) -> u32 {
    let lease = balancer.pick(start(), context).expect("there are providers");
    let key = *balancer.provider(&lease).expect("it was just picked");
    balancer
        .report(start(), lease, Fate::Ok)
        .expect("this balancer issued it");
    key
}

fn shares(balancer: &mut Balancer<u32>, picks: u32, context: &PickContext<'_, u32>) -> BTreeMap<u32, u32> {
    let mut counts = BTreeMap::new();
    for _ in 0..picks {
        *counts.entry(next(balancer, context)).or_default() += 1;
    }
    counts
}

/// χ² of counts against expectations in these proportions.
fn chi_squared(counts: impl IntoIterator<Item = (u32, f64)>) -> f64 {
    let counts: Vec<(u32, f64)> = counts.into_iter().collect();
    let total: f64 = counts.iter().map(|(count, _)| f64::from(*count)).sum();
    let whole: f64 = counts.iter().map(|(_, share)| share).sum();
    counts
        .iter()
        .map(|(count, share)| {
            let expected = total * share / whole;
            (f64::from(*count) - expected).powi(2) / expected
        })
        .sum()
}

#[test]
fn s1_first_takes_the_first_of_the_list_and_then_the_next() {
    let mut balancer = of(Strategy::First, 0);
    balancer.update(start(), [7, 3, 5].map(Provider::new));
    assert_eq!(next(&mut balancer, &PickContext::default()), 7);
    assert_eq!(
        next(
            &mut balancer,
            &PickContext {
                exclude: &[7],
                ..PickContext::default()
            }
        ),
        3
    );
    balancer.update(start(), [5, 7, 3].map(Provider::new));
    assert_eq!(next(&mut balancer, &PickContext::default()), 5);
}

/// 9 degrees of freedom, p = 0.001 at 27.9.
#[test]
fn s1_random_is_uniform() {
    let counts = shares(&mut of(Strategy::Random, 10), 20_000, &PickContext::default());
    let chi = chi_squared(counts.values().map(|count| (*count, 1.0)));
    assert!(counts.len() == 10 && chi < 27.9, "χ² = {chi}, {counts:?}");
}

/// Also with most of the set excluded, when the free ones are counted out. 2 degrees of freedom, p = 0.001 at 13.8.
#[test]
fn s1_random_is_uniform_among_the_untried() {
    for exclude in [vec![0, 4], vec![0, 1, 2, 3, 4, 5, 6]] {
        let context = PickContext {
            exclude: &exclude,
            ..PickContext::default()
        };
        let counts = shares(&mut of(Strategy::Random, 10), 20_000, &context);
        assert_eq!(counts.len(), 10 - exclude.len());
        let chi = chi_squared(counts.values().map(|count| (*count, 1.0)));
        assert!(chi < 26.1, "χ² = {chi}, {counts:?}");
    }
}

/// Law 33.
#[test]
fn s2_round_robin_counts_differ_by_at_most_one_over_any_prefix() {
    for providers in [1, 2, 3, 7] {
        let mut balancer = of(Strategy::RoundRobin, providers);
        let mut counts: BTreeMap<u32, u32> = (0..providers).map(|key| (key, 0)).collect();
        for _ in 0..100 {
            *counts.entry(next(&mut balancer, &PickContext::default())).or_default() += 1;
            let (least, most) = (counts.values().min().copied(), counts.values().max().copied());
            assert!(most <= least.map(|least| least + 1), "{counts:?}");
        }
    }
}

/// Law 34: whether the dead one is put aside, or every call finds out for itself.
#[test]
fn s2_with_one_dead_provider_the_survivors_differ_by_at_most_one_a_cycle() {
    for dead in 0..4 {
        for found_out_by_each_call in [false, true] {
            let mut balancer = of(Strategy::RoundRobin, 4);
            if !found_out_by_each_call {
                balancer.link(start(), &dead, Link::Draining);
            }
            let mut counts: BTreeMap<u32, u32> = (0..4).filter(|key| *key != dead).map(|key| (key, 0)).collect();
            for _ in 0..99 {
                let mut key = next(&mut balancer, &PickContext::default());
                if key == dead {
                    key = next(
                        &mut balancer,
                        &PickContext {
                            exclude: &[dead],
                            ..PickContext::default()
                        },
                    );
                }
                *counts.get_mut(&key).expect("the dead one was excluded") += 1;
                let (least, most) = (counts.values().min().copied(), counts.values().max().copied());
                assert!(most <= least.map(|least| least + 1), "dead {dead}: {counts:?}");
            }
        }
    }
}

#[test]
fn s2_when_providers_leave_or_join_the_others_keep_their_turn() {
    let mut balancer = of(Strategy::RoundRobin, 5);
    assert_eq!([(); 2].map(|()| next(&mut balancer, &PickContext::default())), [0, 1]);
    balancer.update(start(), [1, 2, 3, 4].map(Provider::new));
    assert_eq!(next(&mut balancer, &PickContext::default()), 2);
    balancer.update(start(), [1, 2, 4, 9].map(Provider::new));
    assert_eq!(
        [(); 4].map(|()| next(&mut balancer, &PickContext::default())),
        [4, 9, 1, 2]
    );
}

#[test]
fn s2_every_service_has_its_own_turn() {
    let mut one = of(Strategy::RoundRobin, 3);
    let mut other = of(Strategy::RoundRobin, 3);
    assert_eq!(next(&mut one, &PickContext::default()), 0);
    assert_eq!(next(&mut one, &PickContext::default()), 1);
    assert_eq!(next(&mut other, &PickContext::default()), 0);
}

#[test]
fn s3_a_pick_may_have_another_strategy_than_its_balancer() {
    let mut balancer = of(Strategy::Random, 5);
    let first = PickContext {
        strategy: Some(Strategy::First),
        ..PickContext::default()
    };
    assert!((0..50).all(|_| next(&mut balancer, &first) == 0));
}

fn weighted(strategy: Strategy, weights: &[u32]) -> Balancer<u32> {
    let mut balancer = of(strategy, 0);
    balancer.update(
        start(),
        weights
            .iter()
            .enumerate()
            .map(|(key, weight)| Provider::new(key as u32).weight(*weight)),
    );
    balancer
}

/// 3 degrees of freedom, p = 0.001 at 16.3.
#[test]
fn s4_weighted_random_follows_the_weights() {
    let weights = [1, 2, 5, 12];
    let mut balancer = weighted(Strategy::WeightedRandom, &weights);
    let counts = shares(&mut balancer, 20_000, &PickContext::default());
    let chi = chi_squared(
        counts
            .iter()
            .map(|(key, count)| (*count, f64::from(weights[*key as usize]))),
    );
    assert!(chi < 16.3, "χ² = {chi}, {counts:?}");
    // With the heavy ones excluded, draws by weight miss and the rest is counted out.
    let context = PickContext {
        exclude: &[2, 3],
        ..PickContext::default()
    };
    let counts = shares(&mut balancer, 6_000, &context);
    let chi = chi_squared([(counts[&0], 1.0), (counts[&1], 2.0)]);
    assert!(chi < 10.9, "χ² = {chi}, {counts:?}");
}

proptest! {
    /// A static stride is never more than one off at the end of a round, and two within one.
    #[test]
    fn s4_weighted_round_robin_follows_the_weights_closely(weights in proptest::collection::vec(1u32..50, 1..12)) {
        let mut balancer = weighted(Strategy::WeightedRoundRobin, &weights);
        let total: u32 = weights.iter().sum();
        let mut counts = vec![0u32; weights.len()];
        for picks in 1..=total * 3 {
            counts[next(&mut balancer, &PickContext::default()) as usize] += 1;
            for (key, count) in counts.iter().enumerate() {
                let expected = f64::from(picks) * f64::from(weights[key]) / f64::from(total);
                let bound = 2.0 + weights.len() as f64 * f64::from(weights[key]) / f64::from(total);
                prop_assert!((f64::from(*count) - expected).abs() <= bound, "{picks} {counts:?} for {weights:?}");
            }
        }
    }
}

/// All ordered pairs of ten: what two draws see is the load that decides. With one provider idle and nine busy, the
/// idle one is chosen whenever it is drawn: 2/10 of all picks. 1 degree of freedom, p = 0.001 at 10.8.
#[test]
fn s4_p2c_draws_two_of_all_and_takes_the_idler() {
    let mut balancer = of(Strategy::LeastLoaded, 10);
    let busy: Vec<u32> = (1..10).collect();
    let mut held = Vec::new();
    for key in &busy {
        let exclude: Vec<u32> = (0..10).filter(|other| other != key).collect();
        let context = PickContext {
            exclude: &exclude,
            ..PickContext::default()
        };
        held.push(balancer.pick(start(), &context).expect("it is usable"));
    }
    let counts = shares(&mut balancer, 20_000, &PickContext::default());
    let idle = counts[&0];
    let chi = chi_squared([(idle, 0.2), (20_000 - idle, 0.8)]);
    assert!(chi < 10.8, "χ² = {chi}, {counts:?}");
    // The loser of a tie is as often the first drawn as the second: the nine share evenly. 8 degrees, p = 0.001 at
    // 26.1.
    let chi = chi_squared(busy.iter().map(|key| (counts[key], 1.0)));
    assert!(chi < 26.1, "χ² = {chi}, {counts:?}");
    for lease in held {
        balancer
            .report(start(), lease, Fate::Cancelled)
            .expect("this balancer issued it");
    }
}

/// With four or fewer all are compared; ties fall evenly. 2 degrees of freedom, p = 0.001 at 13.8.
#[test]
fn s4_p2c_compares_all_of_a_few_and_breaks_ties_evenly() {
    for providers in [3, 4] {
        let counts = shares(
            &mut of(Strategy::LeastLoaded, providers),
            12_000,
            &PickContext::default(),
        );
        let chi = chi_squared(counts.values().map(|count| (*count, 1.0)));
        assert!(
            counts.len() == providers as usize && chi < 16.3,
            "χ² = {chi}, {counts:?}"
        );
    }
    let mut balancer = of(Strategy::LeastLoaded, 4);
    let exclude = PickContext {
        exclude: &[3],
        ..PickContext::default()
    };
    let held: Vec<_> = (0..3)
        .map(|_| balancer.pick(start(), &exclude).expect("there are providers"))
        .collect();
    assert_eq!(next(&mut balancer, &PickContext::default()), 3);
    for lease in held {
        balancer
            .report(start(), lease, Fate::Cancelled)
            .expect("this balancer issued it");
    }
}

#[test]
fn s4_peak_ewma_prefers_the_faster() {
    let mut balancer = of(Strategy::PeakEwma, 3);
    let mut counts = [0; 3];
    for n in 0..600u64 {
        let lease = balancer
            .pick(at(n * 20), &PickContext::default())
            .expect("there are providers");
        let key = *balancer.provider(&lease).expect("it was just picked");
        counts[key as usize] += 1;
        balancer
            .report(at(n * 20 + if key == 1 { 2 } else { 15 }), lease, Fate::Ok)
            .expect("this balancer issued it");
    }
    assert!(counts[1] > 550, "{counts:?}");
}

/// What is cancelled again and again, later than an answer usually comes, is slow; what is cancelled early says
/// nothing.
#[test]
fn s4_peak_ewma_learns_from_a_row_of_attempts_that_were_cut_short() {
    let mut balancer = of(Strategy::PeakEwma, 2);
    let only = [
        PickContext {
            exclude: &[1],
            ..PickContext::default()
        },
        PickContext {
            exclude: &[0],
            ..PickContext::default()
        },
    ];
    let mut meet = |now: u64, key: usize, took: u64, fate| {
        let lease = balancer.pick(at(now), &only[key]).expect("it is usable");
        balancer
            .report(at(now + took), lease, fate)
            .expect("this balancer issued it");
        let latency = balancer.providers().nth(key).and_then(|provider| provider.latency);
        latency.map_or(0, |latency| latency.as_millis())
    };
    for key in [0, 1] {
        meet(0, key, 10, Fate::Ok);
    }
    for n in 0..20 {
        assert!(meet(10 + n, 0, 1, Fate::Cancelled) <= 10);
    }
    let estimates = [100, 140, 180, 220].map(|now| meet(now, 1, 40, Fate::Cancelled));
    assert_eq!(estimates, [40, 80, 120, 160]);
    assert!(meet(300, 1, 10, Fate::Ok) < 160);
    assert!(meet(400, 1, 40, Fate::Cancelled) < 160, "the row was broken");
}

fn homes(balancer: &mut Balancer<u32>, keys: u64) -> HashMap<u64, u32> {
    (0..keys)
        .map(|key| {
            (
                key,
                next(
                    balancer,
                    &PickContext {
                        affinity: Some(key),
                        ..PickContext::default()
                    },
                ),
            )
        })
        .collect()
}

#[test]
fn s4_rendezvous_moves_only_the_keys_of_the_removed() {
    let mut balancer = of(Strategy::Affinity, 10);
    let before = homes(&mut balancer, 2_000);
    balancer.update(start(), (0..10).filter(|key| *key != 4).map(Provider::new));
    let after = homes(&mut balancer, 2_000);
    for (key, home) in &before {
        assert!(
            *home == 4 || after[key] == *home,
            "key {key} moved from {home} to {}",
            after[key]
        );
    }
    // And those of the removed spread over all that are left. 8 degrees of freedom, p = 0.001 at 26.1.
    let mut moved = BTreeMap::new();
    for (key, _) in before.iter().filter(|(_, home)| **home == 4) {
        *moved.entry(after[key]).or_insert(0u32) += 1;
    }
    assert!(
        moved.len() == 9 && chi_squared(moved.values().map(|count| (*count, 1.0))) < 26.1,
        "{moved:?}"
    );
}

/// 9 degrees of freedom, p = 0.001 at 27.9.
#[test]
fn s4_rendezvous_spreads_keys_by_weight() {
    let mut balancer = of(Strategy::Affinity, 0);
    balancer.update(start(), (0..10).map(|key| Provider::new(key).weight(1 + key % 3)));
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for home in homes(&mut balancer, 20_000).into_values() {
        *counts.entry(home).or_default() += 1;
    }
    let chi = chi_squared(counts.iter().map(|(key, count)| (*count, f64::from(1 + key % 3))));
    assert!(chi < 27.9, "χ² = {chi}, {counts:?}");
}

#[test]
fn s4_one_hot_key_does_not_sink_its_provider() {
    let mut balancer = of(Strategy::Affinity, 10);
    let context = PickContext {
        affinity: Some(1),
        ..PickContext::default()
    };
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    let leases: Vec<_> = (0..200)
        .map(|_| {
            let lease = balancer.pick(start(), &context).expect("there are providers");
            *counts
                .entry(*balancer.provider(&lease).expect("it was just picked"))
                .or_default() += 1;
            lease
        })
        .collect();
    assert!(
        counts.values().all(|count| *count <= 25),
        "more than 1.25 × the average of 20: {counts:?}"
    );
    for lease in leases {
        balancer
            .report(start(), lease, Fate::Ok)
            .expect("this balancer issued it");
    }
}

/// Two zones of four; the caller is in zone 1.
fn zoned(strategy: Strategy) -> Balancer<u32> {
    let mut config = BalancerConfig {
        strategy,
        ..BalancerConfig::default()
    };
    config.locality.zone = Some(Zone::new(1));
    let mut balancer = Balancer::new(config, 1);
    balancer.update(
        start(),
        (0..8).map(|key| Provider::new(key).zone(Zone::new(u64::from(key / 4)))),
    );
    balancer
}

#[test]
fn s4_every_strategy_stays_in_the_zone_while_it_can() {
    for strategy in Strategy::ALL {
        let mut balancer = zoned(strategy);
        let context = PickContext {
            affinity: Some(9),
            ..PickContext::default()
        };
        assert!((0..200).all(|_| next(&mut balancer, &context) >= 4), "{strategy}");
        let anywhere = PickContext {
            locality: Locality::Ignore,
            ..context
        };
        if !matches!(strategy, Strategy::First | Strategy::Affinity) {
            let counts = shares(&mut balancer, 400, &anywhere);
            assert!(counts.len() == 8, "{strategy}: {counts:?}");
        }
    }
}

/// Two of four local ones healthy, 1.4 × 50 % = 70 % stay. 1 degree of freedom, p = 0.001 at 10.8.
#[test]
fn s4_a_sick_zone_spills_in_proportion() {
    let mut balancer = zoned(Strategy::Random);
    for key in [4, 5] {
        balancer.link(start(), &key, Link::Draining);
    }
    let counts = shares(&mut balancer, 10_000, &PickContext::default());
    let local: u32 = counts.range(4..).map(|(_, count)| count).sum();
    let chi = chi_squared([(local, 0.7), (10_000 - local, 0.3)]);
    assert!(chi < 10.8, "χ² = {chi}, {counts:?}");
}

#[test]
fn s4_a_busy_zone_spills_and_a_tried_one_is_left() {
    let mut balancer = zoned(Strategy::Random);
    let leases: Vec<_> = (0..300)
        .map(|_| {
            balancer
                .pick(start(), &PickContext::default())
                .expect("there are providers")
        })
        .collect();
    let local = leases
        .iter()
        .filter(|lease| balancer.provider(lease).is_some_and(|key| *key >= 4))
        .count();
    assert_eq!(local, 4 * 64);
    for lease in leases {
        balancer
            .report(start(), lease, Fate::Ok)
            .expect("this balancer issued it");
    }
    let tried = PickContext {
        exclude: &[4, 5, 6, 7],
        ..PickContext::default()
    };
    assert!(next(&mut balancer, &tried) < 4);
}

proptest! {
    /// Law 28: the same set in another order changes nothing but the first.
    #[test]
    fn a_permuted_update_changes_nothing(
        seed in any::<u64>(), picks in 0usize..40, strategy in 1usize..8,
        order in proptest::prelude::Just((0..9u32).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let config = BalancerConfig { strategy: Strategy::ALL[strategy], ..BalancerConfig::default() };
        let mut one = Balancer::new(config, seed);
        one.update(start(), (0..9).map(|key| Provider::new(key).weight(1 + key)));
        let context = PickContext { affinity: Some(seed), ..PickContext::default() };
        for _ in 0..picks {
            next(&mut one, &context);
        }
        let mut other = one.clone();
        let changes = other.update(start(), order.iter().map(|key| Provider::new(*key).weight(1 + key)));
        prop_assert_eq!((changes.kept, changes.added, changes.removed), (9, 0, 0));
        prop_assert_eq!(one.stats(), other.stats());
        for _ in 0..40 {
            prop_assert_eq!(next(&mut one, &context), next(&mut other, &context));
        }
        let first = PickContext { strategy: Some(Strategy::First), ..PickContext::default() };
        prop_assert_eq!(next(&mut other, &first), order[0]);
    }

    /// Updates against a plain list: which are in, in which order, and which were left out.
    #[test]
    fn updates_agree_with_a_plain_list(sets in proptest::collection::vec(proptest::collection::vec(0u32..30, 0..40), 1..12)) {
        let mut balancer = of(Strategy::First, 0);
        let mut members: BTreeSet<u32> = BTreeSet::new();
        for set in sets {
            let changes = balancer.update(start(), set.iter().copied().map(Provider::new));
            let mut seen = BTreeSet::new();
            let list: Vec<u32> = set.iter().copied().filter(|key| seen.insert(*key)).collect();
            prop_assert_eq!(changes.duplicates, set.len() - list.len());
            prop_assert_eq!(changes.added, seen.difference(&members).count());
            prop_assert_eq!(changes.removed, members.difference(&seen).count());
            prop_assert_eq!(changes.kept, seen.intersection(&members).count());
            prop_assert_eq!(balancer.providers().map(|provider| *provider.provider).collect::<Vec<_>>(), list);
            prop_assert!((0..30).all(|key| balancer.contains(&key) == seen.contains(&key)));
            members = seen;
        }
    }
}

#[test]
fn a_set_beyond_the_limit_is_cut_and_says_so() {
    let mut balancer = of(Strategy::Random, 0);
    let changes = balancer.update(start(), (0..macula_select::MAX_PROVIDERS as u32 + 5).map(Provider::new));
    assert_eq!((changes.added, changes.over_limit), (macula_select::MAX_PROVIDERS, 5));
    assert_eq!(balancer.len(), macula_select::MAX_PROVIDERS);
}

/// With one estimate for all there would be ties; with decay the measured ones win every one of them.
#[test]
fn s4_p2c_tries_every_one_of_a_few_providers_that_answer_alike() {
    for gap in [10, 1_000, 5_000] {
        let mut balancer = common::balancer(3);
        let context = PickContext {
            strategy: Some(Strategy::PeakEwma),
            ..PickContext::default()
        };
        let mut picks = [0; 3];
        for n in 0..300 {
            let lease = balancer.pick(common::at(n * gap), &context).expect("they are usable");
            picks[*balancer.provider(&lease).expect("it is known") as usize] += 1;
            balancer
                .report(common::at(n * gap + 10), lease, Fate::Ok)
                .expect("this balancer issued it");
        }
        assert!(picks.iter().all(|count| *count > 50), "{picks:?} every {gap} ms");
    }
}
