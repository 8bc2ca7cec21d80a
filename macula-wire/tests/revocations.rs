//! The laws of revocations (A6).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use bytes::Bytes;
use macula_wire::{
    AccessError, CLOCK_TOLERANCE_SECS, Effect, Grant, GrantRole, Issue, MAX_ADMITTED_BY, MAX_CHAIN_BYTES,
    MAX_GRANT_SECS, MAX_ORDERS, MAX_ORDERS_OF_SIGNER, Member, NodeId, Order, Patterns, Realm, RealmKey, RealmName,
    Revocations, SecretKey, SignedRevocations, Signer,
};
use proptest::prelude::*;

const NOW: u64 = 1_700_000_000;

fn key() -> RealmKey {
    RealmKey::from_bytes(&[9; 32])
}

fn realm() -> Realm {
    key().realm(RealmName::new("shop").unwrap())
}

fn node(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

fn id(n: u8) -> NodeId {
    node(n).node_id()
}

fn grant(n: u8) -> Grant {
    Grant::new(&realm(), id(n), NOW - 1000..=NOW + 1000)
}

/// Nodes 1 and 2 are issuers, of which 2 may revoke the members of the other.
fn issuer(n: u8) -> Member {
    let right = Issue::new(GrantRole::Node, Patterns::all(), Patterns::all());
    let right = if n == 2 { right.with_revoke() } else { right };
    grant(n)
        .with_issue(right)
        .sign(&key())
        .unwrap()
        .verify(&realm(), NOW)
        .unwrap()
}

/// Node `n` with a grant of `by`: 0 is the realm's key.
fn member(n: u8, by: u8) -> Member {
    let chain = match by {
        0 => grant(n).sign(&key()),
        by => grant(n).issue(&issuer(by), &node(by)),
    };
    chain.unwrap().verify(&realm(), NOW).unwrap()
}

/// Orders of `by`: 0 is the realm's key.
fn signed(by: u8, orders: impl IntoIterator<Item = Order>) -> SignedRevocations {
    match by {
        0 => SignedRevocations::sign(&realm(), &key(), orders),
        by => SignedRevocations::issue(&realm(), &issuer(by), &node(by), orders),
    }
    .unwrap()
}

fn known(lists: &[SignedRevocations]) -> Revocations {
    let mut known = Revocations::new(realm());
    for list in lists {
        known.merge(list, NOW).unwrap();
    }
    known
}

fn is_revoked(lists: &[SignedRevocations], member: &Member) -> bool {
    known(lists).check(member, NOW).is_err()
}

#[test]
fn a6_the_realms_word_ends_every_grant_of_a_node_and_of_an_issuer() {
    let list = [signed(0, [Order::revoke(id(7), NOW)])];
    assert!(is_revoked(&list, &member(7, 0)) && is_revoked(&list, &member(7, 1)));
    assert!(!is_revoked(&list, &member(8, 1)));
    let list = [signed(0, [Order::revoke(id(1), NOW)])];
    assert_eq!(known(&list).check(&member(7, 1), NOW), Err(AccessError::Revoked(id(1))));
    assert!(is_revoked(&list, &issuer(1)) && !is_revoked(&list, &member(7, 2)));
}

#[test]
fn a6_an_issuer_revokes_its_own_members_and_with_the_right_those_of_others() {
    let of = |by| [signed(by, [Order::revoke(id(7), NOW)])];
    assert!(is_revoked(&of(1), &member(7, 1)));
    assert!(!is_revoked(&of(1), &member(7, 2)), "another issuer's member");
    assert!(is_revoked(&of(2), &member(7, 1)), "it may revoke any issuer's members");
    assert!(
        !is_revoked(&of(2), &member(7, 0)),
        "the realm's own members are the realm's"
    );
    let against = [signed(2, [Order::revoke(id(1), NOW)])];
    assert!(
        !is_revoked(&against, &issuer(1)) && !is_revoked(&against, &member(7, 1)),
        "no issuer revokes an issuer"
    );
}

#[test]
fn a6_the_orders_of_a_revoked_issuer_do_not_count_and_the_members_that_come_back_are_named() {
    let shut_out = [7, 8, 9].map(|n| Order::revoke(id(n), NOW - 10));
    let mut list = vec![
        signed(2, shut_out),
        signed(1, [Order::revoke(id(6), NOW - 10)]),
        signed(0, [Order::revoke(id(8), NOW - 5)]),
    ];
    assert!(is_revoked(&list, &member(7, 1)));
    let out = [2, 1].map(|n| signed(0, [Order::revoke(id(n), NOW)]));
    assert_eq!(known(&list).readmitted_by(&out[0], NOW), []);
    list.extend(out.clone());
    // Node 3 is the issuer that is left.
    assert!(!is_revoked(&list, &member(7, 3)) && is_revoked(&list, &member(8, 3)));
    let mut back = [id(7), id(9)];
    back.sort_unstable();
    assert_eq!(known(&list).readmitted_by(&out[0], NOW), back);
    // It could shut out its own members alone, and they are out with it.
    assert_eq!(known(&list).readmitted_by(&out[1], NOW), []);
    assert!(is_revoked(&list, &member(6, 1)));
}

/// Its key is trusted still: it has lost some rights.
#[test]
fn a6_the_orders_of_an_issuer_that_is_given_other_rights_stay_in_force() {
    let list = [
        signed(2, [Order::revoke(id(7), NOW - 10)]),
        signed(0, [Order::revoke_present(id(2), NOW)]),
    ];
    assert!(is_revoked(&list, &issuer(2)) && is_revoked(&list, &member(7, 1)));
}

/// Grants of node 7, each renewed by the next issuer as an honest one does.
fn renewed_by(by: &[u8]) -> Member {
    let mut last = member(7, by[0]);
    for n in &by[1..] {
        let renewed = grant(7).with_admitted_by(last.renewed_by(&id(*n)));
        let chain = renewed.issue(&issuer(*n), &node(*n)).unwrap();
        last = chain.verify(&realm(), NOW).unwrap();
    }
    last
}

/// The thief of the key of issuer 1 lets a node in, and honest issuers renew its grant.
#[test]
fn a6_a_member_does_not_outlive_a_stolen_issuer_by_a_renewal_at_another() {
    let out = [signed(0, [Order::revoke(id(1), NOW)])];
    for by in [&[1, 3][..], &[1, 3, 4], &[1, 3, 1, 3], &[3, 1, 3], &[3, 1, 4]] {
        let member = renewed_by(by);
        assert_eq!(
            known(&out).check(&member, NOW),
            Err(AccessError::Revoked(id(1))),
            "{by:?}"
        );
        assert_eq!(member.admitted_by()[0], id(by[0]));
    }
    assert!(!is_revoked(&out, &renewed_by(&[3, 4, 3])));
    assert_eq!(
        (renewed_by(&[3, 3]).admitted_by(), renewed_by(&[3, 4]).admitted_by()),
        (&[][..], &[id(3)][..])
    );
    // The thief names another issuer as the one that let the node in. The honest one names the signer all the same.
    let washed = grant(7).with_admitted_by([id(3)]).issue(&issuer(1), &node(1)).unwrap();
    let washed = washed.verify(&realm(), NOW).unwrap();
    assert_eq!(washed.renewed_by(&id(3)), [id(3), id(1)]);
    // What the issuer gave before it got other rights is void as well, and what it gives afterwards is good.
    let narrowed = [signed(0, [Order::revoke_present(id(1), NOW - 500)])];
    assert!(is_revoked(&narrowed, &renewed_by(&[1, 3])));
    let later = Grant::new(&realm(), id(7), NOW - 400..=NOW + 1000).with_admitted_by([id(1)]);
    let later = later
        .issue(&issuer(3), &node(3))
        .unwrap()
        .verify(&realm(), NOW)
        .unwrap();
    assert!(!is_revoked(&narrowed, &later));
}

#[test]
fn a6_so_many_issuers_renew_a_grant_in_turn_and_no_more() {
    let by: Vec<u8> = (10..).take(MAX_ADMITTED_BY + 1).collect();
    let member = renewed_by(&by);
    assert_eq!(member.admitted_by().len(), MAX_ADMITTED_BY);
    assert!(member.chain().unwrap().as_bytes().len() <= MAX_CHAIN_BYTES);
    let again = grant(7).with_admitted_by(member.renewed_by(&id(by[0])));
    assert_eq!(
        again.issue(&issuer(by[0]), &node(by[0])),
        Err(AccessError::TooManyRenewers)
    );
}

/// The member was let in by the one issuer, and renewed by the other.
#[test]
fn a6_an_issuer_revokes_the_members_that_it_let_in_whichever_issuer_renewed_them() {
    let renewed = |by: u8, first: u8| {
        let chain = grant(7).with_admitted_by([id(first)]).issue(&issuer(by), &node(by));
        chain.unwrap().verify(&realm(), NOW).unwrap()
    };
    let order = [signed(1, [Order::revoke(id(7), NOW)])];
    assert!(!is_revoked(&order, &member(7, 3)), "another issuer's member");
    assert!(is_revoked(&order, &renewed(3, 1)));
    assert!(!is_revoked(&order, &renewed(3, 4)));
    let later = [signed(3, [Order::revoke(id(7), NOW)])];
    assert!(is_revoked(&later, &renewed(3, 1)), "the issuer of the present grant");
}

/// The node gets other rights and keeps its key: what it had is void, renewed or not, and what it is given afterwards is good.
#[test]
fn a6_a_revocation_of_the_present_grants_leaves_a_way_back() {
    let from = |begin: u64| Grant::new(&realm(), id(7), begin..=NOW + 1000);
    let by = |grant: Grant, by: u8| {
        let chain = grant.issue(&issuer(by), &node(by));
        chain.unwrap().verify(&realm(), NOW).unwrap()
    };
    for signer in [0, 1] {
        let order = [signed(signer, [Order::revoke_present(id(7), NOW - 10)])];
        assert!(is_revoked(&order, &member(7, 1)), "by {signer}");
        let renewed = from(NOW - 5).with_admitted_at(NOW - 1000).with_admitted_by([id(1)]);
        assert!(is_revoked(&order, &by(renewed.clone(), 1)) && is_revoked(&order, &by(renewed, 3)));
        assert!(!is_revoked(&order, &by(from(NOW - 10), 1)) && !is_revoked(&order, &by(from(NOW - 5), 1)));
        let lifted = [order[0].clone(), signed(signer, [Order::lift(id(7), NOW)])];
        assert!(!is_revoked(&lifted, &member(7, 1)));
        // At one time the stricter order counts.
        let out = [order[0].clone(), signed(signer, [Order::revoke(id(7), NOW - 10)])];
        assert!(is_revoked(&out, &by(from(NOW - 5), 1)));
    }
    // So it is with an issuer, and the grants that it signed with its former one.
    let order = [signed(0, [Order::revoke_present(id(1), NOW - 10)])];
    assert!(is_revoked(&order, &issuer(1)) && is_revoked(&order, &member(7, 1)));
    let late = from(NOW - 5).with_admitted_at(NOW - 4).sign(&key());
    assert_eq!(late.unwrap_err(), AccessError::BadDates);
}

/// A stolen issuer's key signs more lists than a newcomer reads at once.
#[test]
fn a6_the_realms_lists_come_first_and_those_of_a_revoked_issuer_last() {
    let crowd: Vec<_> = (10..110).map(|n| signed(1, [Order::revoke(id(n), NOW)])).collect();
    let of_realm = signed(0, [Order::revoke(id(7), NOW)]);
    let honest = signed(3, [Order::revoke(id(8), NOW)]);
    let mut all = known(&crowd);
    all.merge(&honest, NOW).unwrap();
    all.merge(&of_realm, NOW).unwrap();
    assert_eq!((all.lists().len(), &all.lists()[0]), (102, &of_realm));
    let out = signed(0, [Order::revoke(id(1), NOW)]);
    all.merge(&out, NOW).unwrap();
    let lists = all.lists();
    assert_eq!((lists.len(), &lists[2]), (103, &honest));
    assert!([of_realm, out].iter().all(|list| lists[..2].contains(list)));
    // The issuer is let in again, and its orders count again at every node that has read all the lists.
    let shut_out = member(10, 1);
    let mut newcomer = known(&lists);
    assert!(newcomer.check(&shut_out, NOW).is_err());
    for node in [&mut all, &mut newcomer] {
        node.merge(&signed(0, [Order::lift(id(1), NOW + 1)]), NOW).unwrap();
        assert_eq!(node.check(&shut_out, NOW), Err(AccessError::Revoked(id(10))));
    }
    assert_eq!(all.lists(), newcomer.lists());
}

#[test]
fn a6_a_later_order_counts_and_a_replay_of_the_old_one_changes_nothing() {
    let old = signed(0, [Order::revoke(id(7), NOW - 10)]);
    let new = signed(0, [Order::lift(id(7), NOW)]);
    assert!(!is_revoked(&[old.clone(), new.clone(), old.clone()], &member(7, 1)));
    let mut known = known(std::slice::from_ref(&new));
    assert_eq!((known.merge(&old, NOW), known.merge(&new, NOW)), (Ok(false), Ok(false)));
    assert_eq!(known.lists(), [new]);
    // The realm's key takes back the orders of issuers, too.
    let of_issuer = signed(2, [Order::revoke(id(7), NOW - 10)]);
    assert!(!is_revoked(
        &[of_issuer, signed(0, [Order::lift(id(7), NOW)])],
        &member(7, 1)
    ));
}

/// What an operator is told of an order.
#[test]
fn a6_the_effect_of_an_order_is_told_as_it_is() {
    let effect = |before: &[SignedRevocations], list: &SignedRevocations| {
        let mut known = known(before);
        known.merge(list, NOW).unwrap();
        known.effect(list, NOW).unwrap()
    };
    let (revoke, lift) = (
        |by, ago| signed(by, [Order::revoke(id(7), NOW - ago)]),
        |by, ago| signed(by, [Order::lift(id(7), NOW - ago)]),
    );
    for by in [0, 1, 2] {
        assert_eq!(effect(&[], &revoke(by, 5)), Effect::Counts);
        assert_eq!(effect(&[revoke(by, 5)], &revoke(by, 5)), Effect::Counts, "a replay");
        assert_eq!(effect(&[revoke(by, 5)], &lift(by, 4)), Effect::Counts);
        assert_eq!(effect(&[lift(by, 4)], &revoke(by, 5)), Effect::Overruled);
    }
    // The realm's word stands above an issuer's, and an issuer lifts its own orders alone.
    assert_eq!(effect(&[lift(0, 4)], &revoke(1, 5)), Effect::Overruled);
    assert_eq!(
        effect(&[revoke(0, 4)], &revoke(1, 5)),
        Effect::Counts,
        "it is out all the same"
    );
    assert_eq!(effect(&[revoke(0, 9)], &lift(1, 5)), Effect::StillOut);
    assert_eq!(effect(&[revoke(2, 9)], &lift(1, 5)), Effect::StillOut);
    assert_eq!(effect(&[revoke(2, 9)], &lift(0, 5)), Effect::Counts);
    assert_eq!(effect(&[revoke(2, 4)], &lift(0, 5)), Effect::StillOut, "a later order");
    let out = signed(0, [Order::revoke(id(1), NOW)]);
    for order in [revoke(1, 5), lift(1, 5)] {
        assert_eq!(effect(std::slice::from_ref(&out), &order), Effect::SignerRevoked);
    }
    // Of several orders the worst effect is told.
    let two = signed(0, [Order::revoke(id(7), NOW - 5), Order::revoke(id(8), NOW - 5)]);
    assert_eq!(effect(&[lift(0, 4)], &two), Effect::Overruled);
}

#[test]
fn a6_no_stranger_revokes() {
    let mut known = Revocations::new(realm());
    let other = RealmKey::from_bytes(&[8; 32]);
    let other_realm = other.realm(RealmName::new("shop").unwrap());
    let foreign = SignedRevocations::sign(&other_realm, &other, [Order::revoke(id(7), NOW)]).unwrap();
    assert_eq!(known.merge(&foreign, NOW), Err(AccessError::OtherRealm));
    assert_eq!(
        SignedRevocations::sign(&realm(), &other, []).unwrap_err(),
        AccessError::OtherRealm
    );
    let plain = member(7, 0);
    let by_plain = SignedRevocations::issue(&realm(), &plain, &node(7), [Order::revoke(id(8), NOW)]);
    assert_eq!(by_plain.unwrap_err(), AccessError::NotAnIssuer);
    let late = signed(0, [Order::revoke(id(7), NOW + CLOCK_TOLERANCE_SECS + 1)]);
    assert_eq!(
        known.merge(&late, NOW),
        Err(AccessError::FromTheFuture(CLOCK_TOLERANCE_SECS + 1))
    );
    let after_the_issuers_end = signed(1, [Order::revoke(id(7), NOW + 1000)]);
    assert_eq!(
        known.merge(&after_the_issuers_end, NOW + 1000),
        Err(AccessError::BadRevoker)
    );
    assert!(known.lists().is_empty());
    assert_eq!(
        Revocations::new(Realm::default()).merge(&late, NOW),
        Err(AccessError::OtherRealm)
    );
}

#[test]
fn a6_any_flipped_bit_denies() {
    for list in [
        signed(0, [Order::revoke(id(7), NOW)]),
        signed(1, [Order::revoke(id(7), NOW)]),
        signed(0, [Order::revoke_present(id(7), NOW)]),
    ] {
        let bytes = list.encode();
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[at / 8] ^= 1 << (at % 8);
            let mut known = Revocations::new(realm());
            if let Ok(list) = SignedRevocations::decode(flipped.into()) {
                // An order of long ago is no news, whatever its signature.
                assert!(matches!(known.merge(&list, NOW), Err(_) | Ok(false)), "bit {at}");
            }
        }
    }
}

