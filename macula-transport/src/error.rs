//! What can go wrong, one enum for each kind of operation.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use macula_wire::{AccessError, AddressError, FrameError, NodeId, StatusCode};

/// TLS could not be set up: the identity's key or the cryptographic provider is not usable.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct TlsError(#[from] rustls::Error);

/// An endpoint could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: is another program using the port, and is the address this machine's?")]
    Socket {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity cannot be used for TLS.
    #[error("the identity cannot be used for TLS")]
    Tls(#[source] TlsError),
    /// The node's own grant is not valid.
    #[error("the node's grant cannot be used")]
    Grant(#[source] AccessError),
    /// There is no tokio runtime here.
    #[error("an endpoint is started within a tokio runtime")]
    NoRuntime,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// The peer's packets stopped coming.
    #[error("the peer stopped answering")]
    TimedOut,
    /// The peer does not know the connection: it was restarted.
    #[error("the peer was restarted")]
    Restarted,
    /// The peer closed the connection.
    #[error("the peer closed the connection: {reason}")]
    ClosedByPeer {
        /// Which kind of end the peer gave.
        code: CloseCode,
        /// The peer's words.
        reason: Arc<str>,
    },
    /// This node closed the connection.
    #[error("the connection was closed here: {0}")]
    ClosedHere(CloseCode),
    /// The handshake or the transport failed.
    #[error("the connection failed: {0}")]
    Transport(Arc<str>),
}

impl Lost {
    /// Whether the peer lives although the connection ended: it may be dialed again at once.
    #[must_use]
    pub const fn peer_is_there(&self) -> bool {
        match self {
            Self::Restarted => true,
            Self::ClosedByPeer { code, .. } | Self::ClosedHere(code) => matches!(code, CloseCode::Retired),
            Self::TimedOut | Self::Transport(_) => false,
        }
    }

    /// Whether the peer is gone as far as this end of a connection tells: it left, or was not heard.
    #[must_use]
    pub const fn peer_is_gone(&self) -> bool {
        match self {
            Self::Restarted => false,
            Self::ClosedByPeer { code, .. } => matches!(code, CloseCode::Shutdown | CloseCode::Aborted),
            Self::ClosedHere(code) => matches!(code, CloseCode::Unresponsive),
            Self::TimedOut | Self::Transport(_) => true,
        }
    }
}

/// Why a connection was closed, by either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum CloseCode {
    /// A code of a later version.
    #[error("for a reason this version does not know")]
    Other,
    /// The node shut down; every call that it had accepted was answered.
    #[error("the node shut down")]
    Shutdown,
    /// The connection was idle for too long, or made room for another.
    #[error("the connection was idle or made room for others")]
    Retired,
    /// The peer broke the protocol.
    #[error("the protocol was broken")]
    Protocol,
    /// The peers are of different realms.
    #[error("the peers are of different realms")]
    Realm,
    /// The peers speak different versions.
    #[error("the peers speak different versions")]
    Version,
    /// The node is at its limit of connections.
    #[error("the node is at its limit of connections")]
    Busy,
    /// The peer did not answer probes.
    #[error("the peer did not answer")]
    Unresponsive,
    /// The node shut down with calls unfinished.
    #[error("the node shut down with calls unfinished")]
    Aborted,
    /// The peer has no valid grant of the realm.
    #[error("the peer has no valid grant of the realm")]
    NotAMember,
    /// The peer's grant has ended.
    #[error("the peer's grant has ended")]
    GrantEnded,
    /// The peer's grant was revoked.
    #[error("the peer's grant was revoked")]
    Revoked,
}

/// A peer could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// No address was given.
    #[error("no address is known for the peer")]
    NoAddress,
    /// A host name has no address.
    #[error("cannot resolve {endpoint}")]
    Resolve {
        /// The endpoint that names the host.
        endpoint: macula_wire::Address,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The address cannot be dialed from here.
    #[error("cannot dial {addr} from here")]
    Address {
        /// The address.
        addr: SocketAddr,
    },
    /// No node answered in time.
    #[error("no node answered at {addr} within {after:?}: is the node running, and the UDP port open?")]
    TimedOut {
        /// The last address tried.
        addr: SocketAddr,
        /// How long the dial took.
        after: Duration,
    },
    /// Another node answered.
    #[error("the node at {addr} is {found} and not the dialed {expected}")]
    WrongNode {
        /// The address.
        addr: SocketAddr,
        /// The node that was dialed.
        expected: NodeId,
        /// The node that answered.
        found: NodeId,
    },
    /// The node dialed itself.
    #[error("{addr} is this node itself")]
    Myself {
        /// The address.
        addr: SocketAddr,
    },
    /// The system reports that nothing listens at the address, and no answer has come since (L4).
    #[error("nothing listens at {addr}; see whether the peer runs there")]
    Unreachable {
        /// The address.
        addr: SocketAddr,
    },
    /// The handshake or the introduction failed.
    #[error("no connection to {addr}")]
    Refused {
        /// The address.
        addr: SocketAddr,
        /// What ended it.
        source: Lost,
    },
    /// The peer's introduction cannot be accepted.
    #[error("no connection to {addr}")]
    Hello {
        /// The address.
        addr: SocketAddr,
        /// What is wrong with it.
        source: HelloError,
    },
    /// A dial failed a moment ago.
    #[error("a dial failed a moment ago; the next one is made in {retry_in:?}")]
    BackingOff {
        /// From when on the peer is dialed again.
        retry_in: Duration,
        /// What the last dial met.
        source: Arc<DialError>,
    },
    /// The pool is full of connections in use.
    #[error("all {max} connections of the pool are in use; raise its limit")]
    PoolFull {
        /// The limit.
        max: usize,
    },
    /// This endpoint is shut down.
    #[error("the endpoint is shut down")]
    ShutDown,
    /// The identity cannot be used for TLS.
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsError),
    /// This node itself has no valid grant of its closed realm, so no peer would let it in.
    #[error("this node has no valid grant of its realm")]
    Grant(#[source] AccessError),
}

impl DialError {
    /// The address that was dialed, the last of several; `None` when there was none.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Address { addr }
            | Self::TimedOut { addr, .. }
            | Self::WrongNode { addr, .. }
            | Self::Myself { addr }
            | Self::Unreachable { addr }
            | Self::Refused { addr, .. }
            | Self::Hello { addr, .. } => Some(*addr),
            Self::BackingOff { source, .. } => source.addr(),
            Self::NoAddress
            | Self::Resolve { .. }
            | Self::PoolFull { .. }
            | Self::ShutDown
            | Self::Tls(_)
            | Self::Grant(_) => None,
        }
    }

    /// Whether the peer itself said no, so that asking again soon is of no use.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::WrongNode { .. } | Self::Myself { .. } | Self::Hello { .. } | Self::Tls(_) => true,
            Self::Refused { source, .. } => !matches!(
                source,
                Lost::TimedOut
                    | Lost::Restarted
                    | Lost::ClosedByPeer {
                        code: CloseCode::Busy,
                        ..
                    }
            ),
            Self::NoAddress
            | Self::Resolve { .. }
            | Self::TimedOut { .. }
            | Self::Address { .. }
            | Self::Unreachable { .. }
            | Self::BackingOff { .. }
            | Self::PoolFull { .. }
            | Self::Grant(_)
            | Self::ShutDown => false,
        }
    }
}

