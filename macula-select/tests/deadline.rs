//! F7: what the end of a call's time means.

use std::time::{Duration, Instant};

use macula_select::{Balancer, BalancerConfig, Call, CallError, CallOptions, Fate, Loss, Output, Provider, Strategy};

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

/// F8, H2: a provider is not blamed for the time that others took.
#[test]
fn h2_an_attempt_cut_short_by_the_deadline_is_not_its_providers_failure() {
    let now = Instant::now();
    let mut balancer = Balancer::new(BalancerConfig::default(), 1);
    balancer.update(now, ["slow", "late"].map(Provider::new));
    let mut call = Call::new(
        now,
        CallOptions {
            timeout: Duration::from_millis(1_010),
            attempt_timeout: Duration::from_secs(1),
            strategy: Some(Strategy::First),
            ..CallOptions::default()
        },
    );
    assert!(matches!(
        call.poll(now, &mut balancer),
        Output::Dispatch { to: "slow", .. }
    ));
    let later = now + Duration::from_secs(1);
    assert!(matches!(call.poll(later, &mut balancer), Output::Abort { .. }));
    assert!(matches!(
        call.poll(later, &mut balancer),
        Output::Dispatch { to: "late", .. }
    ));
    let end = call.deadline();
    assert!(matches!(call.poll(end, &mut balancer), Output::Abort { .. }));
    let Output::Done(Err(CallError::DeadlineExceeded { attempts })) = call.poll(end, &mut balancer) else {
        panic!("its time is over")
    };
    assert!(
        attempts
            .iter()
            .all(|attempt| attempt.fate() == Fate::Unknown(Loss::TimedOut))
    );
    let failed: Vec<_> = balancer.providers().map(|provider| provider.counts.failed).collect();
    assert_eq!(failed, [1, 0]);
}
