//! The lines and messages of joining (A6, A7).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use bytes::Bytes;
use macula_wire::{
    Chain, Effect, Grant, GrantRole, Heeded, Issuer, JoinRefusal, JoinReply, JoinRequest, JoinToken, KeptMember,
    KeptToken, LineError, MAX_ISSUERS, Membership, NodeId, Order, Patterns, Realm, RealmKey, RealmName, Revocations,
    RevocationsReply, RevocationsRequest, SecretKey, SignedRevocations, Signer, Terms, TokenId, TokenSecret,
    known_hash,
};
use proptest::prelude::*;

const NOW: u64 = 1_700_000_000;

fn key() -> RealmKey {
    RealmKey::from_bytes(&[9; 32])
}

fn realm() -> Realm {
    key().realm(RealmName::new("shop").unwrap())
}

fn id(n: u8) -> NodeId {
    SecretKey::from_bytes(&[n; 32]).node_id()
}

fn chain(n: u8) -> Chain {
    let grant = Grant::new(&realm(), id(n), NOW..=NOW + 1000).with_call(Patterns::all());
    grant.sign(&key()).unwrap()
}

fn issuer(n: u8) -> Issuer {
    Issuer {
        node_id: id(n),
        endpoints: vec!["node1.example:9443".parse().unwrap(), "[::1]:9443".parse().unwrap()],
    }
}

fn token(secret: [u8; 32], not_after: u64) -> JoinToken {
    JoinToken {
        realm: realm(),
        issuer: issuer(1),
        id: TokenId::from_bytes([5; 8]),
        secret: TokenSecret::from_bytes(&secret),
        not_after,
    }
}

fn membership(issuers: u8) -> Membership {
    Membership {
        realm: realm(),
        chain: chain(7),
        issuers: (1..=issuers).map(issuer).collect(),
    }
}

