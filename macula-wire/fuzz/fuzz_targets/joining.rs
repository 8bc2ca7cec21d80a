//! Any bytes as the messages of joining and of revocations, and any text as a token or a membership: reading never panics, and what is
//! read means the same when it is written and read again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use macula_wire::{
    JoinReply, JoinRequest, JoinToken, KeptMember, KeptToken, Membership, RevocationsReply, RevocationsRequest, TokenId,
};

/// Reads the bytes; what is read is the same after it was written.
macro_rules! again {
    ($kind:ty, $bytes:expr) => {
        if let Ok(read) = <$kind>::decode($bytes.clone()) {
            let written = read.encode();
            let again = <$kind>::decode(written.clone()).expect("it was written here");
            assert_eq!(again.encode(), written);
        }
    };
}

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    again!(JoinRequest, bytes);
    again!(JoinReply, bytes);
    again!(KeptToken, bytes);
    again!(KeptMember, bytes);
    if let Ok(request) = RevocationsRequest::decode(bytes.clone()) {
        let _ = RevocationsReply::to(&request, [0; 32], &request.news).encode();
    }
    if let Ok(reply) = RevocationsReply::decode(bytes) {
        let _ = reply.encode();
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert!(token.to_string().parse::<JoinToken>().is_ok());
    }
    if let Ok(id) = text.parse::<TokenId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    let _ = text.parse::<Membership>();
});
