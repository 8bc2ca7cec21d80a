//! Long random stories: providers come and go, links break, calls of every kind overlap, the clock jumps.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::{Just, Strategy as Generator, any, prop_oneof, proptest};
use proptest::sample::Index;

use super::super::{CallOptions, Hedge};
use super::world::{World, touchy};
use crate::backoff::Backoff;
use crate::balancer::{BalancerConfig, Locality};
use crate::fate::{Code, Fate, Loss, Pushback, Refusal};
use crate::policy::RetryPolicy;
use crate::provider::Link;
use crate::strategy::Strategy;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Call(CallOptions),
    Result(Index, Index, Fate),
    Straggler(Index, Index, Fate),
    Cancel(Index),
    Pass(u64),
    PassUntilDue,
    Rewind(u64),
    Update(BTreeSet<u32>),
    Link(u32, Link),
    Renew(u32),
    Dial(Link),
    Load(u32, f64),
}

fn fates() -> impl Generator<Value = Fate> {
    let pushback = || {
        prop_oneof![
            4 => Just(None),
            1 => (0u64..3_000).prop_map(|after| Some(Pushback::After(Duration::from_millis(after)))),
            1 => Just(Some(Pushback::Stop)),
        ]
    };
    prop_oneof![
        4 => Just(Fate::Ok),
        2 => Just(Fate::NotSent),
        1 => Just(Fate::Cancelled),
        2 => prop_oneof![Just(Loss::TimedOut), Just(Loss::ConnectionLost)].prop_map(Fate::Unknown),
        2 => (prop_oneof![Just(Refusal::Overloaded), Just(Refusal::Draining), Just(Refusal::NoSuchService)], pushback())
            .prop_map(|(reason, pushback)| Fate::Refused { reason, pushback }),
        4 => (1u32..17, pushback())
            .prop_map(|(number, pushback)| Fate::Answered { code: Code::from_number(number), pushback }),
    ]
}

fn policies() -> impl Generator<Value = RetryPolicy> {
    prop_oneof![
        3 => Just(RetryPolicy::Transient),
        1 => Just(RetryPolicy::Unavailable),
        1 => Just(RetryPolicy::AnyError),
        2 => Just(RetryPolicy::NeverProcessed),
        1 => Just(RetryPolicy::custom(|fate| matches!(fate, Fate::NotSent | Fate::Unknown(_)))),
    ]
}

pub(super) fn options() -> impl Generator<Value = CallOptions> {
    let hedges = prop_oneof![
        Just(None),
        Just(Some(Hedge::AtP95)),
        (0u64..500).prop_map(|after| Some(Hedge::After(Duration::from_millis(after))))
    ];
    let backoffs = prop_oneof![Just(None), Just(Some(Backoff::default()))];
    (
        (
            proptest::option::of(0usize..8),
            proptest::option::of(0u32..6),
            0u64..8_000,
            0u64..3_000,
        ),
        (
            policies(),
            any::<bool>(),
            hedges,
            backoffs,
            proptest::option::of(any::<u64>()),
            any::<bool>(),
        ),
    )
        .prop_map(
            |((strategy, max_attempts, timeout, attempt), (policy, idempotent, hedge, backoff, affinity, ignore))| {
                CallOptions {
                    strategy: strategy.map(|at| Strategy::ALL[at]),
                    max_attempts,
                    timeout: Duration::from_millis(timeout),
                    attempt_timeout: Duration::from_millis(attempt),
                    policy,
                    idempotent,
                    hedge,
                    backoff,
                    affinity,
                    locality: if ignore { Locality::Ignore } else { Locality::Prefer },
                }
            },
        )
}

fn links() -> impl Generator<Value = Link> {
    prop_oneof![
        1 => Just(Link::Idle),
        3 => Just(Link::Up),
        2 => Just(Link::Suspected),
        2 => Just(Link::Down),
        1 => Just(Link::Draining),
    ]
}

