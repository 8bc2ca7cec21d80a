//! H1 to H4: ejection, probation, restoration, and what never happens.

mod common;

use std::time::Duration;

use common::{at, balancer, balancer_with, start};
use macula_select::{
    Balancer, BalancerConfig, Call, CallOptions, Code, EjectionReason, Event, Fate, Link, Loss, Output, PickContext,
    PickError, ProbeConsent, Provider, ProviderState, Pushback, Refusal, RestoreReason, Strategy,
};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const FAILED: Fate = Fate::Answered {
    code: Code::Internal,
    pushback: None,
};

/// Picks this provider, by excluding all others.
fn pick_only(balancer: &mut Balancer<u32>, now: u64, key: u32) -> macula_select::Lease {
    let exclude: Vec<u32> = balancer
        .providers()
        .map(|provider| *provider.provider)
        .filter(|other| *other != key)
        .collect();
    balancer
        .pick(
            at(now),
            &PickContext {
                exclude: &exclude,
                ..PickContext::default()
            },
        )
        .expect("it is usable")
}

fn meet(balancer: &mut Balancer<u32>, now: u64, key: u32, fate: Fate) {
    let lease = pick_only(balancer, now, key);
    balancer.report(at(now), lease, fate).expect("this balancer issued it");
}

fn state(balancer: &Balancer<u32>, key: u32) -> ProviderState {
    balancer
        .providers()
        .find(|provider| *provider.provider == key)
        .expect("it is in the set")
        .state
}

fn events(balancer: &mut Balancer<u32>) -> Vec<Event<u32>> {
    std::iter::from_fn(|| balancer.poll_event()).collect()
}

/// A set of four with provider 0 ejected at time 0, and until when.
fn one_ejected() -> (Balancer<u32>, u64) {
    let mut balancer = balancer(4);
    for _ in 0..5 {
        meet(&mut balancer, 0, 0, FAILED);
    }
    let Some(Event::Ejected {
        provider: 0,
        until,
        count: 1,
        reason: EjectionReason::ConsecutiveFailures,
    }) = balancer.poll_event()
    else {
        panic!("it is ejected");
    };
    let until = until.duration_since(start()).as_nanos().div_ceil(1_000_000) as u64;
    assert!((2_500..=5_000).contains(&until));
    (balancer, until)
}

/// Law 23: it is their number that counts, not their pace.
#[test]
fn h2_five_failures_in_five_microseconds_open_the_circuit_like_five_in_five_seconds() {
    for pause in [
        Duration::from_micros(1),
        Duration::from_secs(1),
        Duration::from_secs(30),
    ] {
        let mut balancer = balancer(4);
        for n in 0..5 {
            assert_eq!(state(&balancer, 0), ProviderState::Ready);
            let now = start() + pause * n;
            let lease = balancer.pick(
                now,
                &PickContext {
                    exclude: &[1, 2, 3],
                    ..PickContext::default()
                },
            );
            balancer
                .report(now, lease.expect("it is usable"), FAILED)
                .expect("this balancer issued it");
        }
        assert_eq!(state(&balancer, 0), ProviderState::Ejected, "{pause:?}");
    }
}

#[test]
fn h2_a_success_rate_below_half_of_twenty_opens_the_circuit() {
    let mut balancer = balancer(4);
    for n in 0..20 {
        assert_eq!(state(&balancer, 0), ProviderState::Ready, "after {n}");
        meet(&mut balancer, n * 10, 0, if n % 5 < 3 { FAILED } else { Fate::Ok });
    }
    assert_eq!(state(&balancer, 0), ProviderState::Ready, "the twentieth was a success");
    meet(&mut balancer, 300, 0, FAILED);
    assert!(matches!(
        events(&mut balancer)[..],
        [Event::Ejected {
            provider: 0,
            reason: EjectionReason::SuccessRate,
            ..
        }]
    ));
}

