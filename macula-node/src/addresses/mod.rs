//! Where others can reach this node (D13).
//!
//! [`Reach`] decides which addresses the node advertises, from what [`interfaces`] reads and what peers report. It reads no clock
//! and no socket.

pub(crate) mod interfaces;
mod reach;

pub(crate) use self::reach::{Reach, is_this_host_only};
