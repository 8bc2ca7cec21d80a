//! The memory that peers make this node keep: unfinished messages, requests of calls that run, replies that wait to be taken.
//!
//! Whatever a peer can make large is charged to its connection's [`Memory`] before it grows, and given back when it is dropped. A
//! message that is whole in the first read is not charged: QUIC's window bounds what arrives, and it is gone at once.
//!
//! Left out: QUIC's own buffers, which its [windows](super::window) bound, and messages that the application keeps.

use std::{future::Future, sync::Arc};

use macula_wire::{Holder, Network, NodeId};

use super::budget::{Account, Budget, Charge, Exhausted, Hold};

/// Memory is drawn in pieces of this size, in bytes.
const UNIT_BYTES: u64 = 16 * 1024;
/// Unused bytes at which an account returns them to the budget. Below it calls that come and go draw nothing.
const SPARE_BYTES: u64 = 128 * 1024;
/// Bytes of an open connection: its state, its tasks, and small messages that are not charged one by one.
const CONNECTION_BYTES: u64 = 48 * 1024;
/// The part of the memory that a node reserves for each connection that it accepts, in bytes: the connection, its lane and a call.
const ACCEPTED_BYTES: u64 = 64 * 1024;
/// Bytes of a peer's stream while it is served: its state and its task.
pub(crate) const STREAM_BYTES: u64 = 8 * 1024;
/// Bytes of the task of a call that runs beside its lane. The request is charged as well.
pub(crate) const TASK_BYTES: u64 = 2 * 1024;
/// Bytes of a message that its stream's own charge covers.
const FREE_BYTES: usize = 1024;
/// A message is charged in steps of this size, in bytes.
const STEP_BYTES: usize = 16 * 1024;
/// The part of the memory that is for this node's own calls, as a divisor: peers cannot fill it, and it takes nothing from them.
const OWN_PART: u64 = 8;

/// The part of the memory that is charged to peers piece by piece, as a divisor. The rest is for QUIC's windows: see
/// [`window`](super::window).
const PEERS_PART: u64 = 2;

/// The memory of an endpoint: one part for its peers, one for itself.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    budget: u64,
    peers: Arc<Budget>,
    own: Memory,
}

/// How much memory peers make an endpoint keep, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// The most there may be: [`Limits::memory_bytes`](crate::Limits::memory_bytes).
    pub budget: u64,
    /// The part of it that is charged piece by piece. The rest is for QUIC's windows.
    pub charged: u64,
    /// What is charged now; connections keep up to 128 KiB more than they use.
    pub used: u64,
    /// Messages, replies and streams that were refused because there was no room.
    pub refused: u64,
    /// Unfinished messages and replies that were given up for other peers, and connections.
    pub evicted: u64,
}

impl MemoryBudget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            budget: bytes,
            peers: Budget::new(bytes / PEERS_PART, UNIT_BYTES, SPARE_BYTES),
            own: Memory::of(bytes / OWN_PART),
        }
    }

    /// The memory of a connection, which takes nothing yet. `give_way` ends the connection.
    pub(crate) fn connection(&self, holder: Holder<NodeId>, give_way: impl Fn() + Send + Sync + 'static) -> Memory {
        Memory(Account::open(&self.peers, holder, give_way))
    }

    /// How many accepted connections there is memory for, with a call on each.
    pub(crate) fn max_accepted(&self) -> usize {
        usize::try_from(self.budget / PEERS_PART / ACCEPTED_BYTES).unwrap_or(usize::MAX)
    }

    /// The memory for this node's own calls.
    pub(crate) fn own(&self) -> &Memory {
        &self.own
    }

    pub(crate) fn stats(&self) -> MemoryStats {
        let (peers, own) = (self.peers.used(), self.own.0.budget().used());
        MemoryStats {
            budget: self.budget,
            charged: peers.capacity + own.capacity,
            used: peers.used + own.used,
            refused: peers.refused + own.refused,
            evicted: peers.evicted,
        }
    }
}

/// Where memory is charged: to a peer, or to this node itself. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Memory(Arc<Account>);

/// Memory that is charged until this is dropped.
#[derive(Debug)]
pub struct MemoryCharge(Charge);

impl Memory {
    /// Memory of its own, in bytes, which no peer shares.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        let alone = Holder::new(Network::Unknown, NodeId::from_bytes([0; NodeId::LEN]));
        Self(Account::open(
            &Budget::new(bytes, UNIT_BYTES, SPARE_BYTES),
            alone,
            || (),
        ))
    }

    /// Charges bytes before they are kept; `None` when there is no room for them.
    #[must_use]
    pub fn charge(&self, bytes: usize) -> Option<MemoryCharge> {
        self.take(bytes as u64).ok().map(MemoryCharge)
    }

    pub(crate) fn take(&self, bytes: u64) -> Result<Charge, Exhausted> {
        self.0.charge(bytes)
    }

    /// Charges a little that exists already.
    pub(crate) fn force(&self, bytes: u64) -> Charge {
        self.0.force(bytes)
    }

    /// Charges what the connection takes by itself, once, when it is taken in. Returns whether there was room for it.
    pub(crate) fn open(&self) -> bool {
        self.0.set_base(CONNECTION_BYTES);
        !self.is_short()
    }

    /// Whether no further call should be taken.
    pub(crate) fn is_short(&self) -> bool {
        self.0.is_short()
    }

    pub(crate) fn kept(&self) -> Kept {
        Kept {
            memory: self.clone(),
            hold: None,
            beside: 0,
        }
    }
}

impl MemoryCharge {
    /// Charges more bytes; false when there is no room for them.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        self.0.grow(bytes as u64).is_ok()
    }
}

/// What is kept of one message, or of one call: it may be taken back.
#[derive(Debug)]
pub(crate) struct Kept {
    memory: Memory,
    hold: Option<Hold>,
    /// Bytes that are kept for as long as this.
    beside: usize,
}

impl Kept {
    /// Charges `bytes` instead of those before.
    ///
    /// # Errors
    /// When there is no room for them, or all of it was taken back.
    pub(crate) fn set(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let bytes = bytes + self.beside;
        let steps = if bytes <= FREE_BYTES {
            0
        } else {
            bytes.div_ceil(STEP_BYTES)
        };
        match &mut self.hold {
            Some(hold) => hold.set((steps * STEP_BYTES) as u64),
            None if steps == 0 => Ok(()),
            none @ None => none.insert(self.memory.0.hold()).set((steps * STEP_BYTES) as u64),
        }
    }

    /// Counts `bytes` beside those that are set from here on.
    pub(crate) fn set_beside(&mut self, bytes: usize) {
        self.beside = bytes;
    }

    /// As [`Kept::taken_back`], and covers what is charged later.
    pub(crate) fn ever_taken_back(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.hold.get_or_insert_with(|| self.memory.0.hold()).taken_back()
    }

    /// Waits until the memory is taken back, to be given up at once. Waits for ever when nothing is charged.
    pub(crate) fn taken_back(&self) -> impl Future<Output = ()> + Send + 'static {
        let taken = self.hold.as_ref().map(Hold::taken_back);
        async move {
            match taken {
                Some(taken) => taken.await,
                None => std::future::pending().await,
            }
        }
    }
}
