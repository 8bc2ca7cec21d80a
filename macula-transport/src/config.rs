//! How an endpoint behaves: every limit and every timer by name.

use std::{net::SocketAddr, time::Duration};

use macula_wire::Realm;

use crate::{
    access::Access,
    heads::{DEFAULT_HEAD_BYTES, DEFAULT_METADATA_ENTRIES, HeadLimits, MAX_HEAD_BYTES, MAX_METADATA_ENTRIES},
    identity::Identity,
    peer::Role,
    share::default_memory_bytes,
};

/// The largest body of a request of another [`Protocol`](crate::Protocol), and of its reply, in bytes.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// How many replies to one peer may have outgrown their lane at a time, so that each has a stream of its own. Replies of one message do
/// not count. Further ones wait for their turn, within their deadlines.
pub const MAX_MOVED_REPLIES: usize = 256;

/// The largest message that any node takes, in bytes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1 << 28;

/// The longest time anything waits. A longer one means never, and must not overflow the clock.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Everything an [`Endpoint`](crate::Endpoint) is told at its start. Only the identity has no default.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) identity: Identity,
    pub(crate) access: Access,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) role: Role,
    pub(crate) advertise: Vec<macula_wire::Address>,
    pub(crate) agent: String,
    pub(crate) limits: Limits,
    pub(crate) timers: Timers,
    pub(crate) pool: PoolConfig,
    pub(crate) key_exchange: KeyExchange,
    pub(crate) unreachable_hints: bool,
    #[cfg(feature = "testing")]
    pub(crate) network: Option<crate::testing::Network>,
}

impl Config {
    /// A client of the default realm on a port the system chooses.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            access: Access::new(Realm::default(), identity.node_id()),
            identity,
            listen: None,
            role: Role::Client,
            advertise: Vec::new(),
            agent: concat!("macula/", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: Limits::default(),
            timers: Timers::default(),
            pool: PoolConfig::default(),
            key_exchange: KeyExchange::default(),
            unreachable_hints: true,
            #[cfg(feature = "testing")]
            network: None,
        }
    }

    /// Sets the realm: peers of another part at once. A closed realm asks for a grant, too: see [`Config::with_access`].
    #[must_use]
    pub fn with_realm(self, realm: Realm) -> Self {
        let access = Access::new(realm, self.identity.node_id());
        self.with_access(access)
    }

    /// Sets the realm with this node's grant of it, both of which may be used elsewhere as well.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Sets the UDP address to listen on; port 0 lets the system choose. Without it, any address and port.
    #[must_use]
    pub fn with_listen(mut self, listen: SocketAddr) -> Self {
        self.listen = Some(listen);
        self
    }

    /// Sets the part that this node has in the mesh.
    #[must_use]
    pub fn with_role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// Sets where peers are told this node listens, the preferred endpoint first; those beyond
    /// [`macula_wire::MAX_ENDPOINTS`] are not told.
    ///
    /// An endpoint that listens on port 0 learns its port when it is bound:
    /// [`Endpoint::set_advertised`](crate::Endpoint::set_advertised) tells it then.
    #[must_use]
    pub fn with_advertised(mut self, endpoints: impl IntoIterator<Item = macula_wire::Address>) -> Self {
        self.advertise = endpoints.into_iter().take(macula_wire::MAX_ENDPOINTS).collect();
        self
    }

    /// Sets the software's name and version as peers see it, at most 64 bytes of it.
    #[must_use]
    pub fn with_agent(mut self, agent: impl Into<String>) -> Self {
        self.agent = agent.into();
        self
    }

    /// Sets the limits on peers.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = Limits {
            max_message_bytes: limits.max_message_bytes.min(MAX_MESSAGE_BYTES),
            max_head_bytes: limits.max_head_bytes.clamp(DEFAULT_HEAD_BYTES, MAX_HEAD_BYTES),
            max_metadata_entries: limits
                .max_metadata_entries
                .clamp(DEFAULT_METADATA_ENTRIES, MAX_METADATA_ENTRIES),
            ..limits
        };
        self
    }

    /// Sets the timers.
    #[must_use]
    pub fn with_timers(mut self, timers: Timers) -> Self {
        self.timers = timers.map(|time| time.min(LONGEST));
        self
    }

    /// Sets how the keys of connections are agreed on.
    #[must_use]
    pub fn with_key_exchange(mut self, key_exchange: KeyExchange) -> Self {
        self.key_exchange = key_exchange;
        self
    }

    /// Sets whether ICMP reports that a peer's address is unreachable are heeded (L4): the peer is pinged twice at once, and suspected
    /// when it is silent for a probe timeout, 10 ms at least. That timeout is without `max_ack_delay`, because a peer acknowledges
    /// the second of two packets at once (RFC 9000, section 13.2.2). By default they are, where the system tells of them (Linux).
    #[must_use]
    pub fn with_unreachable_hints(mut self, heeded: bool) -> Self {
        self.unreachable_hints = heeded;
        self
    }

    /// Puts the endpoint on a network in memory: it opens no socket, and reaches only endpoints on the same network.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_network(mut self, network: &crate::testing::Network) -> Self {
        self.network = Some(network.clone());
        self
    }

    /// The seed of the endpoint's random choices, when they are to be repeated.
    pub(crate) fn next_seed(&self) -> Option<u64> {
        #[cfg(feature = "testing")]
        if let Some(network) = &self.network {
            return Some(network.next_seed());
        }
        None
    }

    /// Sets the rules of the connection pool.
    #[must_use]
    pub fn with_pool(mut self, pool: PoolConfig) -> Self {
        self.pool = pool.map(|time| time.min(LONGEST));
        self
    }
}

