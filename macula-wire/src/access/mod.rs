//! Access to closed realms: grants, the chains that prove them, the members they make, and their revocation (A2, A4, A6).
//!
//! **Invariant:** a [`Member`] exists only where a chain was verified in this process, or in an open realm, whose members may all.
//! Everything that asks for a right asks a member, so an unchecked grant confers none.
//!
//! **Laws**, held by `tests/access.rs`:
//! - a verdict depends on the chain's bytes, the realm, the time, and the set of the revocations; never on the order they came in;
//! - an issued grant never allows anything that its issuer may not pass on;
//! - a chain with any bit changed is no chain.
//!
//! **Clocks.** A grant's start is checked with a tolerance of [`CLOCK_TOLERANCE_SECS`], because a fresh grant is shown at once to nodes
//! whose clocks are behind. Its end is checked without: grants are renewed long before.
//!
//! What is left out: where grants and revocations are kept, and how they travel.

mod chain;
mod error;
mod grant;
mod limits;
mod member;
mod passage;
mod pattern;
mod revocation;
mod role;
mod terms;
mod verifier;

pub use chain::{Chain, ChainHash};
pub use error::{AccessError, Beyond};
pub use grant::{Grant, Issue};
pub use limits::{
    CLOCK_TOLERANCE_SECS, MAX_ADMITTED_BY, MAX_CHAIN_BYTES, MAX_GRANT_SECS, MAX_ISSUERS_REVOKING, MAX_KNOWN_CHAINS,
    MAX_LABEL_KEY_BYTES, MAX_LABEL_VALUE_BYTES, MAX_ORDERS, MAX_ORDERS_OF_SIGNER, MAX_PASSAGE_BYTES, PASSAGE_SECS,
};
pub(crate) use member::Granted;
pub use member::Member;
pub use passage::Passage;
pub use pattern::{Pattern, Patterns};
pub use revocation::{Effect, Order, Revocations, SignedRevocations};
pub use role::GrantRole;
pub use terms::Terms;
pub use verifier::Verifier;
