//! The laws of signed provider records (D8, D9, D11).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::time::Duration;

use bytes::Bytes;
use macula_wire::{
    Address, Advertisement, MAX_ENDPOINTS, MAX_RECORD_BYTES, MAX_TTL, MIN_TTL, Realm, RecordError, SecretKey,
    ServiceKey, ServiceName, SignedProvider, Signer, VerifiedProvider, proto,
};
use proptest::prelude::*;
use prost::Message;

fn realm() -> Realm {
    Realm::new("test").unwrap()
}

fn key(service: &str) -> ServiceKey {
    ServiceKey::new(&realm(), &ServiceName::new(service).unwrap())
}

fn endpoint(port: u16) -> Address {
    format!("node{port}.example:{port}").parse().unwrap()
}

prop_compose! {
    fn advertisements()(
        ports in prop::collection::vec(1..=u16::MAX, 1..=MAX_ENDPOINTS),
        entries in prop::collection::btree_map("[a-z]{1,10}", prop::collection::vec(any::<u8>(), 0..20), 0..6),
        weight in 1..=u32::MAX,
        zone in "[a-z-]{0,20}",
        ttl in MIN_TTL.as_secs()..=MAX_TTL.as_secs(),
    ) -> Advertisement {
        let plain = Advertisement::new(ports.into_iter().map(endpoint))
            .with_ttl(Duration::from_secs(ttl))
            .with_weight(weight)
            .with_zone(zone);
        entries.into_iter().fold(plain, |ad, (key, value)| ad.with_metadata(key, value))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Everything that a provider says arrives, and the bytes are the signed ones.
    #[test]
    fn d11_a_signed_record_verifies_to_the_advertisement_that_was_signed(ad in advertisements(), secret: [u8; 32], seq: u64, at: u64) {
        let signer = SecretKey::from_bytes(&secret);
        let signed = VerifiedProvider::sign(&signer, &realm().hash(), &key("s"), seq, at, &ad).unwrap();
        let wire = proto::SignedProvider::from(signed.to_signed()).encode_to_vec();
        let received = SignedProvider::from(proto::SignedProvider::decode(&wire[..]).unwrap());
        let verified = received.verify(&realm().hash(), &key("s")).unwrap();
        prop_assert_eq!(&verified, &signed);
        prop_assert_eq!(verified.body(), signed.body());
        prop_assert_eq!(verified.node_id(), &signer.node_id());
        prop_assert_eq!((verified.seq(), verified.advertised_at_ms()), (seq, at));
        prop_assert_eq!(verified.advertisement(), Some(ad));
    }

    /// D9: a forgery is not a record.
    #[test]
    fn any_flipped_bit_is_refused(ad in advertisements(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let signed = VerifiedProvider::sign(&SecretKey::from_bytes(&[1; 32]), &realm().hash(), &key("s"), 1, 1, &ad).unwrap();
        let SignedProvider { body, signature, .. } = signed.to_signed();
        let mut bytes = [body.as_ref(), signature.as_ref()].concat();
        bytes[at.index(body.len() + signature.len())] ^= 1 << bit;
        let forged = SignedProvider {
            body: Bytes::copy_from_slice(&bytes[..body.len()]),
            signature: Bytes::copy_from_slice(&bytes[body.len()..]),
            chain: Bytes::new(),
        };
        prop_assert!(forged.verify(&realm().hash(), &key("s")).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(body: Vec<u8>, signature: Vec<u8>) {
        let junk = SignedProvider { body: body.into(), signature: signature.into(), chain: Bytes::new() };
        prop_assert!(junk.verify(&realm().hash(), &key("s")).is_err());
    }

    #[test]
    fn text_forms_round_trip(id: [u8; 32], port in 1..=u16::MAX, v6: u128, v4: u32) {
        let node = macula_wire::NodeId::from_bytes(id);
        prop_assert_eq!(node.to_string().parse(), Ok(node));
        for ip in [std::net::IpAddr::from(v6.to_be_bytes()), std::net::IpAddr::from(v4.to_be_bytes())] {
            let endpoint = Address::try_from(std::net::SocketAddr::new(ip, port)).unwrap();
            prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text: String) {
        let _ = (ServiceName::new(&text), text.parse::<Address>(), text.parse::<macula_wire::NodeId>());
    }
}

fn sample() -> VerifiedProvider {
    let ad = Advertisement::new([endpoint(9443)]);
    VerifiedProvider::sign(&SecretKey::from_bytes(&[1; 32]), &realm().hash(), &key("s"), 1, 1, &ad).unwrap()
}

#[test]
fn d8_a_record_of_one_realm_or_service_is_not_valid_in_another() {
    let signed = sample().to_signed();
    assert!(signed.verify(&realm().hash(), &key("s")).is_ok());
    assert_eq!(
        signed.verify(&realm().hash(), &key("t")),
        Err(RecordError::BadSignature)
    );
    assert_eq!(
        signed.verify(&Realm::default().hash(), &key("s")),
        Err(RecordError::BadSignature)
    );
}

#[test]
fn d8_keys_of_different_realms_and_services_differ() {
    let (a, b) = (Realm::new("a").unwrap(), Realm::new("b").unwrap());
    let (s, t) = (ServiceName::new("s").unwrap(), ServiceName::new("t").unwrap());
    let keys = [
        ServiceKey::new(&a, &s),
        ServiceKey::new(&a, &t),
        ServiceKey::new(&b, &s),
        ServiceKey::new(&b, &t),
    ];
    for (at, one) in keys.iter().enumerate() {
        assert!(keys[at + 1..].iter().all(|other| other != one));
    }
}

/// The key of a service is part of the protocol: computed independently as
/// SHA-256("macula/v1/service\0" ‖ SHA-256("macula/v1/realm\0" ‖ realm) ‖ service).
#[test]
fn d8_the_key_is_the_documented_hash() {
    let key = ServiceKey::new(&Realm::default(), &ServiceName::new("api.compute").unwrap());
    assert_eq!(
        key.to_string(),
        "278cb7025622047b241d704a5c38f51b99d8c46f27414291f417380a8babec58"
    );
}

#[test]
fn a_withdrawal_carries_no_content() {
    let signer = SecretKey::from_bytes(&[1; 32]);
    let ttl = Duration::from_secs(300);
    let gone = VerifiedProvider::sign_withdrawal(&signer, &realm().hash(), &key("s"), 2, 5, ttl).unwrap();
    assert!(gone.is_withdrawn());
    assert_eq!(gone.advertisement(), None);
    assert_eq!(gone.to_signed().verify(&realm().hash(), &key("s")), Ok(gone));
}

#[test]
fn d10_limits_are_refused_with_their_reason() {
    let sign = |ad: Advertisement| {
        VerifiedProvider::sign(&SecretKey::from_bytes(&[1; 32]), &realm().hash(), &key("s"), 1, 1, &ad).unwrap_err()
    };
    let plain = || Advertisement::new([endpoint(1)]);
    assert_eq!(sign(Advertisement::new([])), RecordError::NoEndpoint);
    assert_eq!(
        sign(Advertisement::new((1..=9).map(endpoint))),
        RecordError::TooManyEndpoints(9)
    );
    assert_eq!(sign(plain().with_weight(0)), RecordError::ZeroWeight);
    assert_eq!(sign(plain().with_zone("z".repeat(65))), RecordError::ZoneTooLong(65));
    assert_eq!(sign(plain().with_metadata("", "")), RecordError::BadMetadata);
    for ttl in [
        Duration::from_secs(19),
        Duration::from_secs(3601),
        Duration::from_millis(20_500),
    ] {
        assert_eq!(sign(plain().with_ttl(ttl)), RecordError::BadTtl(ttl));
    }
    assert!(matches!(
        sign(plain().with_metadata("k", vec![0; MAX_RECORD_BYTES])),
        RecordError::TooLarge(_)
    ));
}

#[test]
fn names_are_checked_with_a_reason() {
    use macula_wire::NameError::{Character, Empty, EmptySegment, TooLong};
    assert_eq!(ServiceName::new("").unwrap_err(), Empty);
    assert_eq!(ServiceName::new("a b").unwrap_err(), Character(' '));
    assert_eq!(ServiceName::new("näme").unwrap_err(), Character('ä'));
    assert_eq!(ServiceName::new("a..b").unwrap_err(), EmptySegment);
    assert_eq!(ServiceName::new(".a").unwrap_err(), EmptySegment);
    assert_eq!(ServiceName::new(&"a".repeat(129)).unwrap_err(), TooLong(129));
    assert!(ServiceName::new("helloworld.Greeter").is_ok());
}

#[test]
fn endpoints_are_checked_with_a_reason() {
    use macula_wire::AddressError::{BadHost, BadPort, NoPort};
    let error = |text: &str| text.parse::<Address>().unwrap_err();
    assert_eq!(error("node1"), NoPort);
    assert_eq!(error("node1:0"), BadPort);
    assert_eq!(error("node1:+1"), BadPort);
    assert_eq!(error("node1:70000"), BadPort);
    assert_eq!(error(":1"), BadHost);
    assert_eq!(error("a b:1"), BadHost);
    assert_eq!(error("::1:9443"), BadHost);
    assert_eq!(
        "[::1]:9443".parse::<Address>().unwrap().to_string(),
        "https://[::1]:9443"
    );
    assert_eq!(
        "https://Node1:9443".parse::<Address>().unwrap().to_string(),
        "https://node1:9443"
    );
}

#[test]
fn a_secret_key_does_not_show_itself() {
    let secret = SecretKey::from_bytes(&[0xab; 32]);
    assert!(!format!("{secret:?}").contains("abab"));
}