/// A peer's introduction cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The peer is of another realm.
    #[error("the peer is of another realm; both must be started with the same realm")]
    Realm,
    /// The peer is no member of the closed realm.
    #[error("the peer is no member of the realm: {0}")]
    Access(AccessError),
    /// This node itself has no valid grant.
    #[error("this node has no valid grant of its realm: {0}")]
    OwnGrant(AccessError),
    /// The peer speaks another version of the protocol.
    #[error("the peer speaks version {theirs} of the protocol and this node version {ours}; update the older one")]
    Version {
        /// The peer's version.
        theirs: u32,
        /// This node's version.
        ours: u32,
    },
    /// The peer's first message is not an introduction.
    #[error("the peer's first message is not an introduction")]
    Malformed,
    /// The peer names an endpoint that cannot be read.
    #[error("the peer names an endpoint that cannot be read")]
    Address(#[from] AddressError),
    /// The peer's introduction is not framed as it should be.
    #[error("the peer's introduction cannot be read")]
    Frame(#[from] FrameError),
    /// The peer did not introduce itself in time.
    #[error("the peer did not introduce itself in time")]
    TimedOut,
    /// The connection ended before the introduction.
    #[error("the connection ended before the peer introduced itself")]
    Lost(#[from] Lost),
    /// The stream ended before the introduction.
    #[error("the peer ended its control stream")]
    Ended,
}

/// Why a call did not run, and never will.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSent {
    /// The connection ended before the call was sent, or before the peer accepted it.
    #[error("the connection had ended: {0}")]
    Lost(#[from] Lost),
    /// The peer takes no further calls on this connection. It has named the calls that it accepted, and this one is not among them.
    #[error("the peer takes no further calls on this connection")]
    GoingAway,
    /// The peer allowed no further stream before the time was up.
    #[error("the peer is at its limit of calls")]
    NoCredit,
    /// The names and metadata are larger than the peer takes. Another peer may take more.
    #[error(
        "the call's names and metadata have {bytes} bytes and {entries} entries; the peer takes {max_bytes} bytes and {max_entries} \
         entries at most: raise `Limits::max_head_bytes` and `Limits::max_metadata_entries` there"
    )]
    HeadTooLarge {
        /// The size of the head without payload.
        bytes: usize,
        /// The number of metadata entries.
        entries: usize,
        /// The largest head that the peer takes, in bytes.
        max_bytes: usize,
        /// The most metadata entries that the peer takes.
        max_entries: usize,
    },
    /// This endpoint is shut down.
    #[error("the endpoint is shut down")]
    ShutDown,
}

