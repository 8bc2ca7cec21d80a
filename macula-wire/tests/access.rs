//! The laws of grants, chains and members (A1, A2).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use bytes::Bytes;
use macula_wire::{
    AccessError, Beyond, CLOCK_TOLERANCE_SECS, Chain, Grant, GrantRole, Issue, MAX_CHAIN_BYTES, MAX_GRANT_SECS, Member,
    NodeId, Pattern, Patterns, Realm, RealmKey, RealmName, SecretKey, ServiceName, Signer, proto,
};
use proptest::prelude::*;
use prost::Message;

const NOW: u64 = 1_700_000_000;
const DAY: u64 = 24 * 60 * 60;

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

fn patterns(texts: &[&str]) -> Patterns {
    texts.iter().map(|text| text.parse::<Pattern>().unwrap()).collect()
}

/// A grant of node `n` for a day.
fn grant(n: u8) -> Grant {
    Grant::new(&realm(), node(n).node_id(), NOW..=NOW + DAY)
}

/// Node 1, which may issue what `issue` says.
fn issuer(issue: Issue) -> Member {
    let chain = grant(1).with_issue(issue).sign(&key()).unwrap();
    chain.verify(&realm(), NOW).unwrap()
}

fn modest() -> Issue {
    Issue::new(GrantRole::Client, patterns(&["shop.*"]), patterns(&["shop.*", "mail"])).with_label("team", "*")
}

/// A chain that no honest issuer signs: with the issuer's key, but without its checks.
fn forced(body: &Grant, by: &SecretKey, issuer: &Member) -> Chain {
    let body = encoded(body);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [b"macula/v1/grant-by-issuer\0", &length[..], &body].concat();
    let own = proto::Chain::decode(issuer.chain().unwrap().as_bytes().clone()).unwrap();
    let chain = proto::Chain {
        grant: Some(proto::SignedGrant {
            body,
            signature: Bytes::copy_from_slice(&by.sign(&message)),
        }),
        issuer: own.grant,
    };
    Chain::from_bytes(chain.encode_to_vec().into()).unwrap()
}

/// The body of a grant, by way of a chain of the realm's key.
fn encoded(grant: &Grant) -> Bytes {
    let chain = grant.sign(&key()).unwrap();
    proto::Chain::decode(chain.as_bytes().clone())
        .unwrap()
        .grant
        .unwrap()
        .body
}

#[test]
fn a1_open_and_closed_realms_of_one_name_never_meet() {
    let open = Realm::new("shop").unwrap();
    let other = RealmKey::from_bytes(&[8; 32]).realm(RealmName::new("shop").unwrap());
    assert_ne!(open.hash(), realm().hash());
    assert_ne!(other.hash(), realm().hash());
    assert!(!open.is_closed() && realm().is_closed());
    assert_eq!(realm().to_string().parse(), Ok(realm()));
    assert_eq!(open.to_string(), "shop");
    assert!("shop@12".parse::<Realm>().is_err() && "@".parse::<Realm>().is_err());
    assert!(!format!("{:?}", key()).contains("0909"));
}

/// The hash is part of the protocol: computed independently as SHA-256("macula/v1/realm\0" ‖ name ‖ "\0" ‖ public key).
#[test]
fn a1_the_hash_of_a_closed_realm_is_the_documented_one() {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    hasher.update(b"macula/v1/realm\0shop\0");
    hasher.update(key().public().as_bytes());
    assert_eq!(realm().hash().as_bytes()[..], hasher.finalize()[..]);
}

#[test]
fn a2_a_grant_of_the_realms_key_makes_its_member() {
    let grant = grant(2)
        .with_role(GrantRole::Node)
        .with_provide(patterns(&["shop.cart"]))
        .with_call(patterns(&["shop.*"]))
        .with_label("team", "orders");
    let chain = grant.sign(&key()).unwrap();
    let member = Chain::from_bytes(chain.as_bytes().clone())
        .unwrap()
        .verify(&realm(), NOW)
        .unwrap();
    assert_eq!(*member.node_id(), node(2).node_id());
    assert!(member.may_provide(&name("shop.cart")) && !member.may_provide(&name("shop.stock")));
    assert!(member.may_call(&name("shop.stock")) && !member.may_call(&name("shop")) && !member.may_call(&name("mail")));
    assert!(member.may_be(GrantRole::Client) && member.may_be(GrantRole::Node));
    assert_eq!(member.labels()["team"], "orders");
    assert_eq!((member.issuer(), member.not_after()), (None, Some(NOW + DAY)));
}