#[test]
fn h2_a_probe_decides_after_the_ejection() {
    for (fate, after) in [
        (Fate::Ok, ProviderState::Ready),
        (Fate::answered(Code::NotFound), ProviderState::Ready),
        (FAILED, ProviderState::Ejected),
        (Fate::NotSent, ProviderState::Ejected),
        (Fate::Unknown(Loss::TimedOut), ProviderState::Ejected),
        (Fate::Cancelled, ProviderState::HalfOpen),
        (Fate::refused(Refusal::Overloaded), ProviderState::HalfOpen),
    ] {
        let (mut balancer, until) = one_ejected();
        balancer.handle_timeout(at(until));
        assert_eq!(state(&balancer, 0), ProviderState::HalfOpen);
        let lease = balancer
            .pick(at(until), &PickContext::default())
            .expect("there are providers");
        assert!(lease.is_probe());
        assert_eq!(balancer.provider(&lease), Some(&0));
        assert_eq!(events(&mut balancer), [Event::Probing { provider: 0 }]);
        balancer
            .report(at(until), lease, fate)
            .expect("this balancer issued it");
        assert_eq!(state(&balancer, 0), after, "{fate}");
        let failed = balancer.providers().next().map(|provider| provider.counts.failed);
        assert_eq!(
            failed == Some(0),
            after == ProviderState::Ready,
            "a restored provider begins again"
        );
        match (after, &events(&mut balancer)[..]) {
            (
                ProviderState::Ready,
                [
                    Event::Restored {
                        provider: 0,
                        reason: RestoreReason::ProbeSucceeded,
                    },
                ],
            ) => {}
            (
                ProviderState::Ejected,
                [
                    Event::Ejected {
                        count: 2,
                        reason: EjectionReason::ProbeFailed,
                        ..
                    },
                ],
            ) => {}
            (ProviderState::HalfOpen, []) => {}
            other => panic!("{fate}: {other:?}"),
        }
    }
}

/// Law 15.
#[test]
fn h2_one_probe_at_a_time() {
    let (mut balancer, until) = one_ejected();
    let probe = balancer
        .pick(at(until), &PickContext::default())
        .expect("there are providers");
    assert!(probe.is_probe());
    for _ in 0..100 {
        let lease = balancer
            .pick(at(until), &PickContext::default())
            .expect("there are providers");
        assert!(!lease.is_probe() && balancer.provider(&lease) != Some(&0));
        balancer
            .report(at(until), lease, Fate::Ok)
            .expect("this balancer issued it");
    }
    balancer
        .report(at(until), probe, Fate::Ok)
        .expect("this balancer issued it");
}

/// Laws 16 and 17: a probe that is not reported is replaced, and decides nothing when it comes after all.
#[test]
fn h2_a_lost_probe_frees_itself_and_a_late_one_decides_nothing() {
    let (mut balancer, until) = one_ejected();
    let lost = balancer
        .pick(at(until), &PickContext::default())
        .expect("there are providers");
    let later = until + 10_001;
    balancer.handle_timeout(at(later));
    assert_eq!(state(&balancer, 0), ProviderState::HalfOpen);
    let probe = balancer
        .pick(at(later), &PickContext::default())
        .expect("there are providers");
    assert!(probe.is_probe());
    balancer
        .report(at(later), lost, Fate::Ok)
        .expect("this balancer issued it");
    assert_eq!(state(&balancer, 0), ProviderState::Probing);
    balancer
        .report(at(later), probe, FAILED)
        .expect("this balancer issued it");
    assert_eq!(state(&balancer, 0), ProviderState::Ejected);
}

/// Law 16.
#[test]
fn h2_stragglers_from_before_the_ejection_decide_nothing() {
    let mut balancer = balancer(4);
    let stragglers: Vec<_> = (0..3).map(|_| pick_only(&mut balancer, 0, 0)).collect();
    for _ in 0..5 {
        meet(&mut balancer, 0, 0, FAILED);
    }
    for (lease, fate) in stragglers.into_iter().zip([Fate::Ok, FAILED, Fate::Cancelled]) {
        balancer.report(at(1), lease, fate).expect("this balancer issued it");
        assert_eq!(state(&balancer, 0), ProviderState::Ejected);
    }
    assert_eq!(balancer.stats().ejections, 1);
}

#[test]
fn a_call_that_cannot_be_retried_is_a_probe_only_after_a_while() {
    let (mut balancer, until) = one_ejected();
    let reluctant = PickContext {
        probe: ProbeConsent::Reluctant,
        ..PickContext::default()
    };
    for (now, probes) in [(until, false), (until + 4_900, false), (until + 5_100, true)] {
        let lease = balancer.pick(at(now), &reluctant).expect("there are providers");
        assert_eq!(lease.is_probe(), probes, "at {now}");
        balancer
            .report(at(now), lease, Fate::Ok)
            .expect("this balancer issued it");
    }
}

