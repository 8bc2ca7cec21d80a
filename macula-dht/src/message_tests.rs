use std::time::Duration;

use macula_wire::{Advertisement, SecretKey, Signer};
use proptest::prelude::*;

use super::*;

fn contact(seed: u8, hosts: &[String]) -> Contact {
    Contact::new(
        NodeId::from_bytes([seed; 32]),
        hosts.iter().map(|host| format!("{host}:443").parse().unwrap()),
    )
}

fn some_contact() -> impl Strategy<Value = Contact> {
    (
        any::<u8>(),
        prop::collection::vec("[a-z]{1,60}(\\.[a-z]{1,60}){0,3}", 1..=8),
    )
        .prop_map(|(seed, hosts)| contact(seed, &hosts))
}

fn signed() -> impl Strategy<Value = SignedProvider> {
    let bytes = |range| prop::collection::vec(any::<u8>(), range).prop_map(Bytes::from);
    (bytes(0..200_usize), bytes(0..70)).prop_map(|(body, signature)| SignedProvider {
        body,
        signature,
        chain: Bytes::new(),
    })
}

fn request() -> impl Strategy<Value = Request> {
    let key = || any::<[u8; 32]>().prop_map(ServiceKey::from_bytes);
    prop_oneof![
        Just(Request::Ping),
        any::<[u8; 32]>().prop_map(|target| Request::FindNode {
            target: Point::from_bytes(&target)
        }),
        (key(), prop::option::of(any::<[u8; 32]>().prop_map(NodeId::from_bytes)))
            .prop_map(|(key, after)| Request::FindProviders { key, after }),
        (key(), prop::collection::vec(signed(), 0..=MAX_PUBLISH_RECORDS))
            .prop_map(|(key, records)| Request::Publish { key, records }),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    let contacts = || prop::collection::vec(some_contact(), 0..4);
    let refusal = prop::sample::select(vec![
        Outcome::Stored,
        Outcome::Refused(Refusal::Stale),
        Outcome::Refused(Refusal::Invalid),
        Outcome::Refused(Refusal::Expired {
            by: Duration::from_millis(1),
        }),
        Outcome::Refused(Refusal::Expired {
            by: Duration::from_secs(3600),
        }),
        Outcome::Refused(Refusal::FromTheFuture {
            by: Duration::from_secs(61),
        }),
        Outcome::Refused(Refusal::KeyFull),
        Outcome::Refused(Refusal::StoreFull),
        Outcome::Refused(Refusal::PublisherQuota),
        Outcome::Refused(Refusal::NotResponsible),
        Outcome::Refused(Refusal::Busy),
        Outcome::Refused(Refusal::Loopback),
        Outcome::Refused(Refusal::Unknown),
    ]);
    prop_oneof![
        Just(Response::Pong),
        contacts().prop_map(Response::Nodes),
        (prop::collection::vec(signed(), 0..9), contacts(), any::<bool>())
            .prop_map(|(records, closest, more)| Response::Providers { records, closest, more }),
        (
            prop::collection::vec(refusal, 0..=MAX_PUBLISH_RECORDS),
            prop::collection::vec(signed(), 0..3)
        )
            .prop_map(|(outcomes, newer)| Response::Published { outcomes, newer }),
        prop::sample::select(vec![Declined::Malformed, Declined::RateLimited, Declined::Unknown])
            .prop_map(Response::Declined),
    ]
}

proptest! {
    #[test]
    fn requests_round_trip(request in request()) {
        prop_assert_eq!(Request::decode(request.encode()), Ok(request));
    }

    #[test]
    fn responses_round_trip(response in response()) {
        prop_assert_eq!(Response::decode(response.encode()), Ok(response));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        let _ = Request::decode(bytes.clone());
        let _ = Response::decode(bytes);
    }

    /// Replies of any contacts and records are at most 16 KiB.
    #[test]
    fn replies_fit(contacts in prop::collection::vec(some_contact(), 0..30), metadata in 0..700_usize, count in 0..40_u8) {
        let (key, realm) = (ServiceKey::from_bytes([7; 32]), macula_wire::Realm::default().hash());
        let signer = SecretKey::from_bytes(&[9; 32]);
        let endpoint = "node.example:443".parse().unwrap();
        let advertisement = Advertisement::new([endpoint]).with_metadata("m", vec![0; metadata]);
        let record = VerifiedProvider::sign(&signer, &realm, &key, 1, 1, &advertisement).unwrap();
        let (closest, used) = fit_contacts(contacts.iter().cloned());
        let records = vec![record; count.into()];
        let (fitting, more) = fit_records(records.iter(), used);
        prop_assert_eq!(more, fitting.len() < records.len());
        prop_assert!(closest.len() == contacts.len().min(MAX_REPLY_CONTACTS) || contacts.iter().any(|c| c.endpoints()[0].host().len() > 100));
        let encoded = Response::Providers { records: fitting, closest, more: true }.encode();
        prop_assert!(encoded.len() <= MAX_MESSAGE_BYTES);
        prop_assert!(Response::decode(encoded).is_ok());
    }
}

#[test]
fn an_oversized_message_is_refused_unread() {
    let bytes = Bytes::from(vec![0xff; MAX_MESSAGE_BYTES + 1]);
    assert_eq!(
        Request::decode(bytes.clone()),
        Err(MessageError::TooLarge(MAX_MESSAGE_BYTES + 1))
    );
    assert_eq!(
        Response::decode(bytes),
        Err(MessageError::TooLarge(MAX_MESSAGE_BYTES + 1))
    );
}

#[test]
fn a_contact_without_a_readable_endpoint_is_left_out() {
    let node = SecretKey::from_bytes(&[1; 32]).node_id();
    let contact = |endpoints: &[&str]| proto::Contact {
        node_id: id_bytes(node.as_bytes()),
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(contact_from_proto(contact(&["no port", ""])), None);
    assert_eq!(
        contact_from_proto(contact(&["junk", "a:1"])).unwrap().endpoints().len(),
        1
    );
    assert_eq!(
        contact_from_proto(proto::Contact {
            node_id: Bytes::from_static(b"short"),
            ..contact(&["a:1"])
        }),
        None
    );
}
