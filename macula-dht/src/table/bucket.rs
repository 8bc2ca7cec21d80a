//! One bucket: entries and replacements, each from the least to the most recently seen.

use macula_wire::NodeId;

use super::{K, REPLACEMENTS};
use crate::Contact;

/// A contact and what is remembered of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) contact: Contact,
    /// When it last answered, in seconds since the table was made.
    pub(super) seen: u32,
    /// Requests failed since then.
    pub(super) failures: u8,
    /// A newcomer waits for the answer to a ping.
    pub(super) checking: bool,
}

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) entries: Vec<Entry>,
    pub(super) replacements: Vec<Entry>,
    /// When a lookup last went through it, in seconds since the table was made.
    pub(super) looked_up: u32,
}

impl Bucket {
    pub(super) fn new(seconds: u32) -> Self {
        Self {
            entries: Vec::new(),
            replacements: Vec::new(),
            looked_up: seconds,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.replacements.is_empty()
    }

    pub(super) fn position(&self, node: &NodeId) -> Option<usize> {
        self.entries.iter().position(|entry| entry.contact.node_id() == node)
    }

    pub(super) fn contains(&self, node: &NodeId) -> bool {
        self.entries
            .iter()
            .chain(&self.replacements)
            .any(|entry| entry.contact.node_id() == node)
    }

    /// Adds an entry; the caller has seen that there is room.
    pub(super) fn push(&mut self, entry: Entry) {
        grow(&mut self.entries, K);
        self.entries.push(entry);
    }

    /// Makes an entry the most recently seen.
    pub(super) fn touch(&mut self, at: usize, seen: u32) {
        let entry = &mut self.entries[at];
        (entry.seen, entry.failures, entry.checking) = (seen, 0, false);
        self.entries[at..].rotate_left(1);
    }

    /// Adds a replacement, at the cost of the least recently seen one when there is no room.
    pub(super) fn wait(&mut self, entry: Entry) {
        self.forget_replacement(entry.contact.node_id());
        if self.replacements.len() == REPLACEMENTS {
            self.replacements.remove(0);
        }
        grow(&mut self.replacements, REPLACEMENTS);
        self.replacements.push(entry);
    }

    pub(super) fn forget_replacement(&mut self, node: &NodeId) {
        self.replacements.retain(|entry| entry.contact.node_id() != node);
    }
}

/// Makes room for one more without reserving beyond `limit`: a node holds many buckets, most of them partly filled.
fn grow(entries: &mut Vec<Entry>, limit: usize) {
    if entries.len() == entries.capacity() {
        entries.reserve_exact((limit - entries.len().min(limit)).clamp(1, 5));
    }
}
