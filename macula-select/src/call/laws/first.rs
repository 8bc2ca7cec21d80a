//! A first attempt by itself is the first attempt of a call: after any story, to the last bit of state.

use std::time::Duration;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::super::{AttemptId, Call, FirstAttempt, Output};
use super::walks::{options, steps, walk};
use super::world::touchy;
use crate::fate::{Fate, Refusal};

proptest! {
    #[test]
    fn a_first_attempt_by_itself_is_that_of_the_call_it_begins(
        members in 0u32..7, seed in any::<u64>(), story in proptest::collection::vec(steps(), 0..60),
        options in options(), waited in 0u64..4_000, took in 0u64..4_000,
    ) {
        let mut world = walk(touchy(), members, seed, story);
        let began = world.now;
        let now = began + Duration::from_millis(waited);
        let later = now + Duration::from_millis(took);
        let mut other = world.balancer.clone();

        let mut call = Call::new(began, options.clone());
        let output = call.poll(now, &mut world.balancer);
        let first = FirstAttempt::start(began, now, &mut other, &options);
        let Output::Dispatch { to, attempt, until, hedge: false } = output else {
            prop_assert!(first.is_none(), "{output:?}");
            let told = Call::new(began, options).poll(now, &mut other);
            prop_assert_eq!(format!("{output:?}"), format!("{told:?}"));
            return Ok(());
        };
        prop_assert_eq!(attempt, AttemptId::FIRST);
        let first = first.expect("the call sends, so it does");
        prop_assert_eq!((*first.to(), first.started(), first.until()), (to, now, until));
        prop_assert_eq!(format!("{:?}", world.balancer), format!("{other:?}"));

        // However it ends.
        let (mut one, mut same) = (world.balancer.clone(), other.clone());
        let mut ended = call.clone();
        ended.on_result(later, &mut one, attempt, Fate::Ok);
        first.clone().succeed(later, &mut same);
        prop_assert_eq!(format!("{one:?}"), format!("{same:?}"));

        let (mut one, mut same) = (world.balancer.clone(), other.clone());
        let mut ended = call.clone();
        ended.cancel(later, &mut one);
        first.clone().cancel(later, &mut same);
        prop_assert_eq!(format!("{one:?}"), format!("{same:?}"));

        let mut went_on = first.into_call(options);
        prop_assert_eq!(format!("{call:?}"), format!("{went_on:?}"));
        for call in [(&mut call, &mut world.balancer), (&mut went_on, &mut other)] {
            let (call, balancer) = call;
            call.on_result(later, balancer, attempt, Fate::refused(Refusal::Overloaded));
        }
        prop_assert_eq!(
            format!("{:?}", call.poll(later, &mut world.balancer)), format!("{:?}", went_on.poll(later, &mut other))
        );
    }
}
