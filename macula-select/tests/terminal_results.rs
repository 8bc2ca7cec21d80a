//! F4's table, S5, F3: how a call ends when no provider answers it well.

mod common;

use common::{balancer, run, start};
use macula_select::{CallError, CallOptions, Code, Fate, Loss, RetryPolicy, StopReason};

const FAILED: Fate = Fate::Answered {
    code: Code::Unavailable,
    pushback: None,
};

#[test]
fn s5_no_provider_is_service_not_found_before_anything_is_selected() {
    let mut balancer = balancer(0);
    assert_eq!(
        run(&mut balancer, CallOptions::default(), |_| Fate::Ok),
        Err(CallError::ServiceNotFound)
    );
    assert_eq!(balancer.stats().issued, 0);
}

#[test]
fn f4_three_of_three_failing_is_all_providers_failed_and_three_of_five_is_max_attempts_exceeded() {
    for (providers, attempts_limit) in [
        (1, None),
        (2, None),
        (3, None),
        (4, None),
        (5, None),
        (2, Some(9)),
        (9, Some(2)),
    ] {
        let options = CallOptions {
            max_attempts: attempts_limit,
            ..CallOptions::default()
        };
        let limit = attempts_limit.unwrap_or(3);
        let error = run(&mut balancer(providers), options, |_| FAILED).expect_err("all fail");
        let attempts = error.attempts().expect("some were made");
        assert_eq!(attempts.len() as u32, limit.min(providers));
        assert!(
            attempts
                .iter()
                .all(|attempt| attempt.fate() == FAILED && attempt.started() == start())
        );
        if providers <= limit {
            assert!(
                matches!(error, CallError::AllProvidersFailed { .. }),
                "{providers}: {error:?}"
            );
        } else {
            assert!(
                matches!(error, CallError::MaxAttemptsExceeded { limit: said, .. } if said == limit),
                "{error:?}"
            );
        }
    }
}

#[test]
fn f4_no_attempts_allowed_sends_nothing() {
    let mut balancer = balancer(3);
    let options = CallOptions {
        max_attempts: Some(0),
        ..CallOptions::default()
    };
    let error = run(&mut balancer, options, |_| Fate::Ok).expect_err("nothing may be sent");
    assert!(matches!(error, CallError::MaxAttemptsExceeded { limit: 0, .. }));
    assert_eq!(balancer.stats().issued, 0);
}

#[test]
fn f5_what_was_not_sent_costs_no_attempt() {
    let error = run(&mut balancer(10), CallOptions::default(), |_| Fate::NotSent).expect_err("none is reachable");
    assert!(
        matches!(&error, CallError::AllProvidersFailed { attempts } if attempts.len() == 10),
        "{error:?}"
    );
}

#[test]
fn f6_a_definitive_answer_is_returned_as_it_is() {
    let answer = Fate::answered(Code::NotFound);
    let error = run(&mut balancer(3), CallOptions::default(), |_| answer).expect_err("it is an error");
    let CallError::NotRetried {
        attempt,
        reason: StopReason::Definitive,
        attempts,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(attempts.get(attempt).map(|attempt| attempt.fate()), Some(answer));
    assert_eq!(attempts.len(), 1);
}

#[test]
fn f6_a_call_that_must_not_run_twice_stops_at_the_first_doubt() {
    let options = CallOptions {
        policy: RetryPolicy::NeverProcessed,
        ..CallOptions::default()
    };
    let fates = [Fate::NotSent, Fate::Unknown(Loss::ConnectionLost), Fate::Ok];
    let error = run(&mut balancer(3), options, |n| fates[n]).expect_err("it may have run");
    assert!(matches!(error, CallError::NotRetried { attempts, .. } if attempts.len() == 2));
}

#[test]
fn errors_say_what_happened_and_what_to_do() {
    let error = run(&mut balancer(3), CallOptions::default(), |_| FAILED).expect_err("all fail");
    assert_eq!(
        error.to_string(),
        "all_providers_failed: 3 attempts, the last answered unavailable; see each attempt for its cause"
    );
}
