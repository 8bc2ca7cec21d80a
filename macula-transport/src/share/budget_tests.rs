use std::net::{IpAddr, Ipv4Addr};

use macula_wire::Network;
use proptest::prelude::*;

use super::*;

fn holder(network: u8, peer: u8) -> Holder<NodeId> {
    let ip = IpAddr::V4(Ipv4Addr::new(10, 0, network, 1));
    Holder::new(Network::of(ip), NodeId::from_bytes([peer; 32]))
}

fn account(budget: &Arc<Budget>, network: u8, peer: u8) -> Arc<Account> {
    Account::open(budget, holder(network, peer), || ())
}

fn is_taken(hold: &Hold) -> bool {
    hold.is_taken()
}

#[test]
fn x6_a_newcomer_takes_the_largest_hold_of_the_largest_holder() {
    let budget = Budget::new(100, 10, 20);
    let (flooder, honest) = (account(&budget, 1, 1), account(&budget, 2, 2));
    let mut holds: Vec<_> = [30, 50, 20]
        .map(|amount| {
            let mut hold = flooder.hold();
            hold.set(amount).unwrap();
            hold
        })
        .into();
    let charge = honest.charge(5).unwrap();
    assert_eq!(holds.iter().map(is_taken).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(holds[1].set(60), Err(Exhausted), "it is over");
    assert_eq!(budget.used().used, 60);
    assert_eq!(budget.used().evicted, 1);
    assert!(holds[0].set(70).is_ok(), "what is free may be taken again");
    assert_eq!(flooder.charge(1).map(drop), Err(Exhausted));
    assert_eq!(budget.used().refused, 1);
    holds.clear();
    drop(charge);
    drop((flooder, honest));
    assert_eq!(budget.used().used, 0);
}

#[test]
fn x6_a_holder_without_anything_to_take_back_loses_its_connection() {
    let budget = Budget::new(100, 10, 20);
    let ended = Arc::new(AtomicBool::new(false));
    let flag = ended.clone();
    let flooder = Account::open(&budget, holder(1, 1), move || flag.store(true, SeqCst));
    let kept = flooder.charge(100).unwrap();
    let honest = account(&budget, 2, 2);
    let charge = honest.charge(40).unwrap();
    assert!(ended.load(SeqCst));
    assert_eq!(flooder.charge(1).map(drop), Err(Exhausted), "its connection is over");
    drop((kept, charge));
    assert!(budget.used().used <= 10);
}

#[test]
fn x6_units_that_nobody_uses_are_taken_before_anything_is_taken_back() {
    let budget = Budget::new(100, 10, 20);
    let idle: Vec<_> = (0..10).map(|peer| account(&budget, peer, peer)).collect();
    for account in &idle {
        drop(account.charge(1).unwrap());
    }
    assert_eq!(budget.used().used, 100, "each keeps a unit for its next charge");
    let late = account(&budget, 11, 11);
    let _charge = late.charge(95).unwrap();
    assert_eq!((budget.used().evicted, budget.used().refused), (0, 0));
}

#[test]
fn x6_the_connections_of_one_peer_count_together() {
    let budget = Budget::new(100, 10, 20);
    let many: Vec<_> = (0..5).map(|_| account(&budget, 1, 1)).collect();
    let mut holds: Vec<_> = many.iter().map(|account| account.hold()).collect();
    for hold in &mut holds {
        hold.set(20).unwrap();
    }
    let other = account(&budget, 1, 2);
    let _charges: Vec<_> = (0..5).map(|_| other.charge(10).unwrap()).collect();
    assert_eq!(holds.iter().filter(|hold| is_taken(hold)).count(), 3);
    assert!(other.charge(20).is_err(), "it has as much as the other now");
}

#[test]
fn a_forced_charge_makes_the_account_short_until_it_is_given_back() {
    let budget = Budget::new(20, 10, 20);
    let one = account(&budget, 1, 1);
    let _all = one.charge(20).unwrap();
    assert!(!one.is_short());
    let forced = one.force(5);
    assert!(one.is_short());
    drop(forced);
    assert!(!one.is_short());
}

#[tokio::test]
async fn the_owner_of_a_hold_hears_that_it_was_taken_back() {
    let budget = Budget::new(100, 10, 20);
    let (one, two) = (account(&budget, 1, 1), account(&budget, 2, 2));
    let mut hold = one.hold();
    hold.set(100).unwrap();
    let (early, early_too) = (tokio::spawn(hold.taken_back()), hold.taken_back());
    let _charge = two.charge(10).unwrap();
    early.await.unwrap();
    early_too.await;
    hold.taken_back().await;
}

#[derive(Debug, Clone)]
enum Step {
    Charge { who: usize, amount: u64 },
    Force { who: usize, amount: u64 },
    Hold { who: usize, amount: u64 },
    Resize { which: usize, amount: u64 },
    DropCharge { which: usize },
    DropHold { which: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6_usize, 1..60_u64).prop_map(|(who, amount)| Step::Charge { who, amount }),
        (0..6_usize, 1..5_u64).prop_map(|(who, amount)| Step::Force { who, amount }),
        (0..6_usize, 1..60_u64).prop_map(|(who, amount)| Step::Hold { who, amount }),
        (any::<usize>(), 0..90_u64).prop_map(|(which, amount)| Step::Resize { which, amount }),
        any::<usize>().prop_map(|which| Step::DropCharge { which }),
        any::<usize>().prop_map(|which| Step::DropHold { which }),
    ]
}

