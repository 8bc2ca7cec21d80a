//! H4: answers that come fast because nothing was done attract no traffic.

mod common;

use common::{at, balancer};
use macula_select::{Balancer, Code, Fate, PickContext, Refusal, Strategy};

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

/// Three providers that were measured at 10 ms; then provider 0 meets this fate within 1 ms, the others go on. Its share of
/// 3 000 picks.
fn share_of_a_fast_answer(fate: Fate) -> u32 {
    let mut balancer = balancer(3);
    let context = PickContext {
        strategy: Some(Strategy::PeakEwma),
        ..PickContext::default()
    };
    let leases = [0, 1, 2].map(|key| pick_only(&mut balancer, 0, key));
    for lease in leases {
        balancer
            .report(at(10), lease, Fate::Ok)
            .expect("this balancer issued it");
    }
    let (mut now, mut picks) = (100, 0);
    for _ in 0..3_000 {
        let lease = balancer.pick(at(now), &context).expect("they are usable");
        if balancer.provider(&lease) == Some(&0) {
            picks += 1;
            now += 1;
            balancer.report(at(now), lease, fate).expect("this balancer issued it");
        } else {
            now += 10;
            balancer
                .report(at(now), lease, Fate::Ok)
                .expect("this balancer issued it");
        }
    }
    picks
}

#[test]
fn h4_a_provider_that_refuses_fast_attracts_no_traffic() {
    let picks = share_of_a_fast_answer(Fate::refused(Refusal::Overloaded));
    assert!(picks < 100, "{picks} of 3000");
}

#[test]
fn h4_a_provider_that_answers_the_callers_fault_fast_gets_no_more_than_its_share() {
    let picks = share_of_a_fast_answer(Fate::answered(Code::NotFound));
    assert!(picks < 1_200, "{picks} of 3000");
}
