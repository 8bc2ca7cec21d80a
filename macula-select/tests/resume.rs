//! D12: a call goes on when the directory, asked again, gives other providers.

mod common;

use common::{at, balancer, start};
use macula_select::{AttemptId, Balancer, Call, CallError, CallOptions, Code, Fate, Output, Provider, Strategy};

const FAILED: Fate = Fate::Answered {
    code: Code::Unavailable,
    pushback: None,
};

/// In order, so that the tests can name providers.
fn first() -> CallOptions {
    CallOptions {
        strategy: Some(Strategy::First),
        ..CallOptions::default()
    }
}

#[track_caller]
fn dispatched(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64) -> (u32, AttemptId) {
    match call.poll(at(now), balancer) {
        Output::Dispatch { to, attempt, .. } => (to, attempt),
        other => panic!("it should dispatch, not {other:?}"),
    }
}

#[track_caller]
fn fails(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64) -> CallError<u32> {
    match call.poll(at(now), balancer) {
        Output::Done(Err(error)) => error,
        other => panic!("it should fail, not {other:?}"),
    }
}

#[test]
fn d12_a_call_whose_providers_are_all_tried_goes_on_with_new_ones() {
    let mut balancer = balancer(1);
    let mut call = Call::new(start(), first());
    let (_, attempt) = dispatched(&mut call, &mut balancer, 0);
    call.on_result(at(1), &mut balancer, attempt, FAILED);
    let error = fails(&mut call, &mut balancer, 1);
    assert!(matches!(error, CallError::AllProvidersFailed { .. }));
    assert!(
        !call.resume(at(2), &mut balancer, |_| true),
        "the one that failed has answered"
    );
    balancer.update(at(3), [0, 7].map(Provider::new));
    assert!(call.resume(at(3), &mut balancer, |_| false));
    let (to, attempt) = dispatched(&mut call, &mut balancer, 3);
    assert_eq!(to, 7);
    call.on_result(at(4), &mut balancer, attempt, Fate::Ok);
    assert!(matches!(call.poll(at(4), &mut balancer), Output::Done(Ok(_))));
    assert!(!call.resume(at(5), &mut balancer, |_| true), "it has succeeded");
}

#[test]
fn d12_a_provider_that_nothing_was_sent_to_is_tried_again_when_its_record_is_fresh() {
    let mut balancer = balancer(1);
    let mut call = Call::new(start(), first());
    let (to, attempt) = dispatched(&mut call, &mut balancer, 0);
    call.on_result(at(1), &mut balancer, attempt, Fate::NotSent);
    fails(&mut call, &mut balancer, 1);
    assert!(!call.resume(at(2), &mut balancer, |_| false));
    balancer.renew(at(3), &to);
    assert!(call.resume(at(3), &mut balancer, |_| true));
    let (again, attempt) = dispatched(&mut call, &mut balancer, 3);
    assert_eq!(again, to);
    call.on_result(at(4), &mut balancer, attempt, Fate::Ok);
    assert!(matches!(call.poll(at(4), &mut balancer), Output::Done(Ok(_))));
}
