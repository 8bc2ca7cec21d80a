//! A node's place in a closed realm: how it gets its grant and keeps it, and what it does for other nodes' (A6, A7).
//!
//! - [`place`]: this node's own grant. A token gets the first one; it is renewed long before it ends.
//! - [`issuer`]: a node whose grant lets it issue answers tokens and renewals; [`folder`] keeps its tokens and members.
//! - [`spread`]: every member passes revocations on.
//!
//! **Invariant:** a node that is no member reaches [`Doorkeeper::answer`] and nothing else of a node. What it sends is bounded by
//! [`MAX_JOIN_BYTES`](macula_wire::MAX_JOIN_BYTES), and how often by [`limiter`].

mod folder;
mod issuer;
mod limiter;
mod place;
mod spread;

pub use self::{
    folder::{FolderError, IssuerFolder, MAX_MEMBERS, MAX_TOKENS},
    issuer::{DEFAULT_GRANT_LIFE, MIN_GRANT_LIFE},
    place::{MembershipError, realm_file},
};
pub(crate) use self::{
    issuer::Doorkeeper,
    place::{Kept, Place},
    spread::Spread,
};

/// The service under which issuers are found. They answer it like a visitor's request.
pub(crate) const RENEW_SERVICE: &str = "macula.realm.renew";
