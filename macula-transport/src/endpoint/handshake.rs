//! From an address, or an arriving handshake, to a connection whose peer has introduced itself.
//!
//! A TLS 1.3 client is done before the server has judged its key, so neither side uses a connection before the other's HELLO.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    future::join_all,
    stream::{FuturesUnordered, StreamExt as _},
};
use macula_wire::{
    Chain, ChainHash, NodeId,
    proto::{self, Hello, control},
};
use tokio::{
    sync::broadcast,
    time::{Instant, timeout_at},
};

use super::{
    hello,
    quic::INITIAL_RTT,
    tls::{self, Alpn},
};
use crate::{
    connection::{
        shared::Shared,
        stream::{Incoming, Outgoing, ReceiveError, SendError, StreamKind, control_frame, kind_bytes},
    },
    error::{CloseCode, DialError, HelloError, Lost, TlsError},
    peer::PeerInfo,
    share::names::{Names, ToldBy},
};

/// The most addresses one dial tries.
const MAX_ADDRESSES: usize = 16;
/// The probe timeout before a round trip is measured: its variance counts as half of it (RFC 9002, section 6.2.2).
const INITIAL_PTO: Duration = Duration::from_millis(3 * INITIAL_RTT.as_millis() as u64);

/// What a handshake needs of the endpoint.
pub(crate) struct Introducer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) node_id: NodeId,
    pub(crate) quic: quinn::Endpoint,
    pub(crate) tls: tls::Tls,
    pub(crate) transport: Arc<quinn::TransportConfig>,
    /// Where new peers are told that this node listens.
    pub(crate) advertised: RwLock<Vec<macula_wire::Address>>,
    /// Tells the dials under way of addresses where nothing is reached.
    pub(crate) unreachable: broadcast::Sender<SocketAddr>,
}

impl Introducer {
    fn hello(&self, peer_addr: SocketAddr) -> Result<Hello, HelloError> {
        let advertised = self.advertised.read().unwrap_or_else(PoisonError::into_inner);
        hello::ours(&self.shared.config, &advertised, peer_addr)
    }

    fn timed_out(&self, addr: SocketAddr) -> DialError {
        let after = self.shared.config.timers.connect;
        DialError::TimedOut { addr, after }
    }

    fn client_config(
        &self,
        alpn: Alpn,
        expected: Option<NodeId>,
    ) -> Result<(quinn::ClientConfig, Arc<tls::FoundKey>), TlsError> {
        let (tls, found) = self.tls.client(alpn, expected)?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(self.transport.clone());
        Ok((config, found))
    }
}

/// A connection after both introductions, with its control stream.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) quic: quinn::Connection,
    pub(crate) peer: PeerInfo,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    /// The chain that the peer was shown.
    pub(crate) shown: Option<ChainHash>,
}

/// Dials a peer and introduces this node to it.
pub(crate) async fn dial(
    introducer: &Introducer,
    expected: Option<NodeId>,
    endpoints: &[macula_wire::Address],
) -> Result<Established, DialError> {
    introducer.shared.config.access.own().map_err(DialError::Grant)?;
    // Without an id it is this node's first contact with a mesh, at an address from its user.
    let told_by = if expected.is_none() { ToldBy::User } else { ToldBy::Peer };
    race(introducer, endpoints, told_by, |addr, deadline| {
        attempt(introducer, expected, addr, deadline)
    })
    .await
}

