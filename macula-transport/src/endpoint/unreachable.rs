//! A UDP socket that also hears ICMP: which of its datagrams did not reach a process (L4).
//!
//! Linux keeps the reports of routers and hosts about a socket's datagrams in an error queue, when asked to (`IP_RECVERR`, ip(7)). A report
//! is a hint and no proof: a sender that knows the two ports can forge one.
//!
//! **What the error queue costs.** It shares the receive buffer, so a task empties it as soon as something is in it. A report makes
//! the next `sendmsg` fail, which then has sent nothing: the queue is emptied and the datagram is sent again. And tokio takes the
//! error for the lasting end of the socket's writing half. So from the first report on, a timer waits for a full send buffer.

use std::{
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::AsRawFd as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::{
    cmsg_space, libc,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use tokio::{io::Interest, net::UdpSocket, sync::mpsc, task::AbortHandle};

/// Reports that are read at a time.
const MAX_REPORTS: usize = 64;
/// How often a datagram is sent again because an earlier one was reported.
const MAX_RESENDS: usize = 2;
/// How long a full send buffer is left to drain where the system does not report when it has room.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// Asks the system for reports of a socket's datagrams.
///
/// # Errors
/// When the system has none.
pub(crate) fn ask_for_reports(socket: &std::net::UdpSocket) -> io::Result<()> {
    setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    if socket.local_addr()?.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(())
}

/// A socket whose reports were [asked for](ask_for_reports). It tells `hints` of the addresses that are reported as unreachable.
///
/// # Errors
/// When the socket cannot be used.
pub(crate) fn wrap(socket: std::net::UdpSocket, hints: mpsc::Sender<SocketAddr>) -> io::Result<Arc<Hearing>> {
    let shared = Arc::new(SharedSocket {
        state: UdpSocketState::new((&socket).into())?,
        io: UdpSocket::from_std(socket)?,
        hints,
        full: AtomicBool::new(false),
        reported: AtomicBool::new(false),
    });
    let reader = tokio::spawn(shared.clone().read_reports()).abort_handle();
    Ok(Arc::new(Hearing { shared, reader }))
}

/// The socket as quinn holds it.
#[derive(Debug)]
pub(crate) struct Hearing {
    shared: Arc<SharedSocket>,
    reader: AbortHandle,
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Debug)]
struct SharedSocket {
    io: UdpSocket,
    state: UdpSocketState,
    hints: mpsc::Sender<SocketAddr>,
    /// A datagram found no room in the send buffer.
    full: AtomicBool,
    /// There was a report: tokio takes the socket for writable from now on.
    reported: AtomicBool,
}

impl SharedSocket {
    async fn read_reports(self: Arc<Self>) {
        while self.io.ready(Interest::ERROR).await.is_ok() {
            // Fails when the queue is empty, which tokio has to know.
            let emptied = self.io.try_io(Interest::ERROR, || -> io::Result<()> {
                while self.take_reports() > 0 {}
                Err(io::ErrorKind::WouldBlock.into())
            });
            drop(emptied);
            tokio::task::yield_now().await;
        }
    }

    /// Takes reports out of the queue; how many.
    fn take_reports(&self) -> usize {
        self.reported.store(true, Relaxed);
        // IPv6's comes after the other facts that the socket asks the system for.
        let mut space = cmsg_space!(
            libc::sock_extended_err,
            libc::sockaddr_in6,
            libc::in6_pktinfo,
            libc::in_pktinfo,
            [libc::c_int; 4]
        );
        let mut taken = 0;
        while taken < MAX_REPORTS {
            match take_report(&self.io, &mut space) {
                Ok(Some(addr)) => {
                    // A dropped report does no harm when there are many: one makes this side ask the peer.
                    let _ = self.hints.try_send(addr);
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "an ICMP report cannot be read");
                    break;
                }
            }
            taken += 1;
        }
        taken
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut resends = 0;
        loop {
            let sent = self
                .io
                .try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), transmit));
            match sent {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full.store(true, Relaxed);
                    return Err(error);
                }
                Err(_) if resends < MAX_RESENDS && self.take_reports() > 0 => resends += 1,
                // A probe of the path's size, as expected.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(()),
                Err(error) => {
                    // As if it were lost on its way: QUIC sends it again.
                    tracing::debug!(to = %transmit.destination, %error, "a datagram cannot be sent");
                    return Ok(());
                }
            }
        }
    }

    /// Waits until a full send buffer may have room.
    async fn room(self: Arc<Self>) -> io::Result<()> {
        if self.reported.load(Relaxed) {
            tokio::time::sleep(FULL_PAUSE).await;
            return Ok(());
        }
        self.io.writable().await
    }
}

/// Takes one report out of the queue: the address it speaks of, when it says that nothing is reached there.
fn take_report(io: &UdpSocket, space: &mut [u8]) -> io::Result<Option<SocketAddr>> {
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let report = recvmsg::<SockaddrStorage>(io.as_raw_fd(), &mut [], Some(space), flags)?;
    let unreachable = report.cmsgs()?.any(|part| match part {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            is_unreachable(error.ee_origin, error.ee_type, error.ee_code)
        }
        _ => false,
    });
    let addr = report.address.as_ref().and_then(|addr| {
        addr.as_sockaddr_in()
            .map(|addr| SocketAddr::from((addr.ip(), addr.port())))
            .or_else(|| {
                let addr = addr.as_sockaddr_in6()?;
                Some(SocketAddr::from((addr.ip().to_canonical(), addr.port())))
            })
    });
    Ok(addr.filter(|_| unreachable))
}