#[test]
fn a1_every_node_of_an_open_realm_may_all() {
    let member = Member::open(&Realm::default(), node(1).node_id()).unwrap();
    assert!(member.may_call(&name("a")) && member.may_provide(&name("a")) && member.may_be(GrantRole::Node));
    assert!(member.labels().is_empty() && member.chain().is_none());
    assert_eq!(member.check_at(u64::MAX), Ok(()));
    assert_eq!(Member::open(&realm(), node(1).node_id()), None);
}

#[test]
fn a2_an_issuers_grant_leads_back_to_the_realms_key() {
    let body = grant(2)
        .with_call(patterns(&["shop.cart", "mail"]))
        .with_label("team", "x");
    let chain = body.issue(&issuer(modest()), &node(1)).unwrap();
    let member = chain.verify(&realm(), NOW).unwrap();
    assert_eq!(member.issuer(), Some(&node(1).node_id()));
    assert!(member.may_call(&name("mail")));
    // The other realm's key signed neither link.
    let other = RealmKey::from_bytes(&[8; 32]).realm(RealmName::new("shop").unwrap());
    assert_eq!(chain.verify(&other, NOW).unwrap_err(), AccessError::OtherRealm);
    assert_eq!(
        chain.verify(&Realm::new("shop").unwrap(), NOW).unwrap_err(),
        AccessError::OtherRealm
    );
}

#[test]
fn a2_a_grant_beyond_its_issuers_is_neither_signed_nor_believed() {
    let right = issuer(modest());
    let wide = [
        (grant(2).with_role(GrantRole::Node), Beyond::Roles),
        (grant(2).with_provide(patterns(&["mail"])), Beyond::Provide),
        (grant(2).with_provide(patterns(&["*"])), Beyond::Provide),
        (grant(2).with_call(patterns(&["shop"])), Beyond::Call),
        (grant(2).with_label("admin", "yes"), Beyond::Labels),
        (grant(2).with_issue(modest()), Beyond::Issue),
        (
            Grant::new(&realm(), node(2).node_id(), NOW..=NOW + DAY + 1),
            Beyond::Dates,
        ),
        (
            Grant::new(&realm(), node(2).node_id(), NOW - 1..=NOW + DAY),
            Beyond::Dates,
        ),
    ];
    for (body, beyond) in wide {
        assert_eq!(body.issue(&right, &node(1)).unwrap_err(), AccessError::Widened(beyond));
        let forced = forced(&body, &node(1), &right);
        assert_eq!(forced.verify(&realm(), NOW).unwrap_err(), AccessError::Widened(beyond));
    }
}

#[test]
fn a2_a_node_without_the_right_to_issue_issues_nothing() {
    let plain = grant(1)
        .with_call(Patterns::all())
        .sign(&key())
        .unwrap()
        .verify(&realm(), NOW)
        .unwrap();
    assert_eq!(grant(2).issue(&plain, &node(1)).unwrap_err(), AccessError::NotAnIssuer);
    assert_eq!(
        forced(&grant(2), &node(1), &plain).verify(&realm(), NOW).unwrap_err(),
        AccessError::NotAnIssuer
    );
    // Nor does a member whose own grant an issuer signed: the chain would have three links.
    let second = grant(2)
        .issue(&issuer(modest()), &node(1))
        .unwrap()
        .verify(&realm(), NOW)
        .unwrap();
    assert_eq!(grant(3).issue(&second, &node(2)).unwrap_err(), AccessError::NotAnIssuer);
    assert_eq!(
        forced(&grant(3), &node(2), &second).verify(&realm(), NOW).unwrap_err(),
        AccessError::NotAnIssuer
    );
    // Another node's key under an issuer's name.
    assert_eq!(
        forced(&grant(2), &node(3), &issuer(modest()))
            .verify(&realm(), NOW)
            .unwrap_err(),
        AccessError::BadSignature
    );
    // The issuer's own key in the place of the realm's.
    let mut chain = proto::Chain::decode(forced(&grant(2), &node(1), &issuer(modest())).as_bytes().clone()).unwrap();
    chain.issuer = None;
    let alone = Chain::from_bytes(chain.encode_to_vec().into()).unwrap();
    assert_eq!(alone.verify(&realm(), NOW).unwrap_err(), AccessError::BadSignature);
}

