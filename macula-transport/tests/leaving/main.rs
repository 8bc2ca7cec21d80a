//! X1: a call that must not run twice never does, whichever side leaves and whenever.

mod scenario;

use std::time::Duration;

use macula_transport::{PoolConfig, testing::LinkConditions};
use scenario::{Fate, Found, Plan, drawn, run_alone};

/// Two providers, one of which leaves in order in the middle of 200 calls; nothing is lost on the way.
fn one_leaves(round_trip: Duration, reply_bytes: usize) {
    let plan = Plan {
        seed: 1,
        link: LinkConditions::new(round_trip / 2),
        calls: 200,
        pace: Duration::from_millis(10),
        reply_bytes,
        work: Duration::ZERO,
        fates: vec![(Duration::from_secs(1), 0, Fate::Leaves(Duration::from_secs(30)))],
        pool: PoolConfig::default(),
    };
    let found = run_alone(&plan);
    let expected = Found {
        answered: 200,
        promised: found.promised,
        ..Found::default()
    };
    assert_eq!(found, expected);
    assert!(found.promised > 0, "no call met the provider that left");
}

#[test]
fn x1_n4_a_provider_that_leaves_far_away_with_large_replies_under_way_fails_and_repeats_no_call() {
    one_leaves(Duration::from_millis(150), 60_000);
}

#[test]
fn x1_n4_a_provider_that_leaves_far_away_with_replies_on_its_lane_fails_and_repeats_no_call() {
    one_leaves(Duration::from_millis(200), 16 * 1024);
    one_leaves(Duration::from_millis(200), 16_000);
}

/// `cargo xtask sim leaving -- 10000` runs as many seeds as one asks for.
#[test]
fn x1_f5_no_call_reported_not_sent_or_refused_runs_whatever_the_seed() {
    let mut all = Found::default();
    for seed in 0..300 {
        let found = run_alone(&drawn(seed));
        assert_eq!(
            (found.broken_promises, found.ran_twice),
            (0, 0),
            "seed {seed}: {found:?}"
        );
        all.add(found);
    }
    assert!(all.answered > 4_000 && all.promised > 2_000, "{all:?}");
}
