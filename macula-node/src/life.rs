//! Where a node is in its life: when it was started, and how far it is with its end.

use std::time::{Duration, Instant, SystemTime};

use macula_transport::Role;
use macula_wire::Realm;
use tokio::sync::watch;

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// It is not in the mesh yet, or has lost it; it serves its own services.
    Joining,
    /// It is in the mesh.
    Serving,
    /// It finishes its running calls and takes no new ones.
    Draining,
    /// It has left.
    Left,
}

impl Phase {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Left => "left",
        }
    }
}

/// How far a node is with its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    NotYet,
    Draining,
    Left,
}

/// When a node was started, and how far it is with its end.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) realm: Realm,
    pub(crate) role: Role,
    pub(crate) started: SystemTime,
    since: Instant,
    ending: watch::Sender<Ending>,
}

impl Life {
    pub(crate) fn begin(realm: Realm, role: Role) -> Self {
        Self {
            realm,
            role,
            started: SystemTime::now(),
            since: tokio::time::Instant::now().into_std(),
            ending: watch::Sender::new(Ending::NotYet),
        }
    }

    pub(crate) fn ends(&self, ending: Ending) {
        self.ending.send_replace(ending);
    }

    pub(crate) fn ending(&self) -> watch::Receiver<Ending> {
        self.ending.subscribe()
    }

    pub(crate) fn uptime(&self) -> Duration {
        let now = tokio::time::Instant::now().into_std();
        now.saturating_duration_since(self.since)
    }
}
