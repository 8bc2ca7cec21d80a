//! How quinn is set up: the socket, the transport's parameters, and the keys that outlive a restart.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, ServerConfig, TransportConfig, VarInt,
    crypto::rustls::QuicServerConfig,
};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator, InvalidCid};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use crate::{config::Config, connection::congestion, identity::Identity, stats::Counters};

/// Streams a peer may have open before it has introduced itself. quinn keeps an entry for each permitted stream from the
/// start, so a large number here makes every handshake slow.
const STREAMS_BEFORE_HELLO: u32 = 128;
/// Bytes a peer may have in flight on a connection before it has introduced itself: it says nothing but its introduction.
const WINDOW_BEFORE_HELLO: u32 = 64 * 1024;
/// How many first packets may wait to be looked at, for each handshake that may be under way. QUIC refuses those beyond.
const WAITING_FOR_EACH: usize = 16;
/// Bytes of one handshake that wait until it is looked at, and of all of them.
const MAX_WAITING_BYTES: u64 = 16 * 1024;
const MAX_ALL_WAITING_BYTES: u64 = 16 * 1024 * 1024;
/// The largest datagram that path discovery tries, in bytes.
pub(crate) const MAX_DATAGRAM_BYTES: u16 = 6_500;
/// The round trip assumed before one is measured: a lost first packet is sent again after three of them.
pub(crate) const INITIAL_RTT: Duration = Duration::from_millis(100);

pub(crate) fn transport_config(config: &Config) -> TransportConfig {
    let limits = &config.limits;
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_DATAGRAM_BYTES);
    transport
        .max_concurrent_bidi_streams(STREAMS_BEFORE_HELLO.min(limits.max_streams).into())
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window(limits.stream_window.into())
        .receive_window(WINDOW_BEFORE_HELLO.min(limits.connection_window).into())
        .send_window(limits.connection_window.into())
        .max_idle_timeout(Some(idle_timeout(config.timers.idle)))
        .keep_alive_interval(Some(config.timers.keep_alive))
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(discovery))
        .send_fairness(true)
        .congestion_controller_factory(Arc::new(congestion::Factory::default()))
        .ack_frequency_config(None)
        .datagram_receive_buffer_size(None);
    transport
}

/// QUIC counts the idle timeout in milliseconds, as a varint.
fn idle_timeout(idle: Duration) -> IdleTimeout {
    let longest = VarInt::from_u32(u32::MAX);
    let millis = u32::try_from(idle.as_millis()).map_or(longest, VarInt::from_u32);
    IdleTimeout::from(millis)
}

pub(crate) fn server_config(tls: QuicServerConfig, transport: Arc<TransportConfig>, config: &Config) -> ServerConfig {
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server
        .transport_config(transport)
        .max_incoming(config.limits.max_handshakes.saturating_mul(WAITING_FOR_EACH))
        .incoming_buffer_size(MAX_WAITING_BYTES)
        .incoming_buffer_size_total(MAX_ALL_WAITING_BYTES)
        // A caller behind a router keeps its connection when the router gives it another port or address (RFC 9000, section 9).
        .migration(true);
    server
}

/// The least time between two stateless resets of an endpoint, to all peers together. When a node starts again, all of its callers ask within
/// the same few milliseconds, and the ones without an answer ask again after twice the time: quinn's own 20 ms would leave the last of twenty
/// without one for seconds (H6). A reset is smaller than the packet it answers (RFC 9000, section 10.3.3), so a flood is not amplified.
const BETWEEN_RESETS: Duration = Duration::from_micros(100);