proptest! {
    /// Against the sum of everything that is charged and was not taken back.
    #[test]
    fn x6_what_is_used_is_granted_and_what_is_granted_is_within_the_capacity(steps in prop::collection::vec(step(), 1..120)) {
        let budget = Budget::new(200, 10, 20);
        let accounts: Vec<_> = (0..6).map(|n| account(&budget, n % 3, n)).collect();
        let mut charges: Vec<(usize, Charge)> = Vec::new();
        let mut holds: Vec<(usize, Hold)> = Vec::new();
        for step in steps {
            match step {
                Step::Charge { who, amount } => charges.extend(accounts[who].charge(amount).ok().map(|it| (who, it))),
                Step::Force { who, amount } => charges.push((who, accounts[who].force(amount))),
                Step::Hold { who, amount } => {
                    let mut hold = accounts[who].hold();
                    if hold.set(amount).is_ok() {
                        holds.push((who, hold));
                    }
                }
                Step::Resize { which, amount } if !holds.is_empty() => {
                    let at = which % holds.len();
                    let before = holds[at].1.amount;
                    if holds[at].1.set(amount).is_err() {
                        prop_assert_eq!(holds[at].1.amount, before);
                    }
                }
                Step::DropCharge { which } if !charges.is_empty() => drop(charges.swap_remove(which % charges.len())),
                Step::DropHold { which } if !holds.is_empty() => drop(holds.swap_remove(which % holds.len())),
                Step::Resize { .. } | Step::DropCharge { .. } | Step::DropHold { .. } => {}
            }
            let mut granted = 0;
            for (who, account) in accounts.iter().enumerate() {
                let charged: u64 = charges.iter().filter(|it| it.0 == who).map(|it| it.1.amount).sum();
                let held: u64 = holds.iter().filter(|it| it.0 == who && !is_taken(&it.1)).map(|it| it.1.amount).sum();
                prop_assert_eq!(account.inner.used.load(SeqCst), charged + held);
                granted += account.inner.granted.load(SeqCst);
            }
            let used = budget.used();
            prop_assert_eq!(used.used, granted);
            prop_assert!(used.used <= used.capacity);
        }
        drop((charges, holds, accounts));
        prop_assert_eq!(budget.used().used, 0);
        prop_assert!(budget.lock().accounts.is_empty());
    }
}