/// How the keys of a connection are agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KeyExchange {
    /// Elliptic curves only (RFC 7748).
    #[default]
    X25519,
    /// Elliptic curves and ML-KEM-768 together, so that recorded traffic stays secret if one of them is broken; with a peer
    /// that has only the former, elliptic curves.
    #[cfg(feature = "aws-lc-rs")]
    X25519MlKem768,
}

/// What a peer may take of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload of a message, either way, in bytes. Default 4 MiB; more than 256 MiB counts as 256 MiB.
    pub max_message_bytes: usize,
    /// The largest part of a call or a reply that is not payload, either way, in bytes: names, metadata, a failure's message and
    /// details. A call keeps to the limits of both sides. Default [`DEFAULT_HEAD_BYTES`], which is the least; at most
    /// [`MAX_HEAD_BYTES`].
    pub max_head_bytes: usize,
    /// The most metadata entries of a call or a reply, either way. Default [`DEFAULT_METADATA_ENTRIES`], which is the least; at most
    /// [`MAX_METADATA_ENTRIES`].
    pub max_metadata_entries: usize,
    /// Calls running at a time for one connection; more are refused as not started. Default 1 024.
    pub max_concurrent_calls: usize,
    /// Calls of peers running at a time, of all connections together; when as many run, a newcomer takes the place of the peer that
    /// has most. Never more than the handler [takes](crate::Handler::load). Default 16 384.
    pub max_running_calls: usize,
    /// The same for calls that this node forwards to others, which have places of their own. Default 4 096.
    pub max_forwarded_calls: usize,
    /// The longest time that a call of a peer may take, whatever it asks for. Default 1 h.
    pub max_call_time: Duration,
    /// Streams a peer may have open at a time, once it has introduced itself, and as many for its replies, beside the
    /// [`MAX_MOVED_REPLIES`]. Default 256.
    pub max_streams: u32,
    /// Bytes a peer may have in flight on one stream. Default 1.25 MB.
    pub stream_window: u32,
    /// Bytes a peer may have in flight on one connection. Default 16 MiB; less where the memory is shared by many connections.
    pub connection_window: u32,
    /// Accepted connections at a time, at most one for each 128 KiB of [`Limits::memory_bytes`]. Beyond it a newcomer
    /// replaces a connection of the network and peer with most; else an idle one of a peer with more than the newcomer; else it is refused.
    /// Default 4 096.
    pub max_accepted: usize,
    /// Accepted connections at a time from one network: an IPv4 /24 or an IPv6 /64. Beyond it, the same within the network.
    /// Default 1 024.
    pub max_accepted_per_network: usize,
    /// Accepted connections of one peer at a time; a further one takes the place of its oldest. Default 8.
    pub max_accepted_per_peer: usize,
    /// Handshakes of accepted connections at a time. Beyond it a new one takes the oldest place of the address that has most, or of one
    /// that takes long; else its peer has to send again. Default 256.
    pub max_handshakes: usize,
    /// Handshakes at a time from which on a peer must first prove its address (RFC 9000, section 8.1). Default 64.
    pub retry_above: usize,
    /// Size of the UDP socket's buffers, in bytes. Default 4 MiB; the kernel may grant less.
    pub socket_buffer_bytes: usize,
    /// Bytes that all peers together may make this endpoint keep: unfinished messages, requests of calls that run, replies that
    /// their callers do not take. Half is for these; when it is full, the largest holder loses its largest message. An eighth is for this
    /// endpoint's own calls, the rest for QUIC's buffers. Default: a quarter of the memory of the machine, or
    /// of its control group where that has less, and at least 64 MiB.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 4 << 20,
            max_head_bytes: DEFAULT_HEAD_BYTES,
            max_metadata_entries: DEFAULT_METADATA_ENTRIES,
            max_concurrent_calls: 1024,
            max_running_calls: 16_384,
            max_forwarded_calls: 4096,
            max_call_time: Duration::from_secs(60 * 60),
            max_streams: 256,
            stream_window: 1_250_000,
            connection_window: 16 << 20,
            max_accepted: 4096,
            max_accepted_per_network: 1024,
            max_accepted_per_peer: 8,
            max_handshakes: 256,
            retry_above: 64,
            socket_buffer_bytes: 4 << 20,
            memory_bytes: default_memory_bytes(),
        }
    }
}

