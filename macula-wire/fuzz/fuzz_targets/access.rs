//! Any bytes as a grant, a chain or a list of revocations: reading never panics, and nothing unsigned is believed.
//!
//! The bytes also become the body of a grant that the realm's key did sign, so that the checks behind the signature are reached.
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use macula_wire::{
    Chain, Pattern, Realm, RealmKey, RealmName, Revocations, SecretKey, ServiceName, SignedRevocations, Signer, proto,
};
use prost::Message;

static KEY: LazyLock<RealmKey> = LazyLock::new(|| RealmKey::from_bytes(&[9; 32]));
static REALM: LazyLock<Realm> = LazyLock::new(|| KEY.realm(RealmName::default()));

const NOW: u64 = 1_700_000_000;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(chain) = Chain::from_bytes(bytes.clone()) {
        assert!(chain.verify(&REALM, NOW).is_err());
    }
    if let Ok(list) = SignedRevocations::decode(bytes.clone()) {
        assert_eq!(SignedRevocations::decode(list.encode()).as_ref(), Ok(&list));
        let mut known = Revocations::new(REALM.clone());
        assert_ne!(known.merge(&list, NOW), Ok(true));
    }
    signed(bytes.clone());
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = text.parse::<Realm>();
    if let Ok(pattern) = text.parse::<Pattern>() {
        assert_eq!(pattern.to_string(), text);
        assert!(pattern.covers(&pattern));
        if let Ok(name) = ServiceName::new(text) {
            assert!(pattern.matches(&name));
        }
    }
});

/// A grant with this body that the realm's key signed, as no code of this project would.
fn signed(body: Bytes) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let message = [b"macula/v1/grant-by-realm\0", &length[..], &body].concat();
    let signature = SecretKey::from_bytes(KEY.as_bytes()).sign(&message);
    let signature = Bytes::copy_from_slice(&signature);
    let grant = Some(proto::SignedGrant { body, signature });
    let chain = proto::Chain { grant, issuer: None };
    let Ok(chain) = Chain::from_bytes(chain.encode_to_vec().into()) else {
        return;
    };
    if let Ok(member) = chain.verify(&REALM, NOW) {
        assert_eq!(member.chain(), Some(&chain));
        assert!(member.check_at(NOW).is_ok() && member.issuer().is_none());
    }
}
