//! What all connections of an endpoint share: memory, places for calls, signature checks and lookups of names.
//!
//! [`budget`] divides a resource fairly between the peers, [`memory`] charges the bytes that peers make this node keep, [`places`]
//! counts the calls that run, [`names`] bounds the host names that are looked up, and [`machine`] says how much memory there is.

pub(crate) mod budget;
pub(crate) mod checks;
mod machine;
pub(crate) mod memory;
pub(crate) mod names;
pub(crate) mod places;
pub(crate) mod window;

pub(crate) use machine::default_memory_bytes;