impl Limits {
    pub(crate) fn heads(&self) -> HeadLimits {
        HeadLimits {
            bytes: self.max_head_bytes,
            entries: self.max_metadata_entries,
        }
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// From the first packet of a dial to the peer's HELLO. Default 3 s.
    pub connect: Duration,
    /// From the first byte of a peer's stream to its first whole frame. Default 5 s.
    pub head: Duration,
    /// Silence of a peer in the middle of a message, after which the message is given up. Default 20 s.
    pub message_idle: Duration,
    /// Silence after which a connection is lost, and a stream that a peer has opened and sent nothing on. Default 45 s.
    pub idle: Duration,
    /// Silence after which a quiet connection is kept open by a packet. Default 15 s.
    pub keep_alive: Duration,
    /// Silence of a peer, while a call waits for it, after which it is asked for a sign of life. Default 500 ms.
    pub probe_after: Duration,
    /// How often it is asked again. Default 2 s.
    pub probe_again: Duration,
    /// Silence of a peer, while a call waits for it, after which the connection is given up. Default 6 s.
    pub dead_after: Duration,
    /// How long a silent peer's answer may take once a call's time is up, beside three round trips. Default 500 ms.
    pub probe_grace: Duration,
    /// Silence of a peer, while a call of its runs here, after which it is asked for a sign of life; every [`Timers::probe_again`]
    /// it is asked again, and given up after [`Timers::dead_after`] as always. Default 2 s.
    pub serving_probe_after: Duration,
    /// Silence of a peer after which it is suspected to be gone, in probe timeouts (RFC 9002, section 6.2.1), while it owes an
    /// acknowledgement and a call waits. Default 3.
    pub suspect_after_ptos: u32,
    /// The least silence after which a peer is suspected. Default 100 ms.
    pub suspect_after: Duration,
    /// Silence of a peer that owes nothing, while a call waits, after which it is pinged, or a probe timeout where that is longer.
    /// A call that has waited for long is pinged for less often, up to four fifths of [`Timers::probe_after`]. Default 25 ms.
    pub ping_after: Duration,
    /// When a timer of this node fires later than this, the node itself stood still: silence counts from then. Default 20 ms.
    pub stood_still_after: Duration,
    /// How long after a report that a peer's address is unreachable further reports are ignored. Default 250 ms.
    pub hint_pause: Duration,
    /// From the start of one address's dial to the start of the next one's (RFC 8305, section 5). Default 250 ms.
    pub next_address: Duration,
}

impl Timers {
    fn map(self, to: impl Fn(Duration) -> Duration) -> Self {
        Self {
            connect: to(self.connect),
            head: to(self.head),
            message_idle: to(self.message_idle),
            idle: to(self.idle),
            keep_alive: to(self.keep_alive),
            probe_after: to(self.probe_after),
            probe_again: to(self.probe_again),
            dead_after: to(self.dead_after),
            probe_grace: to(self.probe_grace),
            serving_probe_after: to(self.serving_probe_after),
            suspect_after_ptos: self.suspect_after_ptos,
            suspect_after: to(self.suspect_after),
            ping_after: to(self.ping_after),
            stood_still_after: to(self.stood_still_after),
            hint_pause: to(self.hint_pause),
            next_address: to(self.next_address),
        }
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            head: Duration::from_secs(5),
            message_idle: Duration::from_secs(20),
            idle: Duration::from_secs(45),
            keep_alive: Duration::from_secs(15),
            probe_after: Duration::from_millis(500),
            probe_again: Duration::from_secs(2),
            dead_after: Duration::from_secs(6),
            probe_grace: Duration::from_millis(500),
            serving_probe_after: Duration::from_secs(2),
            suspect_after_ptos: 3,
            suspect_after: Duration::from_millis(100),
            ping_after: Duration::from_millis(25),
            stood_still_after: Duration::from_millis(20),
            hint_pause: Duration::from_millis(250),
            next_address: Duration::from_millis(250),
        }
    }
}

/// The rules of the connection pool (P1, P2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Dialed connections at a time, dials included. Default 256.
    pub max_connections: usize,
    /// How long a connection may be unused. Default 90 s.
    pub idle_timeout: Duration,
    /// How old a dialed connection becomes, a tenth more or less; a new one takes its place. Default 1 h.
    pub max_age: Duration,
    /// The first pause after a failed dial. Default 100 ms, growing by 1.6 each time.
    pub first_backoff: Duration,
    /// The longest pause after a dial that no node answered. Default 1 s, so that a peer that comes back is soon found.
    pub max_backoff: Duration,
    /// The longest pause after a dial that the peer itself refused: another key, realm or version. Default 30 s.
    pub max_refused_backoff: Duration,
}

impl PoolConfig {
    fn map(self, to: impl Fn(Duration) -> Duration) -> Self {
        Self {
            max_connections: self.max_connections,
            idle_timeout: to(self.idle_timeout),
            max_age: to(self.max_age),
            first_backoff: to(self.first_backoff),
            max_backoff: to(self.max_backoff),
            max_refused_backoff: to(self.max_refused_backoff),
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            max_connections: 256,
            idle_timeout: Duration::from_secs(90),
            max_age: Duration::from_secs(60 * 60),
            first_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            max_refused_backoff: Duration::from_secs(30),
        }
    }
}
