//! F7: what the end of a call's time means.

use std::time::{Duration, Instant};

use macula_select::{Balancer, BalancerConfig, Call, CallError, CallOptions, Fate, Loss, Output, Provider};

/// A shell whose own timer fires at the deadline reports the attempt before it polls.
#[test]
fn f7_the_last_provider_reported_lost_at_the_deadline_is_a_deadline_and_not_exhaustion() {
    let now = Instant::now();
    let mut balancer = Balancer::new(BalancerConfig::default(), 1);
    balancer.update(now, [Provider::new("only")]);
    let timeout = Duration::from_millis(300);
    let options = CallOptions {
        timeout,
        ..CallOptions::default()
    };
    let mut call = Call::new(now, options);
    let Output::Dispatch { attempt, until, .. } = call.poll(now, &mut balancer) else {
        panic!("it is sent")
    };
    assert_eq!(until, now + timeout);
    call.on_result(until, &mut balancer, attempt, Fate::Unknown(Loss::TimedOut));
    let Output::Done(Err(error)) = call.poll(until, &mut balancer) else {
        panic!("it has failed")
    };
    assert!(matches!(error, CallError::DeadlineExceeded { .. }), "{error}");
}