#[test]
fn a2_a_grant_is_valid_from_its_start_less_the_tolerance_until_its_end() {
    let chain = grant(2).sign(&key()).unwrap();
    let at = |now| chain.verify(&realm(), now).map(|_| ());
    assert_eq!(
        at(NOW - CLOCK_TOLERANCE_SECS - 1),
        Err(AccessError::NotYet(CLOCK_TOLERANCE_SECS + 1))
    );
    assert_eq!(at(NOW - CLOCK_TOLERANCE_SECS), Ok(()));
    assert_eq!(at(NOW + DAY - 1), Ok(()));
    assert_eq!(at(NOW + DAY), Err(AccessError::Ended(0)));
    assert_eq!(at(u64::MAX), Err(AccessError::Ended(u64::MAX - NOW - DAY)));
    let bad = |dates| Grant::new(&realm(), node(2).node_id(), dates).sign(&key()).unwrap_err();
    assert_eq!(bad(NOW..=NOW), AccessError::BadDates);
    assert_eq!(bad(NOW..=NOW + MAX_GRANT_SECS + 1), AccessError::BadDates);
}

#[test]
fn a2_a_chain_has_at_most_a_kibibyte_and_good_labels() {
    let many = (0..40).map(|n| format!("service-number-{n}.of-a-long-name").parse::<Pattern>().unwrap());
    let large = grant(2).with_call(many.collect()).sign(&key());
    assert!(matches!(large, Err(AccessError::TooLarge(bytes)) if bytes > MAX_CHAIN_BYTES));
    assert!(Chain::from_bytes(vec![0; MAX_CHAIN_BYTES + 1].into()).is_err());
    for (label, value) in [
        ("", "x"),
        ("a b", "x"),
        ("team", ""),
        ("team", "*"),
        ("team", "a\u{1b}[2J"),
    ] {
        assert_eq!(
            grant(2).with_label(label, value).sign(&key()).unwrap_err(),
            AccessError::BadLabel
        );
    }
    assert_eq!(
        grant(2)
            .with_issue(modest().with_label("*", "x"))
            .sign(&key())
            .unwrap_err(),
        AccessError::BadLabel
    );
}

#[test]
fn a2_one_chain_has_one_form() {
    let chain = grant(2).sign(&key()).unwrap();
    // An unknown field at the end decodes, but is not what this code writes.
    let longer = [chain.as_bytes().as_ref(), &[0x78, 1]].concat();
    let longer = Chain::from_bytes(longer.into()).unwrap();
    assert_eq!(longer.verify(&realm(), NOW).unwrap_err(), AccessError::Malformed);
}

#[test]
fn a_pattern_below_a_prefix_does_not_hold_the_prefix() {
    let under: Pattern = "shop.*".parse().unwrap();
    assert!(under.matches(&name("shop.cart")) && under.matches(&name("shop.cart.items")));
    assert!(!under.matches(&name("shop")) && !under.matches(&name("shopping.cart")));
    assert!(
        "shop.*.x".parse::<Pattern>().is_err() && "sh*".parse::<Pattern>().is_err() && "".parse::<Pattern>().is_err()
    );
    assert_eq!(patterns(&["a.b.*", "a.*", "a.x", "a"]), patterns(&["a", "a.*"]));
    assert_eq!(patterns(&["b", "*", "a.*"]), Patterns::all());
}

fn pattern() -> impl Strategy<Value = Pattern> {
    // Few parts, so that prefixes of each other are common.
    let parts = prop::collection::vec(prop::sample::select(vec!["a", "b", "ab"]), 1..4);
    (parts, 0..8_u8).prop_map(|(parts, kind)| match kind {
        0 => Pattern::All,
        1..4 => Pattern::Under(name(&parts.join("."))),
        _ => Pattern::Name(name(&parts.join("."))),
    })
}