/// Tries a peer at whichever of its endpoints answers first (RFC 8305, section 5): the next address is tried when one has
/// failed, or has not answered for a while.
pub(super) async fn race<T, F: Future<Output = Result<T, DialError>>>(
    introducer: &Introducer,
    endpoints: &[macula_wire::Address],
    told_by: ToldBy,
    attempt: impl Fn(SocketAddr, Instant) -> F,
) -> Result<T, DialError> {
    let start = Instant::now();
    let deadline = start + introducer.shared.config.timers.connect;
    // A name that is slow to look up holds up known addresses for no longer than each of them holds up the next one.
    let knows_some = endpoints.iter().any(|endpoint| endpoint.ip().is_some());
    let patience = if knows_some {
        start + introducer.shared.config.timers.next_address
    } else {
        deadline
    };
    let (addresses, mut error) = resolve(&introducer.shared.names, endpoints, told_by, patience).await;
    let mut waiting = addresses.into_iter();
    let mut dials = FuturesUnordered::new();
    let mut next_at = start;
    loop {
        if Instant::now() >= next_at || dials.is_empty() {
            if let Some(addr) = waiting.next() {
                dials.push(attempt(addr, deadline));
                next_at = Instant::now() + introducer.shared.config.timers.next_address;
            } else if dials.is_empty() {
                return Err(error.unwrap_or(DialError::NoAddress));
            }
        }
        let more = waiting.len() > 0;
        tokio::select! {
            biased;
            Some(result) = dials.next() => match result {
                Ok(established) => return Ok(established),
                Err(new) => {
                    next_at = Instant::now();
                    // The word of a peer that refuses says more than the silence of its other addresses.
                    if error.as_ref().is_none_or(|old: &DialError| !old.is_refusal()) {
                        error = Some(new);
                    }
                }
            },
            () = tokio::time::sleep_until(next_at), if more => {}
        }
    }
}

/// The addresses of the endpoints in their order, IPv6 and IPv4 taking turns. Names are looked up until `patience` at most.
async fn resolve(
    names: &Names,
    endpoints: &[macula_wire::Address],
    told_by: ToldBy,
    patience: Instant,
) -> (Vec<SocketAddr>, Option<DialError>) {
    let mut addresses = Vec::new();
    let mut error = None;
    let endpoints = || endpoints.iter().take(macula_wire::MAX_ENDPOINTS);
    let lookups = endpoints().map(|endpoint| timeout_at(patience, names.look_up(endpoint, told_by)));
    for (endpoint, found) in endpoints().zip(join_all(lookups).await) {
        match found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(found) => addresses.extend(found),
            Err(source) => {
                error = Some(DialError::Resolve {
                    endpoint: endpoint.clone(),
                    source: Arc::new(source),
                })
            }
        }
    }
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|addr| addr.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut mixed = Vec::with_capacity(MAX_ADDRESSES);
    while mixed.len() < MAX_ADDRESSES {
        let before = mixed.len();
        for addr in [first.next(), second.next()].into_iter().flatten() {
            if !mixed.contains(&addr) {
                mixed.push(addr);
            }
        }
        if mixed.len() == before && first.len() == 0 && second.len() == 0 {
            break;
        }
    }
    (mixed, error)
}

/// A QUIC connection to whichever node, or the one expected, listens at an address. Its key is proved.
pub(super) async fn reach(
    introducer: &Introducer,
    alpn: Alpn,
    expected: Option<NodeId>,
    addr: SocketAddr,
    deadline: Instant,
) -> Result<(quinn::Connection, NodeId), DialError> {
    let connected = timeout_at(deadline, connect_heeding(introducer, alpn, expected, addr)).await;
    let quic = connected.unwrap_or_else(|_| Err(introducer.timed_out(addr)))?;
    let Some(node_id) = tls::peer_id(quic.peer_identity()) else {
        let source = HelloError::Malformed;
        quic.close(source.close_code().to_wire(), source.to_string().as_bytes());
        return Err(DialError::Hello { addr, source });
    };
    if node_id == introducer.node_id {
        quic.close(CloseCode::Protocol.to_wire(), b"the node dialed itself");
        return Err(DialError::Myself { addr });
    }
    Ok((quic, node_id))
}

