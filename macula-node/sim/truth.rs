//! The facts of a run: each life of a node, each fault, each run of a handler, each call, each list that the directory gave.
//!
//! Times are from the start of the run, in virtual time.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use macula_wire::{Address, NodeId};
use tokio::time::Instant;

use crate::{fault::Kind, load::Plan};

/// A process of a node, from its start to its end.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) member: usize,
    pub(super) id: NodeId,
    pub(super) from: Duration,
    pub(super) to: Option<Duration>,
}

/// A fault while it lasts, or a service that is withdrawn.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) member: usize,
    pub(super) kind: Kind,
    pub(super) from: Duration,
    pub(super) to: Option<Duration>,
}

/// Services that their node has withdrawn.
#[derive(Debug)]
pub(super) struct Withdrawn {
    pub(super) id: NodeId,
    /// When the holders of its records had answered.
    pub(super) from: Option<Duration>,
    pub(super) to: Option<Duration>,
}

/// How a handler's run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It has answered.
    Answered,
    /// It has answered with an error.
    Failed,
    /// It has answered that it did not run.
    Lied,
    /// It was dropped: its call was over.
    Dropped,
}

/// One run of a handler.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) call: u64,
    pub(super) life: usize,
    pub(super) from: Duration,
    pub(super) end: Option<(Duration, End)>,
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    NotSent,
    Refused,
    TimedOut,
    Lost,
    Answered,
    Cancelled,
}

/// An attempt that failed.
#[derive(Debug)]
pub(super) struct Try {
    pub(super) id: NodeId,
    pub(super) endpoint: Option<Address>,
    pub(super) from: Duration,
    pub(super) took: Duration,
    pub(super) cause: Cause,
}

/// How a call ended for its caller.
#[derive(Debug)]
pub(super) enum Ended {
    /// With the answer of this run, which had so many messages, by the provider that is said to have given it.
    Answered {
        runs: BTreeSet<u64>,
        messages: usize,
        by: Option<NodeId>,
    },
    /// With an answer that is none of the handlers'.
    Garbled(String),
    /// With an error of this name and text.
    Failed { name: &'static str, text: String },
    /// The caller has given it up.
    Cancelled,
}

impl Ended {
    pub(super) fn is_failure(&self) -> bool {
        match self {
            Self::Answered { .. } | Self::Cancelled => false,
            Self::Garbled(_) | Self::Failed { .. } => true,
        }
    }
}

/// A call, as its caller saw it.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) plan: Plan,
    pub(super) caller: usize,
    pub(super) from: Duration,
    pub(super) end: Option<(Duration, Ended)>,
    pub(super) tries: Vec<Try>,
}

/// A list that the directory itself gave.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) from: Duration,
    pub(super) to: Duration,
    pub(super) list: Vec<(NodeId, Vec<Address>)>,
}

/// How many peers a caller has suspected so far.
#[derive(Debug)]
pub(super) struct Suspicions {
    pub(super) caller: usize,
    pub(super) at: Duration,
    pub(super) count: u64,
}

/// The state of the mesh after it healed.
#[derive(Debug, Default)]
pub(super) struct Rest {
    pub(super) from: Duration,
    /// The providers that ran.
    pub(super) live: BTreeSet<NodeId>,
    /// By caller and service: the providers that the directory listed.
    pub(super) found: Vec<(usize, Result<BTreeSet<NodeId>, String>)>,
    /// Tasks that were left when every node had ended.
    pub(super) tasks: usize,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) lives: Vec<Life>,
    pub(super) troubles: Vec<Trouble>,
    pub(super) withdrawn: Vec<Withdrawn>,
    pub(super) runs: Vec<Run>,
    pub(super) calls: Vec<Called>,
    pub(super) lists: Vec<Listed>,
    /// In the order of time.
    pub(super) suspicions: Vec<Suspicions>,
    pub(super) rest: Rest,
    /// The most connections that a caller was seen to have.
    pub(super) most_connections: usize,
    /// Every address that each identity was at.
    pub(super) places: BTreeSet<(NodeId, Address)>,
}

/// The facts, shared by all nodes of the simulation. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Truth {
    start: Instant,
    facts: Arc<Mutex<Facts>>,
}

impl Truth {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            facts: Arc::default(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// A moment as the program's other clocks have it.
    pub(super) fn at(&self, time: Duration) -> Instant {
        self.start + time
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handler runs for a call.
    pub(super) fn runs(&self, call: u64, life: usize) -> Running {
        let from = self.now();
        let mut facts = self.facts();
        facts.runs.push(Run {
            call,
            life,
            from,
            end: None,
        });
        Running {
            truth: self.clone(),
            number: facts.runs.len() - 1,
        }
    }
}

/// A handler's run while it lasts.
#[derive(Debug)]
pub(super) struct Running {
    truth: Truth,
    number: usize,
}

impl Running {
    pub(super) fn number(&self) -> u64 {
        self.number as u64
    }

    pub(super) fn ends(self, end: End) {
        self.set(end);
    }

    fn set(&self, end: End) {
        let now = self.truth.now();
        if let Some(run) = self.truth.facts().runs.get_mut(self.number) {
            run.end.get_or_insert((now, end));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.set(End::Dropped);
    }
}
