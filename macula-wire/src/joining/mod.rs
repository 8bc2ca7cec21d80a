//! Joining a closed realm: the lines of text that people carry, and the messages of nodes that need not be members (A6, A7).
//!
//! **Lines.** [`Membership`] is a grant to use and [`JoinToken`] an invitation. Each is one line of plain letters, digits, `-` and `_`
//! that begins with its kind and ends with a checksum, so a line that was cut off or mixed up is told apart from one that is refused.
//!
//! **Messages.** [`JoinRequest`] and [`JoinReply`] are all that a node says before it is a member. [`RevocationsRequest`] and
//! [`RevocationsReply`] carry revocations between members.
//!
//! **Invariant:** a token's secret is in the line and in the request, and nowhere else: an issuer keeps [`TokenSecret::hash`].
//!
//! What is left out: which node may have which grant. Issuers decide that, in macula-node.

mod gossip;
mod kept;
mod line;
mod membership;
mod message;
mod token;

pub use gossip::{MAX_LISTS, RevocationsReply, RevocationsRequest, known_hash};
pub use kept::{KeptMember, KeptToken};
pub use line::LineError;
pub use membership::{Issuer, MAX_ISSUERS, Membership};
pub use message::{Heeded, JoinRefusal, JoinReply, JoinRequest, MAX_JOIN_BYTES, MAX_READMITTED, MalformedMessage};
pub use token::{JoinToken, ParseTokenIdError, SecretHash, TokenId, TokenSecret};