/// Y12.
#[test]
fn h2_a_new_connection_and_a_fresh_record_close_the_circuit() {
    for (renew, reason) in [(false, RestoreReason::Connected), (true, RestoreReason::Renewed)] {
        let (mut balancer, _) = one_ejected();
        if renew {
            balancer.renew(at(1), &0);
        } else {
            balancer.link(at(1), &0, Link::Up);
        }
        assert_eq!(state(&balancer, 0), ProviderState::Ready);
        assert_eq!(events(&mut balancer), [Event::Restored { provider: 0, reason }]);
    }
}

/// A connection that is there already says nothing new.
#[test]
fn h2_the_end_of_a_suspicion_leaves_the_circuit_open() {
    let mut balancer = balancer(4);
    balancer.link(start(), &0, Link::Up);
    for _ in 0..5 {
        meet(&mut balancer, 0, 0, FAILED);
    }
    balancer.link(at(1), &0, Link::Suspected);
    assert_eq!(state(&balancer, 0), ProviderState::Suspected);
    balancer.link(at(2), &0, Link::Up);
    assert_eq!(state(&balancer, 0), ProviderState::Ejected);
}

#[test]
fn h3_the_only_provider_is_never_ejected() {
    let mut balancer = balancer(1);
    for _ in 0..50 {
        meet(&mut balancer, 0, 0, FAILED);
    }
    assert_eq!(state(&balancer, 0), ProviderState::Ready);
    assert!(balancer.stats().ejections_capped > 0);
}

/// Law 18, at an update that shrinks the set: those nearest to their return are restored.
#[test]
fn h3_a_shrinking_set_restores_what_exceeds_the_cap() {
    let mut balancer = balancer(6);
    for key in 0..4 {
        for _ in 0..5 {
            meet(&mut balancer, u64::from(key) * 10, key, FAILED);
        }
    }
    let mut ejected: Vec<_> = events(&mut balancer)
        .into_iter()
        .map(|event| match event {
            Event::Ejected { provider, until, .. } => (until, provider),
            other => panic!("{other:?}"),
        })
        .collect();
    ejected.sort_unstable();
    assert_eq!(ejected.len(), 3);
    balancer.update(at(100), [0, 1, 2, 3].map(Provider::new));
    assert_eq!(balancer.stats().ejected, 2);
    let (_, nearest) = ejected[0];
    assert_eq!(
        events(&mut balancer),
        [Event::Restored {
            provider: nearest,
            reason: RestoreReason::CapExceeded
        }]
    );
    // Half-open ones are nearer still.
    let (returns, next) = ejected[1];
    balancer.handle_timeout(returns);
    assert_eq!(state(&balancer, next), ProviderState::HalfOpen);
    balancer.update(returns, [0, 1, 2].map(Provider::new));
    assert_eq!(state(&balancer, next), ProviderState::Ready);
    balancer.update(at(101), [0].map(Provider::new));
    assert_eq!(balancer.stats().ejected, 0);
}

/// Y20: the cap is for overload, and gives way to evidence.
#[test]
fn h3_more_than_half_are_ejected_while_the_rest_succeeds_and_refuses_nothing() {
    let overloaded = Fate::refused(Refusal::Overloaded);
    for (rest, ejected) in [(Some(Fate::Ok), 3), (None, 2), (Some(FAILED), 2), (Some(overloaded), 2)] {
        let mut balancer = balancer(4);
        if let Some(fate) = rest {
            meet(&mut balancer, 0, 3, fate);
        }
        for key in 0..3 {
            for _ in 0..5 {
                meet(&mut balancer, 1, key, FAILED);
            }
        }
        assert_eq!(balancer.stats().ejected, ejected, "{rest:?}");
        if ejected == 3 {
            // The last one is never ejected, and when it fails or refuses, the cap holds again.
            meet(&mut balancer, 2, 3, overloaded);
            assert_eq!(balancer.stats().ejected, 2);
        }
    }
}

