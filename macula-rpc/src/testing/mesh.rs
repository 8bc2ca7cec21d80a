//! The mesh: its nodes by name, and the faults that a test gives them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use macula_transport::{Config, Endpoint, Identity, Role};
use macula_wire::{NodeId, SecretKey, ServiceName};

use super::{LinkConditions, MeshNode, Network};
use crate::{Provider, Server};

/// How long a node that leaves waits for the calls it runs.
const GRACE: Duration = Duration::from_secs(30);

/// A mesh in memory. Cheap to clone; clones are the same mesh. It ends, with all its nodes, when the last clone and the last
/// [`MeshNode`] are dropped.
#[derive(Debug, Clone)]
pub struct Mesh {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    seed: u64,
    network: Network,
    pub(super) nodes: Mutex<Nodes>,
}

#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) by_name: BTreeMap<String, Node>,
    /// The directory's last answers.
    pub(super) answers: BTreeMap<ServiceName, Arc<[Provider]>>,
    pub(super) directory_lost: bool,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) identity: Identity,
    pub(super) addr: SocketAddr,
    pub(super) server: Server,
    pub(super) presence: Presence,
}

impl Node {
    pub(super) fn id(&self) -> NodeId {
        self.identity.node_id()
    }
}

#[derive(Debug)]
pub(super) enum Presence {
    Running(Endpoint),
    /// Ended by `kill`.
    Killed,
    /// Ended by `stop`.
    Left,
}

impl Mesh {
    /// A mesh without nodes, on a network whose links take a millisecond and lose nothing.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let shared = Shared {
            seed,
            network: Network::new(seed),
            nodes: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Sets the link between nodes without one of their own.
    #[must_use]
    pub fn with_link(self, link: LinkConditions) -> Self {
        self.shared.network.set_usual_link(link);
        self
    }

    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.shared.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of this name. The first call starts it, without services.
    ///
    /// # Panics
    /// Outside a tokio runtime, and when there are [`MAX_HOSTS`](macula_transport::testing::MAX_HOSTS) nodes.
    pub fn node(&self, name: &str) -> MeshNode {
        let mut nodes = self.nodes();
        if !nodes.by_name.contains_key(name) {
            let identity = self.shared.identity(name);
            let server = Server::new();
            let endpoint = self.shared.start(&identity, None, &server);
            let node = Node {
                identity,
                addr: endpoint.local_addr(),
                server,
                presence: Presence::Running(endpoint),
            };
            nodes.by_name.insert(name.to_owned(), node);
        }
        drop(nodes);
        MeshNode::new(self.clone(), name)
    }

    /// Ends a node as `kill -9` does: it sends nothing more, its calls are dropped, and the directory still lists it. Its clients end with
    /// it. A node that does not run stays as it is.
    ///
    /// # Panics
    /// When no node has the name.
    pub fn kill(&self, name: &str) {
        let killed = self.with(name, |node| match node.presence {
            Presence::Running(_) => {
                self.shared.network.kill(node.addr);
                Some(std::mem::replace(&mut node.presence, Presence::Killed))
            }
            Presence::Killed | Presence::Left => None,
        });
        // Dropped outside the lock, because its handlers may hold clients.
        drop(killed);
    }

    /// Kills a node if it runs, and starts it again with its identity, its address and its services. It has no connections and needs new
    /// clients.
    ///
    /// # Panics
    /// As [`Mesh::kill`].
    pub fn restart(&self, name: &str) {
        self.kill(name);
        self.with(name, |node| {
            let endpoint = self.shared.start(&node.identity, Some(node.addr), &node.server);
            node.presence = Presence::Running(endpoint);
        });
    }

    /// Ends a node in order (N4): the directory no longer lists it, it refuses new calls, finishes running ones for at most 30 s, and
    /// closes its connections.
    ///
    /// # Panics
    /// As [`Mesh::kill`].
    pub async fn stop(&self, name: &str) {
        let left = self.with(name, |node| std::mem::replace(&mut node.presence, Presence::Left));
        if let Presence::Running(endpoint) = left {
            endpoint.shutdown(GRACE).await;
            self.with(name, |node| self.shared.network.kill(node.addr));
        }
    }