proptest! {
    #[test]
    fn a7_a_token_is_read_as_it_was_written(secret: [u8; 32], not_after: u64) {
        let token = token(secret, not_after);
        let line = token.to_string();
        prop_assert!(line.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
        let read: JoinToken = format!(" {line}\n").parse().unwrap();
        prop_assert_eq!((&read.realm, &read.issuer, read.id, read.not_after), (&token.realm, &token.issuer, token.id, not_after));
        prop_assert_eq!(read.secret.hash(), token.secret.hash());
    }

    #[test]
    fn a7_no_line_with_another_letter_or_a_part_missing_is_taken(at in 13_usize..150, letter in "[A-Za-z0-9_-]", cut in 1_usize..100) {
        let line = token([3; 32], NOW).to_string();
        let mut other = line.clone();
        other.replace_range(at..=at, &letter);
        prop_assert!(other == line || other.parse::<JoinToken>().is_err());
        prop_assert_eq!(line[..line.len() - cut].parse::<JoinToken>().map(|_| ()), Err(LineError::Damaged("token")));
    }

    #[test]
    fn arbitrary_text_and_bytes_are_taken_or_refused(text in "(macula_(grant|token)_)?\\PC{0,80}", bytes: Vec<u8>) {
        let _ = (text.parse::<JoinToken>(), text.parse::<Membership>());
        let bytes = Bytes::from(bytes);
        let _ = (JoinRequest::decode(bytes.clone()), JoinReply::decode(bytes.clone()));
        let _ = (KeptToken::decode(bytes.clone()), KeptMember::decode(bytes.clone()));
        let _ = (RevocationsRequest::decode(bytes.clone()), RevocationsReply::decode(bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Two nodes that ask each other know the same in the end, however much each knew.
    #[test]
    fn a6_nodes_that_ask_each_other_know_the_same(one in 0_u8..120, other in 0_u8..120) {
        let known = |orders: std::ops::Range<u8>| {
            let mut known = Revocations::new(realm());
            for n in orders {
                let list = SignedRevocations::sign(&realm(), &key(), [Order::revoke(NodeId::from_bytes([n; 32]), NOW)]);
                known.merge(&list.unwrap(), NOW).unwrap();
            }
            known
        };
        let (mut one, other) = (known(0..one), known(100..100 + other));
        let (mut from, mut rounds) = (0, 0);
        loop {
            let request = RevocationsRequest { known: known_hash(&one.lists()), news: vec![], from };
            let request = RevocationsRequest::decode(request.encode()).unwrap();
            let lists = other.lists();
            let reply = RevocationsReply::to(&request, known_hash(&lists), &lists).encode();
            prop_assert!(reply.len() < 16 * 1024);
            let reply = RevocationsReply::decode(reply).unwrap();
            for list in &reply.lists {
                one.merge(list, NOW).unwrap();
            }
            rounds += 1;
            prop_assert!(rounds < 10, "no end");
            match reply.next {
                Some(next) => from = next,
                None => break,
            }
        }
        let others = other.lists();
        let ours = one.lists();
        prop_assert!(others.iter().all(|list| ours.contains(list)));
    }
}

#[test]
fn a7_a_grant_is_a_line_and_no_other_line() {
    let membership = membership(2);
    assert_eq!(membership.to_string().parse::<Membership>().unwrap(), membership);
    let line = token([3; 32], NOW).to_string();
    assert_eq!(line.parse::<Membership>(), Err(LineError::OtherKind("grant")));
    let posing = line.replace("token", "grant");
    assert_eq!(posing.parse::<Membership>(), Err(LineError::Damaged("grant")));
    let many = Membership {
        issuers: (0..20).map(issuer).collect(),
        ..membership
    };
    let read: Membership = many.to_string().parse().unwrap();
    assert_eq!(read.issuers[..], many.issuers[..MAX_ISSUERS]);
}

#[test]
fn a7_requests_and_replies_are_read_as_they_were_written() {
    let secret = TokenSecret::from_bytes(&[3; 32]);
    let join = JoinRequest::Join {
        token: TokenId::from_bytes([5; 8]),
        secret: secret.clone(),
    };
    assert!(matches!(
        JoinRequest::decode(join.encode()),
        Ok(JoinRequest::Join { token, secret: read }) if token == TokenId::from_bytes([5; 8]) && read.hash() == secret.hash()
    ));
    assert!(
        matches!(JoinRequest::decode(JoinRequest::Renew(chain(7)).encode()), Ok(JoinRequest::Renew(read)) if read == chain(7))
    );
    let orders = SignedRevocations::sign(&realm(), &key(), [Order::revoke(id(7), NOW)]).unwrap();
    assert!(
        matches!(JoinRequest::decode(JoinRequest::Revoke(orders.clone()).encode()), Ok(JoinRequest::Revoke(read)) if read == orders)
    );
    let refusals = [
        JoinRefusal::NoIssuer,
        JoinRefusal::UnknownToken,
        JoinRefusal::TokenUsedUp,
        JoinRefusal::TokenEnded,
        JoinRefusal::NotRenewable,
        JoinRefusal::Revoked,
        JoinRefusal::BeyondIssuer,
        JoinRefusal::BadOrders,
        JoinRefusal::Busy,
        JoinRefusal::Other,
    ];
    let admitted = JoinReply::Admitted {
        chain: chain(7),
        issuers: vec![issuer(1)],
    };
    let replies = refusals.map(JoinReply::Refused).into_iter();
    let effects = [
        Effect::Counts,
        Effect::StillOut,
        Effect::Overruled,
        Effect::SignerRevoked,
        Effect::Unknown,
    ];
    let heeded = effects.map(|effect| {
        JoinReply::Heeded(Heeded {
            kept: effect == Effect::Counts,
            chain: (effect != Effect::Unknown).then(|| chain(7)),
            effect,
            readmitted: vec![id(7), id(8)],
        })
    });
    for reply in replies.chain([admitted]).chain(heeded) {
        assert_eq!(JoinReply::decode(reply.encode()), Ok(reply));
    }
}

#[test]
fn a7_an_issuer_keeps_a_token_without_its_secret() {
    let secret = TokenSecret::from_bytes(&[3; 32]);
    let terms = Terms {
        role: GrantRole::Node,
        provide: "shop.cart".parse().map(|it| [it].into_iter().collect()).unwrap(),
        call: Patterns::all(),
        labels: [("team".to_owned(), "orders".to_owned())].into(),
    };
    let kept = KeptToken {
        made_at: 3,
        secret_hash: secret.hash(),
        not_after: NOW,
        uses_left: 3,
        terms: terms.clone(),
    };
    assert_eq!(KeptToken::decode(kept.encode()), Ok(kept.clone()));
    assert!(!kept.encode().windows(8).any(|part| part == [3; 8]));
    assert!(!format!("{:?}", token([3; 32], NOW)).contains("3, 3"));
    assert_ne!(TokenSecret::from_bytes(&[4; 32]).hash(), kept.secret_hash);

    let grant = terms.grant(&realm(), id(7), NOW..=NOW + 86_400);
    let member = grant.sign(&key()).unwrap().verify(&realm(), NOW).unwrap();
    assert_eq!(Terms::of(&member), Some(terms));
    let kept = KeptMember {
        token: None,
        since: NOW,
        chain: chain(7),
    };
    assert_eq!(KeptMember::decode(kept.encode()), Ok(kept));
}
