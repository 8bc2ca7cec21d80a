//! Any bytes as a request, a response, a record: decoding never panics, and a decoded message survives encoding and decoding.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use macula_dht::{Request, Response};
use macula_wire::{Realm, ServiceKey, SignedProvider};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(request) = Request::decode(bytes.clone()) {
        assert_eq!(Request::decode(request.encode()), Ok(request));
    }
    if let Ok(response) = Response::decode(bytes.clone()) {
        // A lenient encoding may be longer once it is made again; within the limit it means the same.
        let again = response.encode();
        if again.len() <= macula_dht::MAX_MESSAGE_BYTES {
            assert_eq!(Response::decode(again), Ok(response));
        }
    }
    if let Some((signature, body)) = data.split_at_checked(64) {
        let record = SignedProvider {
            body: Bytes::copy_from_slice(body),
            signature: Bytes::copy_from_slice(signature),
            chain: Bytes::new(),
        };
        let _ = record.verify(&Realm::default().hash(), &ServiceKey::from_bytes([1; 32]));
    }
});
