//! How far this node has got into the mesh, in a person's terms.
//!
//! The core does the joining: it asks the seeds, looks for its neighbours, and starts again when it has lost all of them (N3). This
//! module follows it: which nodes were reached, which were trusted on first use, and how the last attempt failed.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use macula_dht::{Contact, Seed};
use macula_rpc::{Provider, Routers};
use macula_transport::{DialError, RequestError, Role};
use macula_wire::{Address, NodeId, ServiceKey};
use tokio::sync::watch;

use super::requests::{self, Found};
use crate::{BootstrapAddr, MAX_BOOTSTRAP};

/// A node that was reached by an address without an id.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrustedPeer {
    /// The node that answered.
    pub node_id: NodeId,
    /// Where it answered.
    pub endpoint: Address,
}

/// How a node got into the mesh.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct JoinReport {
    /// How many nodes of the mesh it knows.
    pub contacts: usize,
    /// The bootstrap nodes whose id was not known beforehand.
    pub trusted_on_first_use: Vec<TrustedPeer>,
}

/// Why a bootstrap node could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JoinCause {
    /// There is no connection to it.
    #[error(transparent)]
    Dial(Arc<DialError>),
    /// It took the connection and did not answer as a node of the mesh.
    #[error("something answers there, but not as a node of the mesh")]
    Request(#[source] Arc<RequestError>),
    /// It did not answer.
    #[error("it did not answer within {0:?}: is the node running, and the UDP port open?")]
    NoAnswer(Duration),
    /// It is this node.
    #[error("it is this node itself, or another one that uses the same identity file")]
    Myself,
    /// It is a client, which knows no mesh.
    #[error("it is a client; name a node that was started with `macula node`")]
    Client,
}

/// No bootstrap node could be reached.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Every bootstrap address was tried.
    #[error("no bootstrap node could be reached; the last one tried was {address}")]
    Unreachable {
        /// The last address that failed.
        address: BootstrapAddr,
        /// Why it failed.
        source: JoinCause,
    },
    /// The bootstrap nodes can be reached, and do not answer.
    #[error("none of the nodes known answered")]
    NoAnswer,
    /// The node was shut down first.
    #[error("the node was shut down before it was in the mesh")]
    ShutDown,
}

/// How far the node has got: `None` until the first attempt is over.
pub(crate) type Progress = Option<Result<JoinReport, JoinError>>;

/// The bootstrap nodes that answered: they pass calls on when the DHT gives no answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reached(Arc<Mutex<Vec<Provider>>>);

impl Reached {
    fn add(&self, contact: &Contact) {
        let mut reached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reached.retain(|known| known.node_id != *contact.node_id());
        if reached.len() == MAX_BOOTSTRAP {
            reached.remove(0);
        }
        reached.push(Provider::new(*contact.node_id(), contact.endpoints().iter().cloned()));
    }
}

impl Routers for Reached {
    fn routers(&self) -> Vec<Provider> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Follows this node's way into the mesh.
pub(super) struct Joining {
    bootstrap: Vec<BootstrapAddr>,
    progress: watch::Sender<Progress>,
    reached: Reached,
    report: JoinReport,
    failure: Option<JoinError>,
    /// Services to publish before this node calls itself ready.
    unpublished: Option<BTreeSet<ServiceKey>>,
    /// A bootstrap node has been lost, or could not be reached.
    try_again: bool,
    tried: Option<Instant>,
}

/// The most nodes that are remembered as trusted at one address.
const MAX_TRUSTED_AT_ONE: usize = 16;
/// How often the bootstrap addresses are tried again while one of them does not answer.
const TRY_AGAIN_EVERY: Duration = Duration::from_secs(30);

impl Joining {
    pub(super) fn new(bootstrap: Vec<BootstrapAddr>, progress: watch::Sender<Progress>, reached: Reached) -> Self {
        Self {
            bootstrap,
            progress,
            reached,
            report: JoinReport::default(),
            failure: None,
            unpublished: None,
            try_again: false,
            tried: None,
        }
    }