async fn attempt(
    introducer: &Introducer,
    expected: Option<NodeId>,
    addr: SocketAddr,
    deadline: Instant,
) -> Result<Established, DialError> {
    let (quic, node_id) = reach(introducer, Alpn::Mesh, expected, addr, deadline).await?;
    let refused = |quic: &quinn::Connection, error: HelloError| {
        quic.close(error.close_code().to_wire(), error.to_string().as_bytes());
        match error {
            HelloError::Lost(Lost::ClosedByPeer {
                code: CloseCode::Realm, ..
            }) => DialError::Hello {
                addr,
                source: HelloError::Realm,
            },
            HelloError::OwnGrant(source) => DialError::Grant(source),
            HelloError::Lost(source) => DialError::Refused { addr, source },
            source => DialError::Hello { addr, source },
        }
    };
    match timeout_at(deadline, open_control(introducer, &quic, node_id, expected.is_some())).await {
        Ok(Ok(established)) => Ok(established),
        Ok(Err(error)) => Err(refused(&quic, error)),
        Err(_) => {
            quic.close(CloseCode::Protocol.to_wire(), b"no introduction came in time");
            Err(introducer.timed_out(addr))
        }
    }
}

/// A QUIC connection to an address. After a report that nothing listens there the handshake is begun once more. The address is given
/// up after another report and a probe timeout without an answer: one report alone may be forged, or of a moment ago (L4).
async fn connect_heeding(
    introducer: &Introducer,
    alpn: Alpn,
    expected: Option<NodeId>,
    addr: SocketAddr,
) -> Result<quinn::Connection, DialError> {
    // Before the first packet, which the report answers.
    let (mut reports, started) = (introducer.unreachable.subscribe(), Instant::now());
    let mut first = pin!(connect(introducer, alpn, expected, addr));
    tokio::select! {
        biased;
        connected = &mut first => return connected,
        () = reported(&mut reports, addr) => {}
    }
    // A report takes as long as an answer.
    let patience = INITIAL_PTO.max(INITIAL_RTT + 3 * started.elapsed());
    let second = async {
        // A process that starts again needs a moment.
        tokio::time::sleep(INITIAL_RTT).await;
        connect(introducer, alpn, expected, addr).await
    };
    let given_up = async {
        let again = async {
            tokio::time::sleep(INITIAL_RTT).await;
            let mut reports = introducer.unreachable.subscribe();
            reported(&mut reports, addr).await;
        };
        tokio::join!(again, tokio::time::sleep(patience));
    };
    tokio::select! {
        biased;
        connected = first => connected,
        connected = second => connected,
        () = given_up => Err(DialError::Unreachable { addr }),
    }
}

