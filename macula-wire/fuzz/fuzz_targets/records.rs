//! Any bytes as a provider record, an address or a passage: reading never panics, and nothing unsigned is believed.
//!
//! The bytes also become the body of a record that its node did sign, so that the checks behind the signature are reached.
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use macula_wire::{
    Address, MAX_ENDPOINTS, Passage, Realm, RealmKey, RealmName, SecretKey, ServiceKey, ServiceName, SignedProvider,
    Signer, Verifier,
};

static OPEN: LazyLock<Realm> = LazyLock::new(Realm::default);
static CLOSED: LazyLock<Realm> = LazyLock::new(|| RealmKey::from_bytes(&[9; 32]).realm(RealmName::default()));
static SIGNER: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::from_bytes(&[7; 32]));

const NOW: u64 = 1_700_000_000;
const KEY: ServiceKey = ServiceKey::from_bytes([3; 32]);

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let (body, rest) = bytes.split_at(bytes.len() / 2);
    let record = SignedProvider {
        body: Bytes::copy_from_slice(body),
        signature: Bytes::copy_from_slice(&rest[..rest.len().min(64)]),
        chain: Bytes::copy_from_slice(rest),
    };
    assert!(record.verify(&OPEN.hash(), &KEY).is_err());
    assert!(record.verify_apart(&CLOSED, &KEY, None, NOW).is_err());
    assert!(
        record
            .verify_with(&mut Verifier::new(CLOSED.clone()), &KEY, NOW)
            .is_err()
    );
    signed(bytes.clone());
    let service: ServiceName = "a.b".parse().expect("a valid name");
    for realm in [&*OPEN, &*CLOSED] {
        if let Ok(passage) = Passage::read(&bytes) {
            assert!(passage.check_signed(realm, &SIGNER.node_id(), &service).is_err());
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>(), Ok(address));
    }
});

/// A record with this body that its node signed, as no code of this project would.
fn signed(body: Bytes) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let realm = OPEN.hash();
    let message = [
        b"macula/v1/provider\0",
        &realm.as_bytes()[..],
        KEY.as_bytes(),
        &length,
        &body,
    ]
    .concat();
    let record = SignedProvider {
        body,
        signature: Bytes::copy_from_slice(&SIGNER.sign(&message)),
        chain: Bytes::new(),
    };
    if let Ok(read) = record.verify(&realm, &KEY) {
        assert_eq!(*read.node_id(), SIGNER.node_id());
        assert_eq!(read.to_signed(), record);
        let advertisement = read.advertisement();
        assert_eq!(advertisement.is_none(), read.is_withdrawn());
        assert!(advertisement.is_none_or(|it| (1..=MAX_ENDPOINTS).contains(&it.endpoints().len())));
    }
}
