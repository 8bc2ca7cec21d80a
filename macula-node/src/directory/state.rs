//! The directory at one moment, for the node's operator.

use std::time::{Duration, Instant};

use macula_dht::{Contact, StoreLimits, Usage};
use macula_wire::{NodeId, ServiceName};

use super::{DirectoryStats, PublishReport};

/// The directory of a node at one moment. Empty once the node has left.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DirectoryState {
    /// The counters.
    pub stats: DirectoryStats,
    /// The routing table, by ascending distance of its buckets.
    pub contacts: Vec<Contact>,
    /// Nodes that wait for a place in the table.
    pub replacements: usize,
    /// An estimate of the number of nodes in the mesh, once there are enough contacts for one.
    pub network_size: Option<f64>,
    /// The records held here.
    pub held: Usage,
    /// Their limits.
    pub limits: StoreLimits,
    /// Keys in the cache.
    pub cached: usize,
    /// The most keys in the cache.
    pub max_cached: usize,
    /// This node's own records, sorted by service.
    pub published: Vec<Publication>,
}

/// A record of this node in the directory.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Publication {
    /// The service.
    pub service: ServiceName,
    /// The nodes that acknowledged it last.
    pub holders: Vec<NodeId>,
    /// The last publication, and how long ago it ended.
    pub last: Option<(PublishReport, Duration)>,
}

/// A service of this node as the directory's task knows it.
#[derive(Debug, Clone)]
pub(super) struct Own {
    /// People do not know keys.
    pub(super) name: ServiceName,
    pub(super) last: Option<(PublishReport, Instant)>,
}

impl Own {
    pub(super) fn new(name: &ServiceName) -> Self {
        Self {
            name: name.clone(),
            last: None,
        }
    }
}
