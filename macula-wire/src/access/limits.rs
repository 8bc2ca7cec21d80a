//! The bounds of grants and revocations.

/// The most bytes a member's proof has: its grant and its issuer's.
pub const MAX_CHAIN_BYTES: usize = 1024;
/// The longest time a grant is valid, in seconds: 400 days, so that a yearly renewal can be late.
pub const MAX_GRANT_SECS: u64 = 400 * 24 * 60 * 60;
/// How much earlier than its start a grant is accepted, in seconds, and how far ahead a revocation may be dated: clocks differ.
pub const CLOCK_TOLERANCE_SECS: u64 = 300;
/// The most issuers that may have signed a member's grants one after the other.
pub const MAX_ADMITTED_BY: usize = 8;
/// The longest key of a label, in bytes.
pub const MAX_LABEL_KEY_BYTES: usize = 64;
/// The longest value of a label, in bytes.
pub const MAX_LABEL_VALUE_BYTES: usize = 128;

/// The most orders in one signed list.
pub const MAX_ORDERS: usize = 64;
/// The most members that one signer has orders about; the realm's key may have eight times as many.
pub const MAX_ORDERS_OF_SIGNER: usize = 512;
/// The most issuers whose orders are kept.
pub const MAX_ISSUERS_REVOKING: usize = 32;
/// The most chains whose check a node remembers, 6 MiB at most.
pub const MAX_KNOWN_CHAINS: usize = 4096;
/// The most bytes of a passage: a chain, a key, a date and a signature.
pub const MAX_PASSAGE_BYTES: usize = MAX_CHAIN_BYTES + 128;
/// How long a passage lasts, in seconds, and by how much the clocks of a caller and a provider may differ for one.
pub const PASSAGE_SECS: u64 = 60 * 60;