pub(super) fn steps() -> impl Generator<Value = Step> {
    let (call, attempt) = (any::<Index>, any::<Index>);
    prop_oneof![
        6 => options().prop_map(Step::Call),
        12 => (call(), attempt(), fates()).prop_map(|(call, attempt, fate)| Step::Result(call, attempt, fate)),
        1 => (call(), attempt(), fates()).prop_map(|(call, attempt, fate)| Step::Straggler(call, attempt, fate)),
        1 => call().prop_map(Step::Cancel),
        2 => (0u64..2_000).prop_map(Step::Pass),
        3 => Just(Step::PassUntilDue),
        1 => (0u64..2_000).prop_map(Step::Rewind),
        1 => proptest::collection::btree_set(0u32..7, 0..7).prop_map(Step::Update),
        4 => (0u32..7, links()).prop_map(|(key, link)| Step::Link(key, link)),
        1 => (0u32..7).prop_map(Step::Renew),
        2 => prop_oneof![2 => Just(Link::Up), 2 => Just(Link::Down), 1 => Just(Link::Idle)].prop_map(Step::Dial),
        1 => (0u32..7, any::<f64>()).prop_map(|(key, load)| Step::Load(key, load)),
    ]
}

pub(super) fn walk(config: BalancerConfig, members: u32, seed: u64, steps: Vec<Step>) -> World {
    let mut world = World::new(config, members, seed);
    let pick = |world: &World, index: Index| {
        let open: Vec<usize> = (0..world.calls.len()).filter(|call| !world.calls[*call].done).collect();
        (!open.is_empty()).then(|| open[index.index(open.len())])
    };
    for step in steps {
        match step {
            Step::Call(options) => world.call(options),
            Step::Result(call, attempt, fate) => {
                if let Some(call) = pick(&world, call)
                    && !world.calls[call].live.is_empty()
                {
                    let attempt = world.calls[call].live[attempt.index(world.calls[call].live.len())];
                    world.result(call, attempt, fate);
                }
            }
            Step::Straggler(call, attempt, fate) => {
                if !world.calls.is_empty() {
                    let call = call.index(world.calls.len());
                    world.result(call, super::super::AttemptId(attempt.index(8) as u32), fate);
                }
            }
            Step::Cancel(call) => {
                if let Some(call) = pick(&world, call) {
                    world.cancel(call);
                }
            }
            Step::Pass(milliseconds) => world.set_clock(world.now + Duration::from_millis(milliseconds)),
            Step::PassUntilDue => {
                if let Some(due) = world.next_due() {
                    world.set_clock(world.now.max(due));
                    world.balancer.handle_timeout(world.now);
                    let next = world.balancer.poll_timeout();
                    assert!(
                        next.is_none_or(|next| next > world.now),
                        "law 35: still due after it was handled"
                    );
                }
            }
            Step::Rewind(milliseconds) => {
                world.set_clock(
                    world
                        .now
                        .checked_sub(Duration::from_millis(milliseconds))
                        .unwrap_or(world.now),
                );
            }
            Step::Update(members) => world.update(members),
            Step::Link(key, link) => world.link(key, link),
            Step::Renew(key) => world.renew(key),
            Step::Dial(outcome) => world.dial(outcome),
            Step::Load(key, load) => world.balancer.report_load(world.now, &key, load),
        }
    }
    for call in 0..world.calls.len() {
        world.cancel(call);
    }
    assert_eq!(
        world.balancer.stats().in_flight(),
        0,
        "law 2: at rest nothing is in flight"
    );
    world
}

proptest! {
    /// Laws 1 to 21, 25 to 27, 31 and 35 hold in every story, with a breaker that opens at one failure.
    #[test]
    fn random_stories_keep_the_laws(
        members in 0u32..7, seed in any::<u64>(), steps in proptest::collection::vec(steps(), 1..120),
    ) {
        walk(touchy(), members, seed, steps);
    }

    /// The same with the default configuration: budget, breaker and all.
    #[test]
    fn random_stories_keep_the_laws_by_default(
        members in 0u32..7, seed in any::<u64>(), steps in proptest::collection::vec(steps(), 1..120),
    ) {
        walk(BalancerConfig::default(), members, seed, steps);
    }

    /// Law 32: the same seed and the same inputs give the same outputs.
    #[test]
    fn the_same_story_ends_the_same(
        members in 0u32..7, seed in any::<u64>(), steps in proptest::collection::vec(steps(), 1..80),
    ) {
        let worlds = [(); 2].map(|()| walk(touchy(), members, seed, steps.clone()));
        let [one, other] = worlds.map(|world| {
            (world.balancer.stats(), world.calls.iter().map(super::world::Watched::story).collect::<Vec<_>>())
        });
        assert_eq!(one, other);
    }
}
