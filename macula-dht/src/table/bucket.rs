//! One bucket: entries and replacements, each from the least to the most recently seen.

use std::ops::{Deref, DerefMut};

use macula_wire::NodeId;

use super::{K, REPLACEMENTS};
use crate::{Contact, Point};

/// A contact and its history.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) contact: Contact,
    /// The first 64 bits of its id, which order almost any set of contacts by distance without fetching them.
    head: u64,
    /// When it last answered, in seconds since the table was made.
    pub(super) seen: u32,
    /// Requests failed since then.
    pub(super) failures: u8,
    /// A newcomer waits for the answer to a ping.
    pub(super) checking: bool,
}

impl Entry {
    pub(super) fn new(contact: Contact, seen: u32) -> Self {
        Self {
            head: Point::from(contact.node_id()).head(),
            contact,
            seen,
            failures: 0,
            checking: false,
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// Puts another contact of the same node in the place of this one.
    pub(super) fn set_contact(&mut self, contact: Contact) {
        debug_assert_eq!(contact.node_id(), self.contact.node_id());
        self.contact = contact;
    }
}

/// An element of a [`Line`].
pub(super) trait Standing {
    fn contact(&self) -> &Contact;
}

impl Standing for Entry {
    fn contact(&self) -> &Contact {
        &self.contact
    }
}

/// A replacement is a bare contact: there are half as many replacements as entries.
impl Standing for Contact {
    fn contact(&self) -> &Contact {
        self
    }
}

/// Up to `N` contacts, the least recently seen first.
#[derive(Debug)]
pub(super) struct Line<E, const N: usize> {
    entries: Vec<E>,
    /// The last byte of each contact's id. Most requests come from contacts that are not here, and this shows it without
    /// fetching the entries, a cache line each.
    tags: [u8; N],
}

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) entries: Line<Entry, K>,
    pub(super) replacements: Line<Contact, REPLACEMENTS>,
    /// When a lookup last went through it, in seconds since the table was made.
    pub(super) looked_up: u32,
}

impl<E: Standing, const N: usize> Line<E, N> {
    /// The most entries room is made for at a time: a node has many buckets, most of them partly filled.
    const GROWTH: usize = 5;

    fn new() -> Self {
        Self {
            entries: Vec::new(),
            tags: [0; N],
        }
    }

    pub(super) fn position(&self, node: &NodeId) -> Option<usize> {
        let tag = tag(node);
        let tags = self.tags.iter().take(self.entries.len());
        tags.enumerate()
            .find(|&(at, candidate)| *candidate == tag && self.entries[at].contact().node_id() == node)
            .map(|(at, _)| at)
    }

    /// Adds an entry; the caller has seen that there is room.
    pub(super) fn push(&mut self, entry: E) {
        let len = self.entries.len();
        if len == self.entries.capacity() {
            self.entries.reserve_exact((N - len.min(N)).clamp(1, Self::GROWTH));
        }
        self.tags[len] = tag(entry.contact().node_id());
        self.entries.push(entry);
    }

    pub(super) fn remove(&mut self, at: usize) -> E {
        self.tags.copy_within(at + 1.., at);
        self.entries.remove(at)
    }

    /// Adds an entry as the least recently seen; the caller has seen that there is room.
    pub(super) fn push_front(&mut self, entry: E) {
        self.push(entry);
        self.tags[..self.entries.len()].rotate_right(1);
        self.entries.rotate_right(1);
    }

    /// Makes an entry the most recently seen.
    fn move_to_end(&mut self, at: usize) {
        self.tags[at..self.entries.len()].rotate_left(1);
        self.entries[at..].rotate_left(1);
    }
}

impl<E, const N: usize> Deref for Line<E, N> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.entries
    }
}

impl<E, const N: usize> DerefMut for Line<E, N> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.entries
    }
}

impl<'a, E, const N: usize> IntoIterator for &'a Line<E, N> {
    type Item = &'a E;
    type IntoIter = std::slice::Iter<'a, E>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter()
    }
}

fn tag(node: &NodeId) -> u8 {
    node.as_bytes()[31]
}

impl Bucket {
    pub(super) fn new(seconds: u32) -> Self {
        Self {
            entries: Line::new(),
            replacements: Line::new(),
            looked_up: seconds,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.replacements.is_empty()
    }

    pub(super) fn position(&self, node: &NodeId) -> Option<usize> {
        self.entries.position(node)
    }

    pub(super) fn contains(&self, node: &NodeId) -> bool {
        self.entries.position(node).is_some() || self.replacements.position(node).is_some()
    }

    /// Makes an entry the most recently seen.
    pub(super) fn touch(&mut self, at: usize, seen: u32) {
        let entry = &mut self.entries[at];
        (entry.seen, entry.failures, entry.checking) = (seen, 0, false);
        self.entries.move_to_end(at);
    }

    /// Adds a replacement, at the cost of the least recently seen one when there is no room.
    pub(super) fn wait(&mut self, contact: Contact) {
        self.forget_replacement(contact.node_id());
        if self.replacements.len() == REPLACEMENTS {
            self.replacements.remove(0);
        }
        self.replacements.push(contact);
    }

    pub(super) fn forget_replacement(&mut self, node: &NodeId) {
        if let Some(at) = self.replacements.position(node) {
            self.replacements.remove(at);
        }
    }
}