    /// The seeds of the core. A list of bootstrap nodes that all nodes share names this node too, which is left out.
    ///
    /// Several addresses with one id are one node, and one seed: it is dialed at whichever of them answers, so a host without IPv6
    /// reaches a node that is named by an address of each family.
    pub(super) fn seeds(&self, own: &NodeId) -> Vec<Seed> {
        let mut seeds = Vec::new();
        let mut named = BTreeSet::from([*own]);
        for address in &self.bootstrap {
            match address.node_id {
                None => seeds.push(Seed::At(address.endpoint.clone())),
                Some(id) if named.insert(id) => {
                    let its = self.bootstrap.iter().filter(|other| other.node_id == Some(id));
                    let endpoints = its.map(|other| other.endpoint.clone());
                    seeds.push(Seed::Known(Contact::new(id, endpoints)));
                }
                Some(_) => {}
            }
        }
        seeds
    }

    /// A node without services is in the mesh as soon as one node has answered.
    pub(super) fn can_ask(&mut self, contacts: usize) {
        if !matches!(*self.progress.borrow(), Some(Ok(_))) {
            self.report.contacts = contacts;
            self.progress.send_replace(Some(Ok(self.report.clone())));
        }
    }

    /// The connection to a node broke.
    pub(super) fn lost(&mut self, node: &NodeId) {
        if self
            .reached
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|known| known.node_id == *node)
        {
            self.try_again = true;
        }
    }

    /// Whether to try the bootstrap addresses again: a node that was lost may have come back with another key and know no other
    /// node. At most once in [`TRY_AGAIN_EVERY`], until every one has answered.
    pub(super) fn is_time_to_try(&mut self, now: Instant) -> bool {
        let due = self.tried.is_none_or(|tried| tried + TRY_AGAIN_EVERY <= now);
        if self.try_again && due {
            self.tried = Some(now);
            self.try_again = false;
            return true;
        }
        false
    }

    /// The node is in the mesh once `services` are published there. Those that other nodes hold already are: a node that remembers others
    /// publishes before a bootstrap node has answered.
    pub(super) fn joined(&mut self, contacts: usize, services: impl Iterator<Item = (ServiceKey, bool)>) {
        self.report.contacts = contacts;
        self.unpublished = Some(services.filter(|(_, held)| !held).map(|(key, _)| key).collect());
        self.settle();
    }

