//! F7: what the end of a call's time means.

use std::time::{Duration, Instant};

use macula_select::{Balancer, BalancerConfig, Call, CallError, CallOptions, Output, Provider};

#[test]
fn f7_the_last_provider_hanging_until_the_deadline_is_a_deadline_and_not_exhaustion() {
    let now = Instant::now();
    let mut balancer = Balancer::new(BalancerConfig::default(), 1);
    balancer.update(now, [Provider::new("only")]);
    let timeout = Duration::from_millis(300);
    let mut call = Call::new(
        now,
        CallOptions {
            timeout,
            ..CallOptions::default()
        },
    );
    let Output::Dispatch { attempt, until, .. } = call.poll(now, &mut balancer) else {
        panic!("it is sent")
    };
    assert_eq!(until, now + timeout);
    assert!(matches!(call.poll(until, &mut balancer), Output::Abort { attempt: aborted } if aborted == attempt));
    let Output::Done(end) = call.poll(until, &mut balancer) else {
        panic!("it is over")
    };
    assert!(matches!(end.unwrap_err(), CallError::DeadlineExceeded { .. }));
}
