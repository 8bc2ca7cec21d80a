//! Where records and contacts outlive the process.
//!
//! A backend is a cache, not an authority: its records are verified like a stranger's. The core works from memory
//! and hands changes over in batches, so a slow or broken disk delays only the commit.

use macula_wire::{Holder, NodeId, ServiceKey, SignedProvider};

use crate::Contact;

/// Keeps the records and contacts that a node wants back after a restart.
pub trait Backend {
    /// Loads everything that was kept. Called once, at the start.
    ///
    /// # Errors
    /// When nothing can be read. The node then starts empty.
    fn load(&mut self) -> Result<Loaded, BackendError>;

    /// Keeps `changes`, in this order, all or none.
    ///
    /// # Errors
    /// When they cannot be kept. They are not offered again.
    fn commit(&mut self, changes: &[Change]) -> Result<(), BackendError>;

    /// Whether the backend keeps nothing, so that changes need not be gathered.
    fn is_volatile(&self) -> bool {
        false
    }
}

/// A backend could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Reading or writing failed.
    #[error("the directory's file could not be read or written; check the disk and the file's permissions")]
    Io(#[source] std::io::Error),
    /// The stored data cannot be read.
    #[error("the directory's file is damaged; remove it, and the node starts empty")]
    Corrupt(#[source] std::io::Error),
    /// More changes wait than may wait.
    #[error("the directory's file takes changes more slowly than they come; those that do not fit are not kept")]
    Behind,
    /// Another process has it open.
    #[error("another process uses the directory's file; give each node a file of its own")]
    InUse,
}

/// A change to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A record was stored, or replaced the one of the same provider.
    Put(StoredRecord),
    /// The record of a provider is gone.
    Remove {
        /// The key.
        key: ServiceKey,
        /// The provider.
        node: NodeId,
    },
    /// These are the contacts now.
    Contacts(Vec<StoredContact>),
}

/// A record as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// The key it is under.
    pub key: ServiceKey,
    /// The provider.
    pub node: NodeId,
    /// The record.
    pub record: SignedProvider,
    /// The peer that delivered it, for which it counts (X7).
    pub deliverer: Holder<NodeId>,
    /// From then on it is not shown, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// From then on its place is free, in milliseconds since the Unix epoch. Until then it hides the records it superseded.
    pub held_until_ms: u64,
}

/// A contact as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredContact(pub Contact);

/// The records and contacts that were kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Records, unverified.
    pub records: Vec<StoredRecord>,
    /// Contacts, which may be gone by now.
    pub contacts: Vec<StoredContact>,
}

/// Keeps nothing: the node starts empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory;

impl Backend for Memory {
    fn load(&mut self) -> Result<Loaded, BackendError> {
        Ok(Loaded::default())
    }

    fn commit(&mut self, _changes: &[Change]) -> Result<(), BackendError> {
        Ok(())
    }

    fn is_volatile(&self) -> bool {
        true
    }
}