    /// Cuts the link between two nodes.
    ///
    /// # Panics
    /// As [`Mesh::kill`].
    pub fn cut(&self, a: &str, b: &str) {
        self.shared.network.cut(self.addr(a), self.addr(b));
    }

    /// Keeps one node from being heard by another, which it still hears; [`Mesh::restore`] undoes it.
    ///
    /// # Panics
    /// As [`Mesh::kill`].
    pub fn cut_one_way(&self, from: &str, to: &str) {
        self.shared.network.cut_one_way(self.addr(from), self.addr(to));
    }

    /// Stops a node as SIGSTOP does, as seen from outside: datagrams to it wait, and its own leave when it resumes.
    ///
    /// # Panics
    /// As [`Mesh::kill`].
    pub fn pause(&self, name: &str) {
        self.shared.network.pause(self.addr(name));
    }

    /// Lets a paused node go on.
    ///
    /// # Panics
    /// As [`Mesh::kill`].
    pub fn resume(&self, name: &str) {
        self.shared.network.resume(self.addr(name));
    }

    /// Undoes the cut between two nodes.
    ///
    /// # Panics
    /// As [`Mesh::kill`].
    pub fn restore(&self, a: &str, b: &str) {
        self.shared.network.restore(self.addr(a), self.addr(b));
    }

    /// Separates these nodes from all others; they still reach each other.
    ///
    /// # Panics
    /// As [`Mesh::kill`].
    pub fn partition<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let addrs: Vec<_> = names.into_iter().map(|name| self.addr(name)).collect();
        self.shared.network.partition(addrs);
    }

    /// Takes the directory away: lookups fail as they do when no node of a DHT answers.
    pub fn lose_directory(&self) {
        self.nodes().directory_lost = true;
    }

    /// Undoes every cut and partition, and brings the directory back.
    pub fn heal(&self) {
        self.shared.network.heal();
        self.nodes().directory_lost = false;
    }

    /// Sets the link between two nodes, both ways, from now on.
    ///
    /// # Panics
    /// As [`Mesh::kill`].
    pub fn set_link(&self, a: &str, b: &str, link: LinkConditions) {
        self.shared.network.set_link(self.addr(a), self.addr(b), link);
    }

    /// The network, with its traffic and its trace.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.shared.network
    }

    fn addr(&self, name: &str) -> SocketAddr {
        self.with(name, |node| node.addr)
    }

    #[track_caller]
    pub(super) fn with<T>(&self, name: &str, look: impl FnOnce(&mut Node) -> T) -> T {
        let mut nodes = self.nodes();
        match nodes.by_name.get_mut(name) {
            Some(node) => look(node),
            None => panic!("the mesh has no node {name:?}; Mesh::node starts one"),
        }
    }
}

impl Shared {
    /// The identity that follows from the seed and the name.
    fn identity(&self, name: &str) -> Identity {
        let mut secret = [0; SecretKey::LEN];
        // Spreads seeds and names that differ little.
        let mut state = (self.seed ^ 0x6a09_e667_f3bc_c908).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        for (n, byte) in name.bytes().chain([0; SecretKey::LEN]).enumerate() {
            state = (state ^ u64::from(byte))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(23);
            secret[n % SecretKey::LEN] ^= (state >> 56) as u8;
        }
        Identity::from_secret(SecretKey::from_bytes(&secret))
    }

    fn start(&self, identity: &Identity, addr: Option<SocketAddr>, server: &Server) -> Endpoint {
        let config = Config::new(identity.clone())
            .with_role(Role::Node)
            .with_network(&self.network);
        let config = match addr {
            Some(addr) => config.with_listen(addr),
            None => config,
        };
        match Endpoint::bind(config, server.clone()).now_or_never() {
            Some(Ok(endpoint)) => endpoint,
            Some(Err(error)) => panic!("the node cannot start: {error}"),
            None => unreachable!("without a socket the bind does not wait"),
        }
    }
}
