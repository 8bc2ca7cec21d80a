//! Where others can reach this node (D13).
//!
//! [`Reach`] decides which addresses the node advertises, from the interfaces and from peers' reports. It reads no clock
//! and no socket; [`interfaces`] does.

pub(crate) mod interfaces;
mod reach;

pub(crate) use self::reach::{Reach, is_this_host_only};