/// H3, law 19.
#[test]
fn h3_when_only_ejected_providers_are_left_they_are_picked() {
    let (mut balancer, _) = one_ejected();
    let lease = balancer.pick(
        at(1),
        &PickContext {
            exclude: &[1, 2, 3],
            ..PickContext::default()
        },
    );
    let lease = lease.expect("an untried provider exists");
    assert_eq!((balancer.provider(&lease), lease.is_probe()), (Some(&0), false));
    assert_eq!(balancer.stats().panic_picks, 1);
    balancer
        .report(at(1), lease, Fate::Ok)
        .expect("this balancer issued it");
    assert_eq!(state(&balancer, 0), ProviderState::Ejected, "that was no probe");
}

#[test]
fn panic_is_told_when_it_begins_and_when_it_ends() {
    let mut balancer = balancer(2);
    for key in [0, 1] {
        balancer.link(start(), &key, Link::Down);
    }
    let unreachable = |provider| Event::Unreachable { provider };
    assert_eq!(
        events(&mut balancer),
        [unreachable(0), unreachable(1), Event::PanicEntered]
    );
    assert!(balancer.pick(start(), &PickContext::default()).is_ok_and(|lease| {
        balancer
            .report(start(), lease, Fate::Cancelled)
            .expect("this balancer issued it");
        true
    }));
    balancer.link(at(2_000), &0, Link::Up);
    assert_eq!(events(&mut balancer)[1..], [Event::PanicLeft]);
}

/// Law 21.
#[test]
fn draining_providers_are_never_picked() {
    let mut balancer = balancer(2);
    balancer.link(start(), &0, Link::Draining);
    for _ in 0..50 {
        let lease = balancer.pick(start(), &PickContext::default()).expect("one is left");
        assert_eq!(balancer.provider(&lease), Some(&1));
        balancer
            .report(start(), lease, Fate::Ok)
            .expect("this balancer issued it");
    }
    let exhausted = balancer.pick(
        start(),
        &PickContext {
            exclude: &[1],
            ..PickContext::default()
        },
    );
    assert_eq!(exhausted, Err(PickError::Exhausted));
    balancer.link(at(10), &0, Link::Up);
    meet(&mut balancer, 10, 0, Fate::Ok);
}

#[test]
fn a_pushback_leaves_the_provider_in_peace_for_as_long_as_it_asks_within_bounds() {
    for (asked, held) in [(700, 700), (3_600_000, 30_000)] {
        let mut balancer = balancer(2);
        let pushback = Some(Pushback::After(Duration::from_millis(asked)));
        meet(
            &mut balancer,
            0,
            0,
            Fate::Refused {
                reason: Refusal::Overloaded,
                pushback,
            },
        );
        assert_eq!(state(&balancer, 0), ProviderState::Held);
        assert_eq!(balancer.poll_timeout(), Some(at(held)));
        assert_eq!(
            balancer.providers().next().map(|provider| provider.counts.failed),
            Some(0)
        );
    }
}

/// Law 29.
#[test]
fn a_provider_that_left_and_came_back_is_a_stranger() {
    let (mut balancer, _) = one_ejected();
    let old = pick_only(&mut balancer, 1, 0);
    balancer.update(at(2), [1, 2, 3].map(Provider::new));
    assert_eq!(balancer.provider(&old), None);
    balancer.update(at(3), [0, 1, 2, 3].map(Provider::new));
    assert_eq!(balancer.provider(&old), None);
    assert_eq!(state(&balancer, 0), ProviderState::Ready);
    let fresh = pick_only(&mut balancer, 3, 0);
    balancer.report(at(4), old, FAILED).expect("this balancer issued it");
    let provider = balancer.providers().next().expect("it is first");
    assert_eq!((provider.in_flight, provider.counts.failed), (1, 0));
    balancer
        .report(at(5), fresh, Fate::Ok)
        .expect("this balancer issued it");
    assert_eq!(balancer.stats().in_flight(), 0);
}

/// H4: peak-EWMA keeps away from a provider that fails fast, with the breaker off.
#[test]
fn h4_a_fast_failing_provider_does_not_look_attractive() {
    let mut config = BalancerConfig {
        strategy: Strategy::PeakEwma,
        ..BalancerConfig::default()
    };
    config.health.consecutive_failures = 0;
    config.health.min_success_rate = 0.0;
    let mut balancer = balancer_with(config, 10);
    let mut failures = 0;
    for n in 0..2_000u64 {
        let begin = at(n * 15);
        let lease = balancer
            .pick(begin, &PickContext::default())
            .expect("there are providers");
        let bad = balancer.provider(&lease) == Some(&0);
        failures += u32::from(bad);
        let took = Duration::from_millis(if bad { 1 } else { 10 });
        balancer
            .report(begin + took, lease, if bad { FAILED } else { Fate::Ok })
            .expect("this balancer issued it");
    }
    assert!(failures <= 2, "{failures} of 2000");
}

