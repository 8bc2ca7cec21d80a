//! How many addresses a record and a contact may have.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use bytes::Bytes;
use common::{EPOCH_MS, bench::Bench, contact_of, key, secret};
use macula_dht::{Config, Contact, Outcome, Refusal, Response};
use macula_wire::{Advertisement, Realm, SignedProvider, Signer, VerifiedProvider, proto};
use prost::Message as _;

/// The domain tag before the bytes that a publisher signs.
const SIGNATURE_DOMAIN: &[u8] = b"macula/v1/provider\0";

/// A record with more endpoints than it may have is refused, and a contact's list is cut.
#[test]
fn unlimited_addresses_are_not_taken() {
    let mut bench = Bench::new(Config::default());
    let many = || (1..200).map(|n| format!("203.0.113.{n}:443").parse().unwrap());
    let realm = Realm::default().hash();
    let advertisement = Advertisement::new(many());
    assert!(VerifiedProvider::sign(&secret(1), &realm, &key("a.b"), 1, EPOCH_MS, &advertisement).is_err());
    let contact = Contact::new(*contact_of(1).node_id(), many());
    assert_eq!(contact.endpoints().len(), 8);
    bench.befriend([2]);
    bench
        .dht
        .start_find_node(bench.now, (*contact_of(9).node_id()).into())
        .unwrap();
    let (id, ..) = bench.sends()[0];
    let nodes = Response::decode(Response::Nodes(vec![contact; 30]).encode()).unwrap();
    assert!(matches!(&nodes, Response::Nodes(contacts) if contacts.len() == 20));
    // The reply as a peer of another make might encode it.
    let contact = proto::Contact {
        node_id: Bytes::copy_from_slice(contact_of(1).node_id().as_bytes()),
        endpoints: (1..200).map(|n| format!("203.0.113.{n}:443")).collect(),
    };
    let kind = proto::dht_response::Kind::Nodes(proto::Nodes {
        closest: vec![contact; 4],
    });
    let bytes = proto::DhtResponse { kind: Some(kind) }.encode_to_vec();
    let nodes = Response::decode(bytes.into()).unwrap();
    let Response::Nodes(contacts) = &nodes else {
        panic!("nodes")
    };
    assert_eq!(contacts.len(), 4);
    assert!(contacts.iter().all(|contact| contact.endpoints().len() == 8));
    bench.answer(id, nodes);
}

/// A publisher signs a record with one endpoint more than it may have, and no node holds it.
#[test]
fn a_signed_record_with_too_many_addresses_is_refused() {
    let mut bench = Bench::new(Config::default());
    let (service, publisher) = (key("a.b"), secret(1));
    let mut publish = |endpoints: usize| {
        let body = proto::ProviderRecord {
            node_id: Bytes::copy_from_slice(publisher.node_id().as_bytes()),
            seq: 1,
            advertised_at_ms: EPOCH_MS,
            ttl_secs: 300,
            weight: 1,
            endpoints: (0..endpoints).map(|n| format!("203.0.113.{n}:443")).collect(),
            ..Default::default()
        }
        .encode_to_vec();
        let length = (body.len() as u32).to_be_bytes();
        let realm = Realm::default().hash();
        let message = [SIGNATURE_DOMAIN, realm.as_bytes(), service.as_bytes(), &length, &body].concat();
        let record = SignedProvider {
            body: body.into(),
            signature: Bytes::copy_from_slice(&publisher.sign(&message)),
            chain: Bytes::new(),
        };
        bench.publish(1, service, record)
    };
    assert_eq!(publish(9), Outcome::Refused(Refusal::Invalid));
    assert_eq!(publish(8), Outcome::Stored);
}