#[test]
fn a6_orders_are_bounded_for_each_signer_and_forgotten_in_the_end() {
    let mut known = Revocations::new(realm());
    let node_id =
        |n: usize| NodeId::from_bytes(std::array::from_fn(|at| n.to_be_bytes().get(at).copied().unwrap_or(0)));
    for list in 0..MAX_ORDERS_OF_SIGNER / MAX_ORDERS {
        let orders = (0..MAX_ORDERS).map(|n| Order::revoke(node_id(list * MAX_ORDERS + n), NOW));
        assert_eq!(known.merge(&signed(1, orders), NOW), Ok(true));
    }
    let more = signed(1, [Order::revoke(node_id(usize::MAX), NOW)]);
    assert_eq!(known.merge(&more, NOW), Err(AccessError::TooManyOrders));
    // What is known can still be changed, and the realm's key has room of its own.
    assert_eq!(
        known.merge(&signed(1, [Order::lift(node_id(0), NOW + 1)]), NOW),
        Ok(true)
    );
    assert_eq!(known.merge(&signed(0, [Order::revoke(id(7), NOW)]), NOW), Ok(true));
    known.expire(NOW + MAX_GRANT_SECS);
    assert_eq!(known.lists().len(), 1, "the order of a second later");
    let too_many = (0..=MAX_ORDERS).map(|n| Order::revoke(node_id(n), NOW));
    assert_eq!(
        SignedRevocations::sign(&realm(), &key(), too_many).unwrap_err(),
        AccessError::BadOrders
    );
}

