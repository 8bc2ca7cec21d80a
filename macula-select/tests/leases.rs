//! What happens to leases that are lost, late, or reported to the wrong balancer (Y21).

mod common;

use std::time::Duration;

use common::{at, balancer, start};
use macula_select::{Call, CallOptions, Code, Fate, FirstAttempt, ForeignLease, Lease, Output, PickContext};
use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

fn pick(balancer: &mut macula_select::Balancer<u32>, now: u64, timeout: u64) -> Lease {
    let context = PickContext {
        timeout: Duration::from_millis(timeout),
        ..PickContext::default()
    };
    balancer.pick(at(now), &context).expect("there are providers")
}

#[test]
fn y21_a_lease_of_another_balancer_is_refused_and_stays_good() {
    let (mut one, mut other) = (balancer(2), balancer(2));
    let lease = pick(&mut one, 0, 1_000);
    assert_eq!(other.provider(&lease), None);
    let Err(ForeignLease(lease)) = other.report(at(1), lease, Fate::Ok) else {
        panic!("it is not one of its own");
    };
    assert_eq!((other.stats().reported, other.stats().in_flight()), (0, 0));
    assert!(one.report(at(2), lease, Fate::Ok).is_ok());
    assert_eq!((one.stats().reported, one.stats().in_flight()), (1, 0));
}

#[test]
fn y21_a_lease_that_was_issued_after_a_balancer_was_cloned_is_refused_by_the_clone() {
    let mut one = balancer(1);
    let before = pick(&mut one, 0, 1_000);
    let mut clone = one.clone();
    let after = pick(&mut one, 0, 1_000);
    assert!(clone.report(at(1), after, Fate::Ok).is_err());
    assert!(clone.report(at(1), before, Fate::Ok).is_ok());
    assert_eq!(clone.stats().in_flight(), 0);
}

#[test]
fn y21_lost_leases_are_counted_and_reclaimed_at_their_deadline() {
    let mut balancer = balancer(1);
    for n in 0..50 {
        drop(pick(&mut balancer, 0, 1_000 + n));
    }
    balancer.handle_timeout(at(999));
    assert_eq!((balancer.stats().lost, balancer.stats().in_flight()), (0, 50));
    assert_eq!(balancer.poll_timeout(), Some(at(1_000)));
    balancer.handle_timeout(at(1_000));
    assert_eq!((balancer.stats().lost, balancer.stats().in_flight()), (1, 49));
    balancer.handle_timeout(at(2_000));
    assert_eq!((balancer.stats().lost, balancer.stats().in_flight()), (50, 0));
    assert_eq!(balancer.providers().next().map(|provider| provider.in_flight), Some(0));
    assert_eq!(balancer.poll_timeout(), None);
}

#[test]
fn y21_a_late_report_is_learned_from_and_no_longer_lost() {
    let mut balancer = balancer(1);
    let late = pick(&mut balancer, 0, 1_000);
    balancer.handle_timeout(at(1_000));
    let fresh = pick(&mut balancer, 1_000, 1_000);
    balancer
        .report(at(1_001), late, Fate::answered(Code::Internal))
        .expect("this balancer issued it");
    let stats = balancer.stats();
    assert_eq!(
        (stats.issued, stats.reported, stats.lost, stats.in_flight()),
        (2, 1, 0, 1)
    );
    let provider = balancer.providers().next().expect("there is one");
    assert_eq!((provider.in_flight, provider.counts.failed), (1, 1));
    balancer
        .report(at(1_002), fresh, Fate::Ok)
        .expect("this balancer issued it");
}

/// A call's leases end with its attempts.
#[test]
fn y21_dropped_calls_are_reclaimed_when_their_attempts_time_out() {
    let mut balancer = balancer(3);
    let options = CallOptions {
        attempt_timeout: Duration::from_millis(700),
        ..CallOptions::default()
    };
    let mut call = Call::new(start(), options.clone());
    assert!(matches!(call.poll(start(), &mut balancer), Output::Dispatch { .. }));
    drop(call);
    drop(FirstAttempt::start(start(), start(), &mut balancer, &options).expect("there are providers"));
    assert_eq!(balancer.stats().in_flight(), 2);
    balancer.handle_timeout(at(700));
    assert_eq!((balancer.stats().in_flight(), balancer.stats().lost), (0, 2));
}

proptest! {
    /// Law 2: leases issued = reported + lost + in flight, and every provider's part of them adds up.
    #[test]
    fn y21_every_lease_is_reported_lost_or_in_flight(
        steps in proptest::collection::vec((0u8..5, 0u64..900, 0usize..64), 1..200),
    ) {
        let mut balancer = balancer(3);
        let mut leases = Vec::new();
        let (mut now, mut issued, mut reported) = (0, 0, 0);
        for (kind, time, which) in steps {
            match kind {
                0..2 => {
                    leases.push((pick(&mut balancer, now, time), now + time));
                    issued += 1;
                }
                2 if !leases.is_empty() => {
                    let (lease, _) = leases.swap_remove(which % leases.len());
                    prop_assert!(balancer.report(at(now), lease, Fate::Ok).is_ok());
                    reported += 1;
                }
                _ => {
                    now += time;
                    balancer.handle_timeout(at(now));
                    let overdue = leases.iter().filter(|(_, until)| *until <= now).count() as u64;
                    prop_assert_eq!(balancer.stats().lost, overdue);
                }
            }
            let stats = balancer.stats();
            prop_assert_eq!((stats.issued, stats.reported), (issued, reported));
            let held: u32 = balancer.providers().map(|provider| provider.in_flight).sum();
            prop_assert_eq!(u64::from(held), stats.in_flight());
        }
    }
}