/// Whether an ICMP message (RFC 792, RFC 4443) says that a datagram reached nothing. "Too large" does not.
fn is_unreachable(origin: u8, kind: u8, code: u8) -> bool {
    const TOO_LARGE: u8 = 4;
    match origin {
        libc::SO_EE_ORIGIN_ICMP => kind == 3 && code != TOO_LARGE,
        libc::SO_EE_ORIGIN_ICMP6 => kind == 1,
        _ => false,
    }
}

impl AsyncUdpSocket for Hearing {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            shared: self.shared.clone(),
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.shared.send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let SharedSocket { io, state, .. } = &*self.shared;
        loop {
            ready!(io.poll_recv_ready(cx))?;
            // A report makes this fail once, too.
            if let Ok(count) = io.try_io(Interest::READABLE, || state.recv(io.into(), bufs, meta)) {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.shared.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.shared.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.shared.state.may_fragment()
    }
}

/// Waits for room in the send buffer, for one connection.
struct Poller {
    shared: Arc<SharedSocket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("waiting", &self.waiting.is_some())
            .finish_non_exhaustive()
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.waiting.is_none() && !this.shared.full.swap(false, Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let waiting = this.waiting.get_or_insert_with(|| Box::pin(this.shared.clone().room()));
        let room = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        Poll::Ready(room)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr},
        task::Waker,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn transmit(to: SocketAddr) -> Transmit<'static> {
        Transmit {
            destination: to,
            ecn: None,
            contents: b"hello",
            segment_size: None,
            src_ip: None,
        }
    }

    /// An address where nothing listens any more.
    fn gone(ip: Ipv4Addr) -> SocketAddr {
        std::net::UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap()
    }

    /// Sends as a connection does.
    async fn send(socket: &Arc<Hearing>, to: SocketAddr) {
        let mut poller = socket.clone().create_io_poller();
        while socket.try_send(&transmit(to)).is_err() {
            std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx))
                .await
                .unwrap();
        }
    }

    fn hearing(socket: std::net::UdpSocket) -> (Arc<Hearing>, mpsc::Receiver<SocketAddr>) {
        let (sender, hints) = mpsc::channel(16);
        ask_for_reports(&socket).unwrap();
        (wrap(socket, sender).unwrap(), hints)
    }

    #[tokio::test]
    async fn l4_a_port_where_nothing_listens_is_reported_and_the_next_datagram_arrives() {
        let loopback = Ipv4Addr::LOCALHOST;
        let sockets = [
            std::net::UdpSocket::bind((loopback, 0)).unwrap(),
            // One that takes IPv6 and IPv4, as nodes use by default.
            std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap(),
        ];
        for socket in sockets {
            let mapped = socket.local_addr().unwrap().is_ipv6();
            let as_seen = |addr: SocketAddr| match addr {
                SocketAddr::V4(v4) if mapped => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
                addr => addr,
            };
            let (socket, mut hints) = hearing(socket);
            let there = std::net::UdpSocket::bind((loopback, 0)).unwrap();
            there.set_read_timeout(Some(PATIENCE)).unwrap();
            for _ in 0..10 {
                let gone = gone(loopback);
                send(&socket, as_seen(gone)).await;
                // Whether or not the report has come, this one is not lost.
                send(&socket, as_seen(there.local_addr().unwrap())).await;
                assert_eq!(there.recv(&mut [0; 16]).unwrap(), 5);
                assert_eq!(tokio::time::timeout(PATIENCE, hints.recv()).await.unwrap(), Some(gone));
            }
        }
    }

    #[tokio::test]
    async fn l4_a_socket_that_was_reported_to_still_waits_for_room() {
        let (socket, mut hints) = hearing(std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        send(&socket, gone(Ipv4Addr::LOCALHOST)).await;
        hints.recv().await.unwrap();
        let mut poller = socket.clone().create_io_poller();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(poller.as_mut().poll_writable(&mut cx).is_ready());
        tokio::time::pause();
        socket.shared.full.store(true, Relaxed);
        assert!(poller.as_mut().poll_writable(&mut cx).is_pending());
        let room = std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx));
        tokio::time::timeout(2 * FULL_PAUSE, room).await.unwrap().unwrap();
        assert!(poller.as_mut().poll_writable(&mut cx).is_ready());
    }

    #[test]
    fn l4_only_what_is_unreachable_is_a_hint() {
        assert!(is_unreachable(libc::SO_EE_ORIGIN_ICMP, 3, 3));
        assert!(is_unreachable(libc::SO_EE_ORIGIN_ICMP, 3, 1));
        assert!(is_unreachable(libc::SO_EE_ORIGIN_ICMP6, 1, 4));
        assert!(!is_unreachable(libc::SO_EE_ORIGIN_ICMP, 3, 4), "too large");
        assert!(!is_unreachable(libc::SO_EE_ORIGIN_ICMP, 11, 0), "time exceeded");
        assert!(!is_unreachable(libc::SO_EE_ORIGIN_ICMP6, 2, 0), "too large");
        assert!(!is_unreachable(libc::SO_EE_ORIGIN_LOCAL, 3, 3));
    }
}
