//! The places for calls of peers: how many run at a time in the whole endpoint.
//!
//! A call that is answered where it was read takes its place for that moment only. When all places are taken, a newcomer gets one
//! from the peer that holds most, whose longest running call ends. Calls that are forwarded have places of their own, because they
//! run as long as another node takes.

use std::{sync::Arc, time::Duration};

use macula_wire::{Holder, NodeId};

use super::budget::{Account, Budget, Charge, Exhausted};
use crate::config::Limits;

/// Where there are at most this many places, an account draws them one by one.
const FEW: u64 = 4096;
/// How many places an account draws at a time, where there are more.
const UNIT: u64 = 4;
/// An account gives places back once it has so many units that it does not use.
const SPARE_UNITS: u64 = 2;

/// The places of an endpoint.
#[derive(Debug)]
pub(crate) struct CallPlaces {
    own: Arc<Budget>,
    forwarded: Arc<Budget>,
    max_call_time: Duration,
}

/// Which places a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runs {
    /// It runs on this node.
    Here,
    /// It is forwarded to another.
    Elsewhere,
}

/// Every place is taken, and no other peer has more of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlacesFull {
    /// How many there are.
    pub(crate) places: u64,
}

/// How many calls of peers run at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlaceStats {
    /// The most there may be.
    pub places: u64,
    /// Places that are taken; a connection keeps a few more than it needs.
    pub taken: u64,
    /// The most there may be of calls that are forwarded.
    pub forwarded_places: u64,
    /// Places of these that are taken.
    pub forwarded_taken: u64,
    /// Calls that were refused because every place was taken.
    pub refused: u64,
    /// Calls that were ended because another peer had fewer, and connections.
    pub ended: u64,
}

/// The places that a connection has of them.
#[derive(Debug)]
pub(crate) struct PeerPlaces {
    own: Arc<Account>,
    forwarded: Arc<Account>,
}

impl CallPlaces {
    /// Places for the calls that the limits allow, and for no more than the handler takes.
    pub(crate) fn new(limits: &Limits, handler_takes: Option<u32>) -> Self {
        let handler_takes = handler_takes.map_or(u64::MAX, u64::from);
        let budget = |places: usize| {
            let places = (places as u64).min(handler_takes);
            let unit = if places > FEW { UNIT } else { 1 };
            Budget::new(places, unit, SPARE_UNITS * unit)
        };
        Self {
            own: budget(limits.max_running_calls),
            forwarded: budget(limits.max_forwarded_calls),
            max_call_time: limits.max_call_time,
        }
    }

    /// The places of a connection. `give_way` ends it.
    pub(crate) fn connection(
        &self,
        holder: Holder<NodeId>,
        give_way: impl Fn() + Clone + Send + Sync + 'static,
    ) -> PeerPlaces {
        PeerPlaces {
            own: Account::open(&self.own, holder, give_way.clone()),
            forwarded: Account::open(&self.forwarded, holder, give_way),
        }
    }

    pub(crate) fn stats(&self) -> PlaceStats {
        let (own, forwarded) = (self.own.used(), self.forwarded.used());
        PlaceStats {
            places: own.capacity,
            taken: own.used,
            forwarded_places: forwarded.capacity,
            forwarded_taken: forwarded.used,
            refused: own.refused + forwarded.refused,
            ended: own.evicted + forwarded.evicted,
        }
    }

    /// The longest time that a call of a peer may take.
    pub(crate) fn max_call_time(&self) -> Duration {
        self.max_call_time
    }
}

impl PeerPlaces {
    /// A place for a call.
    pub(crate) fn take(&self, runs: Runs) -> Result<Charge, PlacesFull> {
        let account = match runs {
            Runs::Here => &self.own,
            Runs::Elsewhere => &self.forwarded,
        };
        account.charge(1).map_err(|Exhausted| PlacesFull {
            places: account.budget().used().capacity,
        })
    }
}