/// The stateless-reset key comes from the node's secret, so that a restarted node can tell the peers of its former self
/// that their connections are gone (RFC 9000, section 10.3); so does the key that marks its connection ids.
///
/// A `seed` makes QUIC's own choices repeatable: packet numbers skipped, the order of parameters, the length of resets.
pub(crate) fn endpoint_config(
    identity: &Identity,
    port: u16,
    counters: Arc<Counters>,
    seed: Option<u64>,
) -> EndpointConfig {
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, identity.secret().as_bytes());
    let reset_key = reset_key(&secret, port);
    let mark = ring::hmac::sign(&secret, b"macula/v1/connection-id");
    let mark = mark
        .as_ref()
        .iter()
        .take(8)
        .fold(0, |mark, &byte| mark << 8 | u64::from(byte));
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    // The size that is taken bounds the sizes that the peer's path discovery tries. Fails only for sizes that QUIC does not have.
    if let Err(error) = config.max_udp_payload_size(MAX_DATAGRAM_BYTES) {
        tracing::warn!(%error, "datagrams stay small");
    }
    config.rng_seed(seed.map(|seed| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes
    }));
    config.min_reset_interval(BETWEEN_RESETS);
    config.cid_generator(move || {
        Box::new(CountingIds {
            ids: HashedConnectionIdGenerator::from_key(mark),
            counters: counters.clone(),
        })
    });
    config
}

/// The key of stateless resets. The port enters it: else an observer could have a node with the same identity on another port end the
/// connections of this one (X11). A node that starts again on its port has its key again.
fn reset_key(secret: &ring::hmac::Key, port: u16) -> ring::hmac::Key {
    let domain = [&b"macula/v1/stateless-reset"[..], &port.to_be_bytes()].concat();
    ring::hmac::Key::new(ring::hmac::HMAC_SHA256, ring::hmac::sign(secret, &domain).as_ref())
}

/// Makes connection ids, and counts the datagrams whose id this node never made.
struct CountingIds {
    ids: HashedConnectionIdGenerator,
    counters: Arc<Counters>,
}

impl ConnectionIdGenerator for CountingIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.ids.generate_cid()
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        self.ids
            .validate(id)
            .inspect_err(|_| self.counters.foreign_datagrams.add())
    }

    fn cid_len(&self) -> usize {
        self.ids.cid_len()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.ids.cid_lifetime()
    }
}

/// The socket that the configuration asks for. It tells `hints` of addresses that are reported as unreachable, where it can.
pub(crate) fn open_socket(
    config: &Config,
    runtime: &impl Runtime,
    hints: mpsc::Sender<SocketAddr>,
) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let hints = config.unreachable_hints.then_some(hints);
    #[cfg(feature = "testing")]
    if let Some(network) = &config.network {
        let socket = crate::testing::MemorySocket::bind(network.clone(), config.listen, hints)?;
        return Ok(Arc::new(socket));
    }
    let buffer_bytes = config.limits.socket_buffer_bytes;
    let socket = match config.listen {
        Some(addr) => bind_socket(addr, buffer_bytes)?,
        // A machine without IPv6 has no such socket.
        None => bind_socket((Ipv6Addr::UNSPECIFIED, 0).into(), buffer_bytes)
            .or_else(|_| bind_socket((Ipv4Addr::UNSPECIFIED, 0).into(), buffer_bytes))?,
    };
    #[cfg(target_os = "linux")]
    if let Some(hints) = hints {
        match super::unreachable::ask_for_reports(&socket) {
            Ok(()) => return Ok(super::unreachable::wrap(socket, hints)?),
            Err(error) => tracing::debug!(%error, "the system does not report unreachable addresses"),
        }
    }
    runtime.wrap_udp_socket(socket)
}

/// A UDP socket with large buffers: a burst of packets must not be lost while one core is busy.
fn bind_socket(addr: SocketAddr, buffer_bytes: usize) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        // Refused where the system has no such sockets; it then serves IPv6 only.
        if let Err(error) = socket.set_only_v6(false) {
            tracing::debug!(%error, "the socket takes IPv6 only");
        }
    }
    socket.bind(&addr.into())?;
    socket.set_recv_buffer_size(buffer_bytes)?;
    socket.set_send_buffer_size(buffer_bytes)?;
    let granted = socket.recv_buffer_size()?.min(socket.send_buffer_size()?);
    if granted < buffer_bytes {
        tracing::warn!(
            granted,
            wanted = buffer_bytes,
            "the kernel grants small socket buffers; raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x11_a_node_resets_no_connection_of_another_port_and_those_of_its_former_self() {
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &[7; 32]);
        let token = |port| {
            ring::hmac::sign(&reset_key(&secret, port), b"a connection id")
                .as_ref()
                .to_vec()
        };
        assert_eq!(token(9443), token(9443));
        assert_ne!(token(9443), token(9444));
    }
}