    /// A service has been published.
    pub(super) fn published(&mut self, key: &ServiceKey) {
        if let Some(unpublished) = &mut self.unpublished
            && unpublished.remove(key)
        {
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.unpublished.as_ref().is_some_and(BTreeSet::is_empty) {
            self.unpublished = None;
            self.progress.send_replace(Some(Ok(self.report.clone())));
        }
    }

    /// The core's attempt failed; it tries again by itself. Returns why it failed.
    pub(super) fn failed(&mut self, retry_in: Duration) -> JoinError {
        let error = self.failure.take().unwrap_or(JoinError::NoAnswer);
        tracing::info!(%error, ?retry_in, "not in the mesh yet");
        self.progress.send_replace(Some(Err(error.clone())));
        error
    }

    /// Takes the nodes that listen at an endpoint, and gives the core's contacts for them; none when no node listens there.
    pub(super) fn identified(&mut self, endpoint: &Address, found: Result<Vec<Found>, JoinCause>) -> Vec<Contact> {
        let address = BootstrapAddr::from(endpoint.clone());
        match found {
            Ok(mut found) => {
                found.retain(|found| found.peer.role == Role::Node);
                if found.is_empty() {
                    self.unreachable(address, JoinCause::Client);
                    return Vec::new();
                }
                self.trust(endpoint, &found.iter().map(|found| found.peer.node_id).collect());
                let contact = |found: &Found| requests::contact(&found.peer, Some(&found.at));
                let contacts: Vec<_> = found.iter().map(contact).collect();
                contacts.iter().for_each(|contact| self.reached.add(contact));
                return contacts;
            }
            // A list of bootstrap nodes that all share names each of them to itself: no failure beside others.
            Err(JoinCause::Dial(error)) if matches!(*error, DialError::Myself { .. }) => {
                let source = JoinCause::Myself;
                self.failure.get_or_insert(JoinError::Unreachable { address, source });
            }
            Err(cause) => self.unreachable(address, cause),
        }
        Vec::new()
    }

    /// A peer was asked something: remembered when it is a bootstrap node.
    pub(super) fn exchanged(&mut self, to: &Contact, cause: Option<&JoinCause>) {
        let known = self
            .bootstrap
            .iter()
            .find(|address| address.node_id.as_ref() == Some(to.node_id()));
        match (known, cause) {
            (Some(_), None) => self.reached.add(to),
            (Some(address), Some(cause)) => {
                let address = address.clone();
                self.unreachable(address, cause.clone());
            }
            (None, _) => {}
        }
    }

    /// Notes the nodes that answered at an address without an id, and warns when they are all others than before. A name may stand for
    /// several nodes, and not all of them answer each time.
    fn trust(&mut self, endpoint: &Address, now: &BTreeSet<NodeId>) {
        let trusted = &mut self.report.trusted_on_first_use;
        let before: BTreeSet<_> = trusted
            .iter()
            .filter(|known| known.endpoint == *endpoint)
            .map(|known| known.node_id)
            .collect();
        if !before.is_empty() && before.is_disjoint(now) {
            for (before, now) in before.iter().zip(now) {
                tracing::warn!(%endpoint, %before, %now, "another node answers at a bootstrap address; pin its id if that is not expected");
            }
            trusted.retain(|known| known.endpoint != *endpoint);
        }
        let here = trusted.iter().filter(|known| known.endpoint == *endpoint).count();
        for &node_id in now.difference(&before).take(MAX_TRUSTED_AT_ONE.saturating_sub(here)) {
            tracing::info!(%node_id, %endpoint, "trusted on first use");
            trusted.push(TrustedPeer {
                node_id,
                endpoint: endpoint.clone(),
            });
        }
    }

    fn unreachable(&mut self, address: BootstrapAddr, source: JoinCause) {
        tracing::debug!(%address, error = %source, "a bootstrap node was not reached");
        self.try_again = true;
        self.failure = Some(JoinError::Unreachable { address, source });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_named_by_an_address_of_each_family_is_one_seed_with_both() {
        let id = |byte| NodeId::from_bytes([byte; 32]);
        let named = |text: &str| text.parse::<BootstrapAddr>().unwrap();
        let bootstrap = vec![
            named(&format!("{}@[fd00::1]:9443", id(1))),
            named("node2:9443"),
            named(&format!("{}@10.0.0.1:9443", id(1))),
            named(&format!("{}@10.0.0.3:9443", id(3))),
        ];
        let joining = Joining::new(bootstrap, watch::channel(None).0, Reached::default());
        let seeds = joining.seeds(&id(3));
        let [Seed::Known(both), Seed::At(_)] = seeds.as_slice() else {
            panic!("{seeds:?}");
        };
        assert_eq!((*both.node_id(), both.endpoints().len()), (id(1), 2));
    }

    #[test]
    fn n3_a_node_that_is_published_before_it_has_joined_is_ready_once_it_has() {
        let key = |name: &str| ServiceKey::new(&macula_wire::Realm::default(), &name.parse().unwrap());
        let joining = || {
            let (progress, ready) = watch::channel(None);
            (Joining::new(Vec::new(), progress, Reached::default()), ready)
        };
        let (mut restarted, ready) = joining();
        restarted.published(&key("a"));
        restarted.joined(2, [(key("a"), true)].into_iter());
        assert!(matches!(*ready.borrow(), Some(Ok(JoinReport { contacts: 2, .. }))));

        let (mut new, ready) = joining();
        new.joined(2, [(key("a"), true), (key("b"), false)].into_iter());
        assert!(ready.borrow().is_none(), "no other node holds b");
        new.published(&key("b"));
        assert!(matches!(*ready.borrow(), Some(Ok(_))));
    }
}