#[test]
fn a_restored_provider_comes_to_its_share_slowly() {
    let (mut balancer, until) = one_ejected();
    let probe = balancer
        .pick(at(until), &PickContext::default())
        .expect("there are providers");
    balancer
        .report(at(until), probe, Fate::Ok)
        .expect("this balancer issued it");
    let ramp = |balancer: &mut Balancer<u32>, now| {
        balancer.handle_timeout(at(now));
        balancer.providers().next().expect("it is first").ramp
    };
    let shares = [0, 2_000, 5_000, 8_000, 10_000, 20_000].map(|later| ramp(&mut balancer, until + later));
    assert!(shares.is_sorted() && shares[0] <= 0.13 && shares[2] < 0.6, "{shares:?}");
    assert!((shares[4] - 1.0).abs() < f64::EPSILON, "{shares:?}");
    assert_eq!(balancer.poll_timeout(), None, "nothing is left to do");
}

#[test]
fn providers_that_join_a_set_at_work_start_slowly_and_those_of_its_discovery_do_not() {
    let mut balancer = balancer(1);
    let ramps = |balancer: &Balancer<u32>| balancer.providers().map(|provider| provider.ramp).collect::<Vec<_>>();
    balancer.update(at(9_000), [0, 1].map(Provider::new));
    assert!(ramps(&balancer).iter().all(|ramp| *ramp > 0.99));
    balancer.update(at(10_000), [0, 1, 2].map(Provider::new));
    assert!(ramps(&balancer)[..2].iter().all(|ramp| *ramp > 0.99) && ramps(&balancer)[2] < 0.2);
}

#[test]
fn a_loaded_server_gets_less_until_its_report_is_old() {
    let mut config = BalancerConfig {
        strategy: Strategy::LeastLoaded,
        ..BalancerConfig::default()
    };
    config.health.slow_start = Duration::ZERO;
    let mut balancer = balancer_with(config, 2);
    let mut picked = |now, load: Option<f64>| {
        if let Some(load) = load {
            balancer.report_load(at(now), &0, load);
        }
        let mut count = 0;
        for _ in 0..200 {
            let lease = balancer
                .pick(at(now), &PickContext::default())
                .expect("there are providers");
            count += u32::from(balancer.provider(&lease) == Some(&0));
            balancer
                .report(at(now), lease, Fate::Ok)
                .expect("this balancer issued it");
        }
        count
    };
    assert_eq!(picked(0, Some(0.9)), 0);
    assert!(picked(20_000, None) > 60, "an old report does not count");
    assert!(picked(20_001, Some(f64::NAN)) > 60, "nonsense counts as no load");
}

proptest! {
    /// Laws 19 and 31: whatever was reported and however the clock jumps, a usable provider is found.
    #[test]
    fn a_pick_never_fails_while_a_usable_provider_exists(
        steps in proptest::collection::vec((any::<u8>(), 0u64..5_000, 0u32..6), 1..300),
    ) {
        let mut balancer = balancer(4);
        let mut leases = Vec::new();
        let mut draining = [false; 6];
        for (choice, now, key) in steps {
            match choice % 8 {
                0 => {
                    // Which also ends draining: it may have come back.
                    balancer.link(at(now), &key, Link::Down);
                    draining[key as usize] = false;
                }
                1 => {
                    balancer.link(at(now), &key, Link::Draining);
                    draining[key as usize] = key < 4;
                }
                2 => {
                    balancer.link(at(now), &key, Link::Up);
                    draining[key as usize] = false;
                }
                3..6 => {
                    if !leases.is_empty() {
                        let lease = leases.swap_remove(key as usize % leases.len());
                        balancer.report(at(now), lease, if choice > 100 { FAILED } else { Fate::Ok }).expect("this balancer issued it");
                    }
                }
                _ => {
                    let exclude: Vec<u32> = (0..key).collect();
                    let usable = (key..4).any(|key| !draining[key as usize]);
                    match balancer.pick(at(now), &PickContext { exclude: &exclude, ..PickContext::default() }) {
                        Ok(lease) => {
                            let provider = *balancer.provider(&lease).expect("it was just picked");
                            prop_assert!(provider >= key && !draining[provider as usize]);
                            leases.push(lease);
                        }
                        Err(error) => prop_assert_eq!((usable, error), (false, PickError::Exhausted)),
                    }
                }
            }
        }
    }
}