/// Waits for a report that nothing is reached at an address.
async fn reported(reports: &mut broadcast::Receiver<SocketAddr>, addr: SocketAddr) {
    loop {
        match reports.recv().await {
            Ok(unreachable) if unreachable == addr => return,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

async fn connect(
    introducer: &Introducer,
    alpn: Alpn,
    expected: Option<NodeId>,
    addr: SocketAddr,
) -> Result<quinn::Connection, DialError> {
    let (config, found) = introducer.client_config(alpn, expected).map_err(DialError::Tls)?;
    let connecting = introducer
        .quic
        .connect_with(config, addr, "macula.invalid")
        .map_err(|_| DialError::Address { addr })?;
    connecting
        .await
        .map_err(|error| match (expected, found.get(), Lost::from(error)) {
            (_, _, Lost::TimedOut) => introducer.timed_out(addr),
            (Some(expected), Some(found), _) if expected != found => DialError::WrongNode { addr, expected, found },
            (_, _, source) => DialError::Refused { addr, source },
        })
}

/// Opens the control stream, on which both sides introduce themselves, the dialer first. A dialer that does not know which node it
/// dials asks before: it shows neither its realm nor its grant to a node that has not shown that it belongs there (A3).
///
/// So a node that listens shows its realm's hash and its grant to every node that dials it and asks. Neither is a secret: a grant
/// names services, labels and dates, and is of use only with its node's key.
async fn open_control(
    introducer: &Introducer,
    quic: &quinn::Connection,
    node_id: NodeId,
    is_expected: bool,
) -> Result<Established, HelloError> {
    let (send, recv) = quic.open_bi().await.map_err(Lost::from)?;
    let mut outgoing = Outgoing::new(send);
    let mut incoming = Incoming::new(recv, hello::MAX_CONTROL_BYTES);
    // A node without a grant would be refused, and says nothing.
    let mut hello = introducer.hello(remote_addr(quic))?;
    let kind = kind_bytes(StreamKind::Control);
    if is_expected {
        say(
            &mut outgoing,
            &mut [kind, control_frame(control::Kind::Hello(hello.clone()))],
        )
        .await?;
    } else {
        say(
            &mut outgoing,
            &mut [kind, control_frame(control::Kind::Ask(proto::Ask {}))],
        )
        .await?;
        hear_hello(introducer, quic, node_id, &mut incoming).await?;
        hello = introducer.hello(remote_addr(quic))?;
        say(&mut outgoing, &mut [control_frame(control::Kind::Hello(hello.clone()))]).await?;
    }
    let peer = hear_hello(introducer, quic, node_id, &mut incoming).await?;
    Ok(Established {
        quic: quic.clone(),
        peer,
        outgoing,
        incoming,
        shown: shown(&hello),
    })
}

/// Takes an arriving connection to the point where both sides have introduced themselves.
///
/// The caller bounds the time.
pub(crate) async fn accept(introducer: &Introducer, quic: &quinn::Connection) -> Result<Established, HelloError> {
    let node_id = tls::peer_id(quic.peer_identity()).ok_or(HelloError::Malformed)?;
    let (send, recv) = quic.accept_bi().await.map_err(Lost::from)?;
    let mut outgoing = Outgoing::new(send);
    let mut incoming = Incoming::new(recv, hello::MAX_CONTROL_BYTES);
    match incoming.kind().await.map_err(hello_error)? {
        Some(byte) if byte == StreamKind::Control.byte() => {}
        _ => return Err(HelloError::Malformed),
    }
    let mut first = hear(&mut incoming).await?;
    if hello::is_question(&first) {
        let hello = introducer.hello(remote_addr(quic))?;
        say(&mut outgoing, &mut [control_frame(control::Kind::Hello(hello))]).await?;
        first = hear(&mut incoming).await?;
    }
    let peer = hello::read(first, &introducer.shared.config.access, node_id, remote_addr(quic))?;
    let hello = introducer.hello(remote_addr(quic))?;
    let shown = shown(&hello);
    say(&mut outgoing, &mut [control_frame(control::Kind::Hello(hello))]).await?;
    Ok(Established {
        quic: quic.clone(),
        peer,
        outgoing,
        incoming,
        shown,
    })
}

/// The hash of the chain in an introduction of this node.
fn shown(hello: &Hello) -> Option<ChainHash> {
    let chain = Chain::from_bytes(hello.chain.clone()).ok()?;
    (!hello.chain.is_empty()).then(|| chain.hash())
}

async fn say(outgoing: &mut Outgoing, frames: &mut [Bytes]) -> Result<(), HelloError> {
    outgoing.send(frames).await.map_err(|error| match error {
        SendError::Stopped => HelloError::Ended,
        SendError::Lost(lost) => HelloError::Lost(lost),
    })
}

async fn hear(incoming: &mut Incoming) -> Result<Bytes, HelloError> {
    incoming.next().await.map_err(hello_error)?.ok_or(HelloError::Ended)
}

async fn hear_hello(
    introducer: &Introducer,
    quic: &quinn::Connection,
    node_id: NodeId,
    incoming: &mut Incoming,
) -> Result<PeerInfo, HelloError> {
    let frame = hear(incoming).await?;
    hello::read(frame, &introducer.shared.config.access, node_id, remote_addr(quic))
}

/// Where the peer's packets come from; an IPv4 address as one, although the socket takes both families.
pub(super) fn remote_addr(quic: &quinn::Connection) -> SocketAddr {
    let mut remote = quic.remote_address();
    remote.set_ip(remote.ip().to_canonical());
    remote
}

fn hello_error(error: ReceiveError) -> HelloError {
    match error {
        ReceiveError::Reset(_) => HelloError::Ended,
        ReceiveError::Lost(lost) => HelloError::Lost(lost),
        ReceiveError::Frame(error) => HelloError::Frame(error),
        ReceiveError::Broken => HelloError::Malformed,
        ReceiveError::Slow | ReceiveError::Exhausted => HelloError::TimedOut,
    }
}
