//! The options of a service: which callers it admits beside their grants (A5), and how long their calls may take.
//!
//! The transport has checked already that the caller's grant lets it call the service. A service may ask for more: certain nodes, or
//! certain labels in the caller's grant. A call that a router passes on is judged by its caller, not by the router.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use macula_transport::PeerInfo;
use macula_wire::{Member, Named, NodeId, ServiceName, StatusCode};

use crate::Status;

/// The callers that a service admits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Allowed {
    /// This node.
    Node(NodeId),
    /// Every node whose grant has this label. In an open realm no node has labels.
    Label {
        /// The label's key.
        key: String,
        /// The label's value.
        value: String,
    },
}

impl Allowed {
    /// Every node whose grant has this label.
    pub fn label(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Label {
            key: key.into(),
            value: value.into(),
        }
    }

    fn admits(&self, caller: &Member) -> bool {
        match self {
            Self::Node(node) => node == caller.node_id(),
            Self::Label { key, value } => caller.labels().get(key) == Some(value),
        }
    }
}

impl From<NodeId> for Allowed {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

/// The options of a service; see [`Server::configure`](crate::Server::configure).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceOptions {
    allow: Vec<Allowed>,
    pub(crate) max_time: Option<Duration>,
}

impl ServiceOptions {
    /// Every caller whose grant allows the service is admitted, for as long as the endpoint's
    /// [`Limits::max_call_time`](macula_transport::Limits::max_call_time).
    #[must_use]
    pub const fn new() -> Self {
        Self {
            allow: Vec::new(),
            max_time: None,
        }
    }

    /// Ends calls of other nodes this long after they came, whatever deadline their callers ask for.
    #[must_use]
    pub const fn max_time(mut self, time: Duration) -> Self {
        self.max_time = Some(time);
        self
    }

    /// Admits these callers, and from the first of them on no others.
    #[must_use]
    pub fn allow(mut self, callers: impl Into<Allowed>) -> Self {
        self.allow.push(callers.into());
        self
    }
}

/// The options that a service has now, and the calls that they have denied.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// `None` admits every caller, for as long as the endpoint does.
    options: RwLock<Option<Arc<ServiceOptions>>>,
    denied: AtomicU64,
    /// The callers that the log has named.
    named: Mutex<Named>,
}

impl Guard {
    pub(crate) fn set(&self, options: &Arc<ServiceOptions>) {
        let options = (**options != ServiceOptions::new()).then(|| Arc::clone(options));
        *self.options.write().unwrap_or_else(PoisonError::into_inner) = options;
    }

    /// Admits a call of a peer, or gives the status that denies it, which is final.
    pub(crate) fn admit_peer(&self, peer: &PeerInfo, service: &ServiceName) -> Result<(), Status> {
        let options = self.options.read().unwrap_or_else(PoisonError::into_inner);
        match &*options {
            None => Ok(()),
            Some(options) => self.judge(options, &peer.member(), service),
        }
    }

    /// As [`Guard::admit_peer`], for a call of this process.
    pub(crate) fn admit_own(&self, own: &Member, service: &ServiceName) -> Result<(), Status> {
        if !own.may_call(service) {
            return Err(self.deny(own, service, "the node's own grant does not let it call the service"));
        }
        let options = self.options.read().unwrap_or_else(PoisonError::into_inner);
        options
            .as_ref()
            .map_or(Ok(()), |options| self.judge(options, own, service))
    }

    fn judge(&self, options: &ServiceOptions, caller: &Member, service: &ServiceName) -> Result<(), Status> {
        if options.allow.is_empty() || options.allow.iter().any(|allowed| allowed.admits(caller)) {
            Ok(())
        } else {
            Err(self.deny(caller, service, "the service does not admit this caller"))
        }
    }

    /// The longest time that a call of a peer may take.
    pub(crate) fn max_time(&self) -> Option<Duration> {
        let options = self.options.read().unwrap_or_else(PoisonError::into_inner);
        options.as_ref()?.max_time
    }

    fn deny(&self, caller: &Member, service: &ServiceName, why: &str) -> Status {
        self.denied.fetch_add(1, Relaxed);
        let now = tokio::time::Instant::now().into_std();
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.is_new(*caller.node_id(), now) {
            drop(named);
            tracing::warn!(%service, caller = %caller.node_id(), why, "a call was denied");
        }
        Status::new(StatusCode::PermissionDenied, format!("{service}: {why}"))
    }

    pub(crate) fn denied(&self) -> u64 {
        self.denied.load(Relaxed)
    }
}
