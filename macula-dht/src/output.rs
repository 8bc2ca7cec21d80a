//! Replies that go in, and everything that comes out.

use std::{net::IpAddr, time::Duration};

use macula_wire::{Address, NodeId, RecordError, ServiceKey, VerifiedProvider};

use crate::{BackendError, Contact, DateError, MessageError, Refusal, Request, Response, Role};

/// A request this node sent: the shell reports its end under this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

/// A lookup that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub(crate) u64);

/// How many providers a lookup is to find before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// One.
    First,
    /// This many, or all there are; 0 counts as 1.
    AtLeast(usize),
    /// All that the k closest nodes know.
    All,
}

impl Want {
    pub(crate) fn is_satisfied_by(self, found: usize) -> bool {
        match self {
            Self::First => found >= 1,
            Self::AtLeast(count) => found >= count.max(1),
            Self::All => false,
        }
    }
}

/// A peer's answer to a request of this node.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The response, as it was decoded.
    pub response: Result<Response, MessageError>,
    /// The peer's role in the mesh, by its connection's handshake. Clients do not enter the routing table.
    pub role: Role,
    /// The address the answer came from, for diversity limits.
    pub ip: Option<IpAddr>,
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestFailed {
    /// No connection could be opened, or not to the node meant.
    #[error("the peer could not be reached")]
    Unreachable,
    /// The connection was lost.
    #[error("the connection to the peer was lost before it answered")]
    Lost,
    /// The request never left this node, which has too much to do. This says nothing about the peer, so it counts neither against
    /// the peer nor towards the end of a lookup.
    #[error("the request was not sent: this node is too busy; ask again later")]
    NotSent,
    /// The shell gave up waiting.
    #[error("the peer did not answer in time")]
    TimedOut,
}

/// Something for the shell to do, or to know.
#[derive(Debug)]
pub enum Output {
    /// Send `request` to `to`, and report how it ends with [`Dht::handle_response`](crate::Dht::handle_response).
    ///
    /// After [`Config::hard_timeout`](crate::Config::hard_timeout) the answer is no longer waited for.
    Send {
        /// The request's number.
        id: RequestId,
        /// The peer; the connection must prove that it is this one.
        to: Contact,
        /// The request.
        request: Request,
    },
    /// Find out which nodes listen at `address`, whose host name may stand for several addresses, and report them with
    /// [`Dht::handle_identified`](crate::Dht::handle_identified).
    Identify {
        /// The number to report under.
        id: RequestId,
        /// Where to ask.
        address: Address,
    },
    /// Something happened.
    Event(Event),
}

/// News.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A lookup found providers, or newer records of providers it had found.
    Providers {
        /// The lookup.
        query: QueryId,
        /// The new records, at least one.
        batch: Vec<VerifiedProvider>,
    },
    /// A lookup is over. The last event of its query.
    Finished {
        /// The lookup.
        query: QueryId,
        /// The result.
        result: QueryResult,
        /// The effort.
        stats: Stats,
    },
    /// A service has been published, or published again (D5).
    Advertised {
        /// The service's key.
        key: ServiceKey,
        /// The number of peers that hold the record.
        acknowledged: usize,
        /// The peers that refused it, and why (D10).
        refused: Vec<(NodeId, Refusal)>,
        /// The number of peers that should hold it and did not answer.
        unreachable: usize,
    },
    /// A peer published or handed out a record that is forged, or that its node may not provide. Reported once an hour for each peer,
    /// and for [`MAX_NAMED`](macula_wire::MAX_NAMED) peers at most, so that no peer fills a log.
    Misbehaved {
        /// The peer.
        peer: NodeId,
        /// How often peers have done so.
        times: u64,
    },
    /// Another process publishes a service with the key of this node, as a copy of its data folder does: each takes the other's place.
    Usurped {
        /// The service's key.
        key: ServiceKey,
        /// Where that process listens.
        endpoints: Vec<Address>,
    },
    /// A service that is due could not be published: in a closed realm, the node's grant has ended or does not cover it any more.
    NotAdvertised {
        /// The service's key.
        key: ServiceKey,
        /// The reason.
        error: RecordError,
    },
    /// A service has been withdrawn (D3).
    Withdrawn {
        /// The service's key.
        key: ServiceKey,
        /// The number of peers that hold the withdrawal.
        acknowledged: usize,
        /// The number of peers that should hold it and do not; they show the service until its record expires.
        unacknowledged: usize,
    },
    /// This node is part of a mesh.
    Joined {
        /// The number of contacts it has so far.
        contacts: usize,
    },
    /// No seed and no remembered peer answered.
    JoinFailed {
        /// When the next attempt is due, counted from now.
        retry_in: Duration,
    },
    /// The backend could not keep the changes; everything goes on from memory.
    BackendFailed(BackendError),
}

/// The result of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryResult {
    /// The closest nodes, closest first.
    Nodes(Vec<Contact>),
    /// Providers, in the list's order (D1); at least one.
    Found(Vec<VerifiedProvider>),
    /// No provider: the nodes that would know said so.
    NotFound,
    /// Only providers whose records or grants are dated more than [`MAX_CLOCK_SKEW`](crate::MAX_CLOCK_SKEW) off, by this node's clock:
    /// the largest difference.
    Misdated(DateError),
    /// No peer answered, so nothing is known.
    Unreachable,
    /// This node is too busy: requests were not sent, or the lookup of a peer gave way to those of other peers. Nothing is known.
    Busy,
}

/// The effort of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// How many steps away the answer was: 1 for a peer of this node's own table, 0 for this node itself.
    pub hops: u8,
    /// The number of requests sent.
    pub messages: u32,
    /// The number of peers that answered.
    pub answered: u32,
    /// The time from start to end.
    pub elapsed: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing found is never enough: a search for at least none is one for the first.
    #[test]
    fn at_least_none_wants_one() {
        let satisfied = |want: Want| (0..5).filter(|&found| want.is_satisfied_by(found)).collect::<Vec<_>>();
        assert_eq!(satisfied(Want::AtLeast(0)), satisfied(Want::First));
        assert_eq!(satisfied(Want::AtLeast(1)), [1, 2, 3, 4]);
        assert_eq!(satisfied(Want::AtLeast(3)), [3, 4]);
        assert_eq!(satisfied(Want::All), []);
    }
}
