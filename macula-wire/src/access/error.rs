//! Why a grant, or an order to revoke one, is not valid.

use std::fmt;

use super::limits::{
    MAX_ADMITTED_BY, MAX_CHAIN_BYTES, MAX_GRANT_SECS, MAX_ISSUERS_REVOKING, MAX_ORDERS, MAX_ORDERS_OF_SIGNER,
};
use super::role::GrantRole;
use crate::NodeId;

/// The right in which a grant goes beyond its issuer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Beyond {
    /// It begins earlier or ends later.
    Dates,
    /// It has a role that the issuer may not give.
    Roles,
    /// It provides services that the issuer may not give.
    Provide,
    /// It calls services that the issuer may not give.
    Call,
    /// It has a label that the issuer may not give.
    Labels,
    /// It lets its node issue, which the realm's key alone may do.
    Issue,
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dates => "its dates",
            Self::Roles => "its roles",
            Self::Provide => "the services it provides",
            Self::Call => "the services it calls",
            Self::Labels => "its labels",
            Self::Issue => "the right to issue",
        })
    }
}

/// A grant or a revocation is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// A closed realm's member showed no grant.
    #[error("the realm is closed and no grant was shown: ask one of its issuers for a grant")]
    NoGrant,
    /// The chain is larger than [`MAX_CHAIN_BYTES`].
    #[error("the grant has {0} bytes with its issuer's, more than {MAX_CHAIN_BYTES}: name fewer services and labels")]
    TooLarge(usize),
    /// The bytes are not what they should be, or not encoded as the protocol encodes them.
    #[error("the grant cannot be read: it is damaged, or of a later version")]
    Malformed,
    /// The grant is of another realm.
    #[error("the grant is of another realm")]
    OtherRealm,
    /// The grant is another node's.
    #[error("the grant is of node {0} and not of the node that shows it")]
    OtherNode(NodeId),
    /// A signature is not right.
    #[error("the grant's signature is neither the realm's nor its issuer's")]
    BadSignature,
    /// The grant begins later.
    #[error("the grant begins in {0} s: is a clock wrong?")]
    NotYet(u64),
    /// The grant has ended.
    #[error("the grant ended {0} s ago: renew it")]
    Ended(u64),
    /// The dates are in the wrong order, or further apart than [`MAX_GRANT_SECS`].
    #[error("a grant ends after its begin, and at most {} days later", MAX_GRANT_SECS / 86_400)]
    BadDates,
    /// The signer's own grant does not let it issue.
    #[error("the grant is signed by a node that may not issue grants")]
    NotAnIssuer,
    /// The grant allows more than its issuer may pass on.
    #[error("the grant goes beyond its issuer's in {0}")]
    Widened(Beyond),
    /// More than [`MAX_ADMITTED_BY`] issuers have signed the node's grants one after the other.
    #[error("more than {MAX_ADMITTED_BY} issuers have renewed the grant in turn: join with a new token")]
    TooManyRenewers,
    /// A label has a key or value that a label may not have.
    #[error("a label is KEY=VALUE: the key a name like `team`, the value 1 to 128 bytes of plain text")]
    BadLabel,
    /// The grant does not let its node be what it says that it is.
    #[error("the grant lets its node be a {0} at most, which is less than it introduces itself as")]
    Role(GrantRole),
    /// The grant was taken back.
    #[error("the grant of node {0} was revoked")]
    Revoked(NodeId),
    /// A router shows no passage of the caller for this service, or one of another router or service.
    #[error("the call was passed on without its caller's leave for this router and service")]
    BadPassage,
    /// The caller's leave for its router has ended.
    #[error("the caller's leave for its router has ended: is a clock wrong?")]
    OldPassage,
    /// The signer of a revocation may not revoke.
    #[error("the revocation's signature is neither the realm's nor a known issuer's")]
    BadRevoker,
    /// A revocation is dated in the future.
    #[error("the revocation is dated {0} s ahead: is a clock wrong?")]
    FromTheFuture(u64),
    /// A list has more than [`MAX_ORDERS`] orders, or none.
    #[error("a list of revocations has 1 to {MAX_ORDERS} orders")]
    BadOrders,
    /// A signer has revoked [`MAX_ORDERS_OF_SIGNER`] members.
    #[error("the signer has revoked {MAX_ORDERS_OF_SIGNER} members: use a new realm key")]
    TooManyOrders,
    /// Too many issuers have revoked members.
    #[error("{MAX_ISSUERS_REVOKING} issuers have revoked members: revoke with the realm's key")]
    TooManyIssuers,
}
