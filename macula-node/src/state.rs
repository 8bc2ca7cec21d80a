//! A node as its operator sees it: one snapshot, and the events between two of them (N5).
//!
//! The admin interface, the command line and dashboards are made from these two. Taking a snapshot costs a look at each connection and
//! each service, and one message to the directory's task; a node that no one looks at pays nothing.
//!
//! Left out: text for people. The admin interface has its own names for all of this.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use macula_rpc::{CallStats, CalledService, Refusals};
use macula_transport::{ConnectionStats, PoolStats, Role};
use macula_wire::{AccessError, Address, NodeId, Realm, ServiceName};

use crate::{
    JoinError, JoinReport, Node,
    directory::DirectoryState,
    events::NodeEvents,
    life::{Ending, Phase},
};

/// A node at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NodeState {
    /// The node.
    pub node_id: NodeId,
    /// Its realm.
    pub realm: Realm,
    /// Whether it stores records for others.
    pub role: Role,
    /// When it was started.
    pub started: SystemTime,
    /// How long ago that was, by a clock that is not set.
    pub uptime: Duration,
    /// Where it is in its life.
    pub phase: Phase,
    /// How it got into the mesh, or why not; `None` during its first attempt.
    pub join: Option<Result<JoinReport, JoinError>>,
    /// Its addresses.
    pub addresses: Addresses,
    /// Its connections, the oldest first.
    pub connections: Vec<ConnectionStats>,
    /// The counters of the connection pool.
    pub pool: PoolStats,
    /// The counters of the transport.
    pub transport: macula_transport::Stats,
    /// The directory: routing table, records, cache.
    pub directory: DirectoryState,
    /// The services it serves.
    pub served: Served,
    /// The services it has called.
    pub called: Vec<CalledService>,
    /// The calls it has forwarded for others.
    pub forwarded: CallStats,
    /// How many revocations that peers passed on were not valid (A6).
    pub refused_revocations: u64,
    /// How many requests for a first or a renewed grant were refused (A7).
    pub refused_joins: u64,
    /// The node, or the issuer, whose revocation shuts this node out of its realm (A6); `None` while it is in.
    pub revoked: Option<NodeId>,
}

/// The addresses of a node.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Addresses {
    /// The address of the socket.
    pub listening: SocketAddr,
    /// Where others are told to dial.
    pub advertised: Arc<[Address]>,
    /// Where connected peers see the node, with their number.
    pub observed: BTreeMap<SocketAddr, usize>,
}

/// The services that a node serves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Served {
    /// Each with its calls, sorted by name.
    pub services: Vec<(ServiceName, CallStats)>,
    /// Calls that run now.
    pub running: usize,
    /// Calls that run at a time at most.
    pub max_running: usize,
    /// Calls that were refused because of that, or because of the node's end.
    pub refusals: Refusals,
    /// Calls that the services' own lists did not admit (A5), and calls of this process that the node's own grant does not allow.
    pub not_admitted: u64,
}

impl Node {
    /// The node at this moment.
    pub async fn state(&self) -> NodeState {
        let inner = &self.inner;
        let directory = inner.directory.state().await;
        let pool = inner.transport.pool();
        let connections = pool.connections();
        let mut observed = BTreeMap::new();
        for at in connections.iter().filter_map(|connection| connection.peer.observed) {
            *observed.entry(at).or_default() += 1;
        }
        let join = inner.progress.borrow().clone();
        let services = inner.server.served_calls();
        NodeState {
            node_id: self.id(),
            realm: inner.life.realm.clone(),
            role: inner.life.role,
            started: inner.life.started,
            uptime: inner.life.uptime(),
            phase: self.phase(),
            join,
            addresses: Addresses {
                listening: self.local_addr(),
                advertised: self.endpoints(),
                observed,
            },
            connections,
            pool: pool.stats(),
            transport: inner.transport.stats(),
            directory,
            served: Served {
                not_admitted: services.iter().map(|(service, _)| inner.server.denied(service)).sum(),
                services,
                running: inner.server.running(),
                max_running: inner.server.max_concurrent_calls(),
                refusals: inner.server.refusals(),
            },
            called: inner.client.called(),
            forwarded: inner.client.forwarded_calls(),
            refused_revocations: self.refused_revocations(),
            refused_joins: self.refused_joins(),
            revoked: self.revoked(),
        }
    }

    /// The node whose revocation shuts this one out: this one, or an issuer of its grants.
    fn revoked(&self) -> Option<NodeId> {
        match self.access().own() {
            Err(AccessError::Revoked(node_id)) => Some(node_id),
            Ok(_) | Err(_) => None,
        }
    }

    /// Where the node is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match (*self.inner.life.ending().borrow(), &*self.inner.progress.borrow()) {
            (Ending::Left, _) => Phase::Left,
            (Ending::Draining, _) => Phase::Draining,
            (Ending::NotYet, Some(Ok(_))) => Phase::Serving,
            (Ending::NotYet, Some(Err(_)) | None) => Phase::Joining,
        }
    }

    /// How many calls run here now.
    #[must_use]
    pub fn running_calls(&self) -> usize {
        self.inner.server.running()
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> NodeEvents {
        NodeEvents::of(
            self.inner.directory.news(),
            self.inner.transport.pool().events(),
            self.inner.client.events(),
        )
    }
}