#[test]
fn a_success_after_a_long_error_is_no_longer_than_either() {
    let mut balancer = balancer(1);
    for (sent, came, fate) in [
        (0, 10, Fate::Ok),
        (60_000, 60_100, Fate::answered(Code::NotFound)),
        (60_100, 60_150, Fate::Ok),
    ] {
        let lease = balancer.pick(at(sent), &PickContext::default()).expect("it is usable");
        balancer.report(at(came), lease, fate).expect("this balancer issued it");
    }
    let latency = balancer.providers().next().and_then(|provider| provider.latency);
    assert!(
        latency.is_some_and(|latency| latency <= Duration::from_millis(101)),
        "{latency:?}"
    );
}

#[test]
fn an_overloaded_provider_is_left_in_peace_for_longer_and_longer() {
    let mut balancer = balancer(1);
    let mut now = 0;
    let mut holds = Vec::new();
    for fate in [Fate::refused(Refusal::Overloaded); 7]
        .into_iter()
        .chain([Fate::Ok, Fate::refused(Refusal::Overloaded)])
    {
        let lease = balancer.pick(at(now), &PickContext::default()).expect("it is usable");
        balancer.report(at(now), lease, fate).expect("this balancer issued it");
        let free = balancer.poll_timeout();
        if fate != Fate::Ok {
            let free = free.expect("it is held");
            holds.push((free - at(now)).as_millis());
            now = (free - start()).as_millis() as u64;
            balancer.handle_timeout(free);
        }
    }
    assert_eq!(holds, [100, 200, 400, 800, 1_600, 2_000, 2_000, 100]);
}

/// H3: when the set shrinks, those come back first that were to come back first, no more of them than the cap asks for.
#[test]
fn h3_a_shrinking_set_restores_those_nearest_to_their_return() {
    let mut balancer = balancer(12);
    for key in 0..6 {
        for _ in 0..5 {
            meet(&mut balancer, u64::from(key), key, FAILED);
        }
    }
    let mut until: Vec<_> = std::iter::from_fn(|| balancer.poll_event())
        .filter_map(|event| match event {
            Event::Ejected { provider, until, .. } => Some((until, provider)),
            _ => None,
        })
        .collect();
    until.sort();
    balancer.update(at(10), (0..8).map(Provider::new));
    let restored: Vec<_> = std::iter::from_fn(|| balancer.poll_event())
        .filter_map(|event| match event {
            Event::Restored { provider, .. } => Some(provider),
            _ => None,
        })
        .collect();
    assert_eq!(
        restored,
        until[..2].iter().map(|(_, provider)| *provider).collect::<Vec<_>>()
    );
    assert_eq!(balancer.stats().ejected, 4);
}

#[test]
fn h1_what_the_caller_did_not_send_for_its_own_reasons_says_nothing_of_a_provider() {
    let mut balancer = balancer(2);
    for now in 0..10 {
        let options = CallOptions {
            strategy: Some(Strategy::First),
            ..CallOptions::default()
        };
        let mut call = Call::new(at(now), options);
        let Output::Dispatch { attempt, to: 0, .. } = call.poll(at(now), &mut balancer) else {
            panic!("the first is asked first");
        };
        call.on_withheld(at(now), &mut balancer, attempt);
        let Output::Dispatch { attempt, to: 1, .. } = call.poll(at(now), &mut balancer) else {
            panic!("the call goes on at the other one");
        };
        call.on_result(at(now), &mut balancer, attempt, Fate::Ok);
        assert!(matches!(call.poll(at(now), &mut balancer), Output::Done(Ok(_))));
        assert_eq!(
            call.attempts().iter().next().map(|first| first.fate()),
            Some(Fate::NotSent)
        );
    }
    let first = balancer.providers().next().expect("it is in the set");
    assert_eq!((first.counts.failed, first.consecutive_failures), (0, 0));
}