/// Why nothing is known of a call that was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unknown {
    /// No reply came in time.
    #[error("no reply came within {0:?}")]
    Timeout(Duration),
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Lost(#[from] Lost),
    /// The peer gave the call up without a status.
    #[error("the peer gave the call up with code {0}")]
    Reset(u64),
    /// The reply ended before its status.
    #[error("the reply ended before its status came")]
    Incomplete,
    /// The reply is not framed as it should be.
    #[error("the reply cannot be read: {0}")]
    Frame(#[from] FrameError),
    /// The reply's messages break the protocol.
    #[error("the reply's messages break the protocol")]
    Malformed,
    /// The service answers with several messages.
    #[error("the service streams its reply: open the call as a stream")]
    Streamed,
    /// This node could not keep the reply.
    #[error("this node has no memory left for the reply; raise `Limits::memory_bytes`, or take replies sooner")]
    NoMemory,
}

/// A call brought no status from the provider. One variant for each outcome of an attempt (F5).
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The call did not run, and never will: always safe to try again elsewhere.
    #[error("the call was not sent: {0}")]
    NotSent(#[source] NotSent),
    /// The provider did not start the call: safe to try again elsewhere.
    #[error("the provider did not start the call ({status}): {message}")]
    Refused {
        /// What kind of refusal it is.
        status: StatusCode,
        /// The provider's words.
        message: String,
        /// How long to leave the provider alone, when it says so.
        pushback: Option<Pushback>,
    },
    /// The call was sent, and whether it ran is not known.
    #[error("whether the call ran is not known: {0}")]
    Unknown(#[source] Unknown),
    /// The payload is larger than a message may be. Nothing was sent, and no provider would take it.
    #[error("the payload has {bytes} bytes; a message has at most {limit}: send it in pieces, as a stream")]
    TooLarge {
        /// The size of the payload.
        bytes: usize,
        /// The largest message, ours or the peer's.
        limit: usize,
    },
    /// The names and metadata are larger than a head may be. Nothing was sent, and no provider would take it.
    #[error(
        "the call's names and metadata have {bytes} bytes and {entries} entries; this node sends {max_bytes} bytes and \
         {max_entries} entries at most: raise `Limits::max_head_bytes` and `Limits::max_metadata_entries`"
    )]
    HeadTooLarge {
        /// The size of the head without payload.
        bytes: usize,
        /// The number of metadata entries.
        entries: usize,
        /// The largest head that this node sends, in bytes.
        max_bytes: usize,
        /// The most metadata entries that this node sends.
        max_entries: usize,
    },
}

/// What a provider asks about the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushback {
    /// Not before this time has passed.
    After(Duration),
    /// Not at all.
    Never,
}

impl Pushback {
    pub(crate) fn from_wire(milliseconds: Option<i64>) -> Option<Self> {
        milliseconds.map(|ms| u64::try_from(ms).map_or(Self::Never, |ms| Self::After(Duration::from_millis(ms))))
    }

    pub(crate) fn to_wire(self) -> i64 {
        match self {
            Self::After(pause) => i64::try_from(pause.as_millis()).unwrap_or(i64::MAX),
            Self::Never => -1,
        }
    }
}

/// A request of another protocol than calls brought no reply.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The body is too large to send.
    #[error("the request has {bytes} bytes; at most {} are sent", crate::MAX_REQUEST_BYTES)]
    TooLarge {
        /// The size of the body.
        bytes: usize,
    },
    /// The peer does not answer requests of this protocol, or not this one.
    #[error("the peer declined the request")]
    Declined,
    /// No reply came in time.
    #[error("no reply came within {0:?}")]
    Timeout(Duration),
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Lost(#[from] Lost),
    /// The reply is not framed as it should be.
    #[error("the reply cannot be read: {0}")]
    Frame(#[from] FrameError),
}
