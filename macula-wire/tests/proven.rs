//! Provider records of closed realms: each proves that its node may provide the service (A4).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use bytes::Bytes;
use macula_wire::{
    AccessError, Advertisement, Grant, GrantRole, Issue, Member, Order, Pattern, Patterns, Place, Realm, RealmKey,
    RealmName, RecordError, SecretKey, ServiceKey, ServiceName, SignedProvider, SignedRevocations, Signer,
    VerifiedProvider, Verifier,
};

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

fn name(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}

fn service(text: &str) -> ServiceKey {
    ServiceKey::new(&realm(), &name(text))
}

/// Node `n`, which may provide `shop.*` for a thousand seconds.
fn member(n: u8) -> Member {
    let shop: Pattern = "shop.*".parse().unwrap();
    let issue = Issue::new(GrantRole::Node, Patterns::from_iter([shop.clone()]), Patterns::all());
    let issuer = Grant::new(&realm(), node(100).node_id(), NOW..=NOW + 1000).with_issue(issue);
    let issuer = issuer.sign(&key()).unwrap().verify(&realm(), NOW).unwrap();
    let grant = Grant::new(&realm(), node(n).node_id(), NOW..=NOW + 1000).with_provide(Patterns::from_iter([shop]));
    grant.issue(&issuer, &node(100)).unwrap().verify(&realm(), NOW).unwrap()
}

fn sign(n: u8, at: &str) -> VerifiedProvider {
    let place = Place::of(&realm(), &name(at), &member(n)).unwrap();
    let advertisement = Advertisement::new(["node1:9443".parse().unwrap()]);
    VerifiedProvider::sign_at(&node(n), &place, 1, NOW * 1000, &advertisement).unwrap()
}

fn verify(signed: &SignedProvider, at: &str) -> Result<VerifiedProvider, RecordError> {
    signed.verify_with(&mut Verifier::new(realm()), &service(at), NOW)
}

#[test]
fn a4_a_record_proves_that_its_node_may_provide() {
    let signed = sign(1, "shop.cart");
    let verified = verify(&signed.to_signed(), "shop.cart").unwrap();
    assert_eq!(verified, signed);
    assert_eq!(verified.member(), member(1));
    assert_eq!(verified.granted_until(), Some(NOW + 1000));
    let gone = Place::of(&realm(), &name("shop.cart"), &member(1)).unwrap();
    let gone = VerifiedProvider::sign_withdrawal_at(&node(1), &gone, 2, NOW * 1000, signed.ttl()).unwrap();
    assert!(verify(&gone.to_signed(), "shop.cart").unwrap().is_withdrawn());
}

#[test]
fn a4_an_unproven_record_is_no_record() {
    let good = sign(1, "shop.cart").to_signed();
    let without = SignedProvider {
        chain: Bytes::new(),
        ..good.clone()
    };
    assert!(verify(&without, "shop.cart").is_err());
    let of_another = SignedProvider {
        chain: sign(2, "shop.cart").to_signed().chain,
        ..good.clone()
    };
    assert_eq!(verify(&of_another, "shop.cart"), Err(RecordError::Unproven));
    assert_eq!(
        verify(&good, "shop.stock"),
        Err(RecordError::Unproven),
        "it names its service"
    );
    // The way of open realms asks for no proof, so it is closed to closed realms.
    let hash = realm().hash();
    assert_eq!(good.verify(&hash, &service("shop.cart")), Err(RecordError::Unproven));
    let advertisement = Advertisement::new(["node1:9443".parse().unwrap()]);
    let bare = VerifiedProvider::sign(&node(1), &hash, &service("shop.cart"), 1, NOW, &advertisement);
    assert_eq!(bare, Err(RecordError::Unproven));
    // A record of the open realm of the same name.
    let open = Realm::new("shop").unwrap();
    let bare = VerifiedProvider::sign(&node(1), &open.hash(), &service("shop.cart"), 1, NOW, &advertisement).unwrap();
    assert!(verify(&bare.to_signed(), "shop.cart").is_err());
}

#[test]
fn a4_a_node_signs_no_record_of_what_it_may_not_provide_nor_with_anothers_grant() {
    let refused = Place::of(&realm(), &name("mail"), &member(1)).unwrap_err();
    assert_eq!(refused, RecordError::NotGranted(name("mail")));
    let place = Place::of(&realm(), &name("shop.cart"), &member(1)).unwrap();
    let advertisement = Advertisement::new(["node1:9443".parse().unwrap()]);
    let signed = VerifiedProvider::sign_at(&node(2), &place, 1, NOW, &advertisement);
    assert_eq!(signed, Err(RecordError::Unproven));
    let other = RealmKey::from_bytes(&[8; 32]).realm(RealmName::new("shop").unwrap());
    assert_eq!(
        Place::of(&other, &name("shop.cart"), &member(1)).unwrap_err(),
        RecordError::Unproven
    );
}

#[test]
fn a4_a_record_ends_with_its_grant_and_with_its_revocation() {
    let signed = sign(1, "shop.cart").to_signed();
    let mut verifier = Verifier::new(realm());
    let at = |verifier: &mut Verifier, now| signed.verify_with(verifier, &service("shop.cart"), now).map(|_| ());
    assert_eq!(at(&mut verifier, NOW + 999), Ok(()));
    assert_eq!(
        at(&mut verifier, NOW + 1000),
        Err(RecordError::Access(AccessError::Ended(0)))
    );
    let order = Order::revoke(node(1).node_id(), NOW);
    let list = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
    assert_eq!(verifier.revoke(&list, NOW), Ok(true));
    let revoked = AccessError::Revoked(node(1).node_id());
    assert_eq!(
        at(&mut verifier, NOW),
        Err(RecordError::Access(revoked)),
        "although the chain is remembered"
    );
}

#[test]
fn a4_any_flipped_bit_denies() {
    let good = sign(1, "shop.cart").to_signed();
    let mut verifier = Verifier::new(realm());
    let parts = [good.body.len(), good.signature.len(), good.chain.len()];
    for bit in (0..parts.iter().sum::<usize>() * 8).step_by(5) {
        let mut bytes = [&good.body[..], &good.signature, &good.chain].concat();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (body, rest) = bytes.split_at(parts[0]);
        let (signature, chain) = rest.split_at(parts[1]);
        let [body, signature, chain] = [body, signature, chain].map(Bytes::copy_from_slice);
        let flipped = SignedProvider { body, signature, chain };
        assert!(
            flipped.verify_with(&mut verifier, &service("shop.cart"), NOW).is_err(),
            "bit {bit}"
        );
    }
}

/// What the proof costs: 44 bytes of the signed body, and the chain.
#[test]
fn the_bytes_of_a_proven_record_are_bounded() {
    let proven = sign(1, "shop.cart").to_signed();
    assert!(proven.chain.len() <= 450, "{}", proven.chain.len());
    assert!(proven.body.len() <= 140, "{}", proven.body.len());
}