fn lists() -> impl Strategy<Value = Vec<SignedRevocations>> {
    let order = (prop::sample::select(vec![1_u8, 2, 7, 8]), 0..4_u64, 0..3_usize);
    let order = order.prop_map(|(n, ago, kind)| {
        let make = [Order::lift, Order::revoke_present, Order::revoke][kind];
        make(id(n), NOW - ago)
    });
    let list = (0..3_u8, prop::collection::vec(order, 1..4)).prop_map(|(by, orders)| signed(by, orders));
    prop::collection::vec(list, 0..7)
}

fn verdicts(known: &Revocations) -> Vec<bool> {
    let admitted = |ago: u64| {
        let grant = Grant::new(&realm(), id(7), NOW..=NOW + 1000).with_admitted_at(NOW - ago);
        let chain = grant.issue(&issuer(1), &node(1)).unwrap();
        chain.verify(&realm(), NOW).unwrap()
    };
    let members = [
        admitted(1),
        admitted(2),
        member(7, 0),
        member(7, 1),
        member(7, 2),
        member(8, 1),
        member(8, 2),
        issuer(1),
        issuer(2),
        renewed_by(&[1, 2]),
        renewed_by(&[2, 1, 2]),
    ];
    members.iter().map(|member| known.check(member, NOW).is_ok()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A6: no order of delivery, no replay and no detour through another node changes a verdict.
    #[test]
    fn a6_verdicts_depend_on_the_set_of_orders_alone(lists in lists(), order in any::<prop::sample::Index>(), split: prop::sample::Index) {
        let mut shuffled = lists.clone();
        if !lists.is_empty() {
            shuffled.rotate_left(order.index(lists.len()));
            shuffled.extend(lists.iter().rev().cloned());
        }
        let (one, other) = (known(&lists), known(&shuffled));
        prop_assert_eq!(verdicts(&one), verdicts(&other));
        prop_assert_eq!(one.lists(), other.lists());
        // What a node passes on is as good as all that it heard; and two halves merge to the whole.
        prop_assert_eq!(verdicts(&known(&one.lists())), verdicts(&one));
        let at = if lists.is_empty() { 0 } else { split.index(lists.len()) };
        let halves = [known(&lists[at..]).lists(), known(&lists[..at]).lists()].concat();
        prop_assert_eq!(known(&halves).lists(), one.lists());
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), now: u64) {
        if let Ok(list) = SignedRevocations::decode(Bytes::from(bytes)) {
            prop_assert!(Revocations::new(realm()).merge(&list, now).is_err());
        }
    }
}
