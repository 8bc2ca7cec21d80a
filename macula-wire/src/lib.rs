#![doc = include_str!("../README.md")]

mod access;
mod address;
mod frame;
mod hash;
mod hex;
mod joining;
mod key;
mod name;
mod named;
mod node_id;
mod realm;
mod record;
mod shares;
mod signer;
mod status;

#[expect(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated from the schemas, which carry the documentation"
)]
#[rustfmt::skip]
mod r#gen {
    pub mod v1 {
        include!("gen/macula.v1.rs");
    }
}

/// The generated messages of the schemas in `proto/macula/v1`, for the crates that speak the protocol.
///
/// They are the unchecked form of the wire. A program works with the types at the top of this crate.
pub mod proto {
    pub use crate::r#gen::v1::*;
}

pub use access::{
    AccessError, Beyond, CLOCK_TOLERANCE_SECS, Chain, ChainHash, Effect, Grant, GrantRole, Issue, MAX_ADMITTED_BY,
    MAX_CHAIN_BYTES, MAX_GRANT_SECS, MAX_ISSUERS_REVOKING, MAX_KNOWN_CHAINS, MAX_LABEL_KEY_BYTES,
    MAX_LABEL_VALUE_BYTES, MAX_ORDERS, MAX_ORDERS_OF_SIGNER, MAX_PASSAGE_BYTES, Member, Order, PASSAGE_SECS, Passage,
    Pattern, Patterns, Revocations, SignedRevocations, Terms, Verifier,
};
pub use address::{Address, AddressError};
pub use frame::{FrameDecoder, FrameError, MAX_FRAME_BYTES, encode_frame, frame};
pub use joining::{
    Heeded, Issuer, JoinRefusal, JoinReply, JoinRequest, JoinToken, KeptMember, KeptToken, LineError, MAX_ISSUERS,
    MAX_JOIN_BYTES, MAX_LISTS, MAX_READMITTED, MalformedMessage, Membership, ParseTokenIdError, RevocationsReply,
    RevocationsRequest, SecretHash, TokenId, TokenSecret, known_hash,
};
pub use key::ServiceKey;
pub use name::{MAX_NAME_BYTES, NameError, RealmName, ServiceName};
pub use named::{MAX_NAMED, NAMED_AGAIN_AFTER, Named};
pub use node_id::{NodeId, ParseNodeIdError};
pub use realm::{ParseRealmError, Realm, RealmHash, RealmKey, RealmPublicKey};
pub use record::{
    Advertisement, DEFAULT_TTL, MAX_ENDPOINTS, MAX_METADATA_ENTRIES, MAX_METADATA_KEY_BYTES, MAX_RECORD_BYTES, MAX_TTL,
    MAX_ZONE_BYTES, MIN_TTL, Place, RecordError, SignedProvider, VerifiedProvider,
};
pub use shares::{Admission, Holder, Network, Shares};
pub use signer::{SecretKey, Signer};
pub use status::StatusCode;
