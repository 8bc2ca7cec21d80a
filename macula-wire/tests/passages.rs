//! Passages: a router acts for a caller only with the caller's leave (A5, X2).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use bytes::Bytes;
use macula_wire::{
    AccessError, Grant, Member, NodeId, PASSAGE_SECS, Passage, Patterns, Realm, RealmKey, RealmName, SecretKey,
    ServiceName, Signer, Verifier,
};

const NOW: u64 = 1_700_000_000;

fn node(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

fn id(n: u8) -> NodeId {
    node(n).node_id()
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn closed() -> (Realm, Member) {
    let key = RealmKey::from_bytes(&[9; 32]);
    let realm = key.realm(RealmName::new("shop").unwrap());
    let grant = Grant::new(&realm, id(1), NOW..=NOW + 10 * PASSAGE_SECS).with_call(Patterns::all());
    let member = grant.sign(&key).unwrap().verify(&realm, NOW).unwrap();
    (realm, member)
}

/// Everything that a provider asks of a passage.
fn pass(realm: &Realm, passage: &Bytes, router: u8, name: &str, now: u64) -> Result<Member, AccessError> {
    let passage = Passage::read(passage)?;
    passage.check_at(realm, now)?;
    passage.check_signed(realm, &id(router), &service(name))?;
    Verifier::new(realm.clone()).admit(passage.node_id(), passage.chain(), now)
}

fn open() -> (Realm, Member) {
    let realm = Realm::default();
    let member = Member::open(&realm, id(1)).unwrap();
    (realm, member)
}

#[test]
fn x2_a_passage_names_its_caller_to_one_router_and_one_service() {
    for (realm, caller) in [open(), closed()] {
        let passage = caller.passage(&node(1), &realm.hash(), &id(2), &service("cart"), NOW);
        let pass = |router, name, now| pass(&realm, &passage, router, name, now);
        assert_eq!(pass(2, "cart", NOW), Ok(caller.clone()));
        assert_eq!(pass(3, "cart", NOW), Err(AccessError::BadPassage), "another router's");
        assert_eq!(pass(2, "carts", NOW), Err(AccessError::BadPassage), "another service's");
        let known = Passage::hash(&passage, &id(2), &service("cart"));
        assert_ne!(known, Passage::hash(&passage, &id(3), &service("cart")));
        assert_ne!(known, Passage::hash(&passage, &id(2), &service("carts")));
        assert_eq!(pass(2, "cart", NOW + 2 * PASSAGE_SECS), Ok(caller.clone()));
        // An open realm depends on no clock.
        let (late, early) = (NOW + 2 * PASSAGE_SECS + 1, NOW - PASSAGE_SECS - 1);
        for off in [late, early] {
            let verdict = if realm.is_closed() {
                Err(AccessError::OldPassage)
            } else {
                Ok(caller.clone())
            };
            assert_eq!(pass(2, "cart", off), verdict);
        }
        // Signed by the router in the caller's name.
        let forged = caller.passage(&node(2), &realm.hash(), &id(2), &service("cart"), NOW);
        let verdict = self::pass(&realm, &forged, 2, "cart", NOW);
        assert_eq!(verdict, Err(AccessError::BadPassage));
    }
}

#[test]
fn x2_a_passage_of_an_open_realm_is_none_in_a_closed_one() {
    let ((open, stranger), (closed, _)) = (open(), closed());
    let passage = stranger.passage(&node(1), &closed.hash(), &id(2), &service("cart"), NOW);
    let verdict = pass(&closed, &passage, 2, "cart", NOW);
    assert_eq!(verdict, Err(AccessError::NoGrant));
    let verdict = pass(&open, &passage, 2, "cart", NOW);
    assert_eq!(verdict, Err(AccessError::BadPassage));
}

#[test]
fn x2_any_flipped_bit_of_a_passage_denies() {
    let (realm, caller) = closed();
    let good = caller.passage(&node(1), &realm.hash(), &id(2), &service("cart"), NOW);
    for bit in 0..good.len() * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let verdict = pass(&realm, &Bytes::from(bytes), 2, "cart", NOW);
        assert!(verdict.is_err(), "bit {bit}");
    }
}
