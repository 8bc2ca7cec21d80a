//! Strangers that are being asked whether they answer.
//!
//! **Invariant:** at most [`MAX_PROBES`] of them come from requests, and few of those from one public subnet: ids cost nothing,
//! and one subnet that answers no ping must not take all the places.

use std::collections::BTreeMap;

use macula_wire::NodeId;

use crate::{Contact, contact::Subnet};

/// The most strangers that are asked at a time whether they answer.
const MAX_PROBES: usize = 16;

/// The strangers being asked, and the subnet of each.
#[derive(Debug, Default)]
pub(super) struct Probes(BTreeMap<NodeId, Subnet>);

impl Probes {
    /// Whether a stranger that sent a request may be asked; `per_subnet` of its subnet may be asked at a time.
    pub(super) fn has_room(&self, subnet: Subnet, per_subnet: usize) -> bool {
        let neighbours = || self.0.values().filter(|probed| **probed == subnet).count();
        self.0.len() < MAX_PROBES && (!subnet.is_limited() || neighbours() < per_subnet)
    }

    /// Notes that `contact` is asked. Returns `false` when that is so already.
    pub(super) fn begin(&mut self, contact: &Contact) -> bool {
        self.0.insert(*contact.node_id(), contact.subnet()).is_none()
    }

    pub(super) fn end(&mut self, node: &NodeId) {
        self.0.remove(node);
    }

    /// Gives unused memory back: an empty map keeps room for eleven entries.
    pub(super) fn give_back(&mut self) {
        if self.0.is_empty() {
            self.0 = BTreeMap::new();
        }
    }
}
