//! The nodes of the story, and how each is started.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use macula_node::{BootstrapAddr, Node};
use macula_rpc::{Request, Status};
use macula_transport::{Identity, testing::Network};
use macula_wire::SecretKey;

use crate::random::Random;

pub(super) const SERVICE: &str = "sim.work";
/// How long a provider works on a call, on average; exponentially distributed.
const WORK: Duration = Duration::from_millis(5);

/// What a node does in the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Keeps a part of the directory; the first two are where others get in.
    Directory,
    Provider,
    /// Calls, and stands in no routing table.
    Caller,
}

/// A node that may be gone.
pub(super) struct Member {
    pub(super) part: Part,
    pub(super) addr: SocketAddr,
    identity: Identity,
    work: Arc<Mutex<Random>>,
    pub(super) node: Option<Node>,
}

pub(super) struct Fleet {
    pub(super) network: Network,
    pub(super) members: Vec<Member>,
}

impl Fleet {
    /// A third of the nodes call, a quarter provide, and the rest keep the directory.
    pub(super) async fn start(network: Network, nodes: usize, seed: u64) -> Result<Self, Box<dyn Error>> {
        let mut random = Random::new(seed);
        let (callers, providers) = (nodes / 3, nodes / 4);
        let members = (0..nodes).map(|n| {
            let mut secret = [0; SecretKey::LEN];
            for word in secret.chunks_exact_mut(8) {
                word.copy_from_slice(&random.next().to_le_bytes());
            }
            let [.., high, low] = (n + 1).to_be_bytes();
            Member {
                part: match nodes - n {
                    left if left <= callers => Part::Caller,
                    left if left <= callers + providers => Part::Provider,
                    _ => Part::Directory,
                },
                addr: ([10, 0, high, low], 9443).into(),
                identity: Identity::from_secret(SecretKey::from_bytes(&secret)),
                work: Arc::new(Mutex::new(Random::new(random.next()))),
                node: None,
            }
        });
        let members = members.collect();
        let mut fleet = Self { network, members };
        for n in 0..nodes {
            fleet.begin(n).await?;
        }
        Ok(fleet)
    }

    /// Starts a node, again when it was killed.
    pub(super) async fn begin(&mut self, n: usize) -> Result<(), Box<dyn Error>> {
        let bootstrap = self.members[..2].iter().enumerate().filter(|(at, _)| *at != n);
        let bootstrap = bootstrap.map(|(_, member)| -> Result<BootstrapAddr, Box<dyn Error>> {
            Ok(BootstrapAddr {
                node_id: Some(member.identity.node_id()),
                endpoint: member.addr.try_into()?,
            })
        });
        let bootstrap = bootstrap.collect::<Result<Vec<_>, _>>()?;
        let member = &mut self.members[n];
        let builder = Node::builder()
            .network(&self.network)
            .identity(member.identity.clone())
            .listen(member.addr)
            .bootstrap(bootstrap);
        let builder = match member.part {
            Part::Directory => builder,
            Part::Caller => builder.client(),
            Part::Provider => {
                let work = Arc::clone(&member.work);
                builder.serve(SERVICE, move |_: Request| {
                    let takes = work.lock().unwrap_or_else(PoisonError::into_inner).exponential(WORK);
                    async move {
                        tokio::time::sleep(takes).await;
                        Ok::<_, Status>("done")
                    }
                })
            }
        };
        member.node = Some(builder.start().await?);
        Ok(())
    }

    /// Ends a node without a word.
    pub(super) fn kill(&mut self, n: usize) {
        self.network.kill(self.members[n].addr);
        self.members[n].node = None;
    }

    pub(super) fn of(&self, part: Part) -> Vec<usize> {
        (0..self.members.len())
            .filter(|&n| self.members[n].part == part)
            .collect()
    }
}