fn lists() -> impl Strategy<Value = Patterns> {
    prop::collection::vec(pattern(), 0..5).prop_map(Patterns::from_iter)
}

/// Every name of up to four parts of the generated ones, and one that is in none of the lists.
fn names() -> Vec<ServiceName> {
    let mut all = Vec::new();
    let mut level = vec![String::new()];
    for _ in 0..4 {
        let longer = |text: &String| ["a", "b", "ab", "zz"].map(|part| format!("{text}.{part}"));
        level = level.iter().flat_map(longer).collect();
        all.extend(level.iter().map(|text| name(&text[1..])));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Covering is exactly that each name of the one is a name of the other.
    #[test]
    fn covering_is_inclusion(wide in lists(), narrow in lists()) {
        let included = names().iter().all(|name| !narrow.matches(name) || wide.matches(name));
        prop_assert_eq!(wide.covers(&narrow), included);
    }

    #[test]
    fn a_list_means_what_its_patterns_mean(list in prop::collection::vec(pattern(), 0..5)) {
        let patterns = Patterns::from_iter(list.clone());
        for name in names() {
            prop_assert_eq!(patterns.matches(&name), list.iter().any(|it| it.matches(&name)));
        }
        let mut reversed = list;
        reversed.reverse();
        prop_assert_eq!(&patterns, &Patterns::from_iter(reversed));
        prop_assert!(patterns.iter().is_sorted());
        for pattern in patterns.iter() {
            prop_assert_eq!(&pattern.to_string().parse::<Pattern>().unwrap(), pattern);
        }
    }

    /// A2: an issuer passes on what it may, and nothing else, whether the checks of its own software are asked or not.
    #[test]
    fn a2_issuing_only_narrows(held in (lists(), lists()), wanted in (lists(), lists()), from in 0..3_u64, life in 1..4_u64) {
        let issue = Issue::new(GrantRole::Client, held.0.clone(), held.1.clone());
        let own = Grant::new(&realm(), node(1).node_id(), NOW + 1..=NOW + 4).with_issue(issue);
        let own = own.sign(&key()).unwrap().verify(&realm(), NOW + 1).unwrap();
        let body = Grant::new(&realm(), node(2).node_id(), NOW + from..=NOW + from + life)
            .with_provide(wanted.0.clone())
            .with_call(wanted.1.clone());
        let within = held.0.covers(&wanted.0) && held.1.covers(&wanted.1) && from >= 1 && from + life <= 4;
        prop_assert_eq!(body.issue(&own, &node(1)).is_ok(), within);
        let verdict = forced(&body, &node(1), &own).verify(&realm(), NOW + 2);
        let in_time = from + life > 2;
        prop_assert_eq!(verdict.is_ok(), within && in_time);
        if let Ok(member) = verdict {
            for name in names() {
                prop_assert!(!member.may_call(&name) || held.1.matches(&name));
                prop_assert!(!member.may_provide(&name) || held.0.matches(&name));
            }
        }
    }

    /// A2: any flipped bit denies.
    #[test]
    fn a2_any_flipped_bit_denies(two: bool, at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let body = grant(2).with_call(patterns(&["shop.*"])).with_label("team", "x");
        let chain = if two { body.issue(&issuer(modest()), &node(1)) } else { body.sign(&key()) }.unwrap();
        let mut bytes = chain.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let flipped = Chain::from_bytes(bytes.into()).unwrap();
        prop_assert!(flipped.verify(&realm(), NOW).is_err());
        prop_assert_ne!(flipped.hash(), chain.hash());
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), now: u64) {
        let chain = Chain::from_bytes(bytes.into()).unwrap();
        prop_assert!(chain.verify(&realm(), now).is_err());
    }
}

#[test]
fn a_member_is_cheap_to_clone_and_bounded() {
    assert!(std::mem::size_of::<Member>() <= NodeId::LEN + 2 * std::mem::size_of::<usize>());
}
