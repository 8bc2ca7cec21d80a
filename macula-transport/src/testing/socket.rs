//! The socket that quinn is given in place of the system's.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{
    sync::mpsc,
    time::{Sleep, sleep_until},
};

use super::{
    Network,
    network::{Arrivals, RecvFrom},
};

/// Datagrams sent in one go, as Linux takes them.
const MAX_SEGMENTS: usize = 10;

/// A UDP socket of a [`Network`].
#[derive(Debug)]
pub(crate) struct MemorySocket {
    network: Network,
    /// The address it was bound to.
    addr: SocketAddr,
    /// Which of the sockets that were ever bound it is.
    number: u64,
    /// Is told of addresses that are unreachable.
    hints: Option<mpsc::Sender<SocketAddr>>,
    /// Runs until the next datagram arrives.
    timer: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl MemorySocket {
    pub(crate) fn bind(
        network: Network,
        asked: Option<SocketAddr>,
        hints: Option<mpsc::Sender<SocketAddr>>,
    ) -> io::Result<Self> {
        let (addr, number) = network.bind(asked)?;
        Ok(Self {
            network,
            addr,
            number,
            hints,
            timer: Mutex::new(None),
        })
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        self.network.unbind(self.number);
    }
}

impl AsyncUdpSocket for MemorySocket {
    fn create_io_poller(self: std::sync::Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut state = self.network.lock();
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(size) {
            state.send(self.number, transmit.destination, transmit.ecn, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let room = bufs.len().min(meta.len());
        loop {
            let mut state = self.network.lock();
            let take = |n: usize, arrived: &RecvFrom<'_>| {
                // As the system does, the part that does not fit is cut off.
                let len = arrived.body.len().min(bufs[n].len());
                bufs[n][..len].copy_from_slice(&arrived.body[..len]);
                meta[n] = RecvMeta {
                    addr: arrived.from,
                    len,
                    stride: len,
                    ecn: arrived.ecn,
                    dst_ip: Some(arrived.to.ip()),
                };
            };
            let unreachable = |addr| {
                if let Some(hints) = &self.hints {
                    // As the system's error queue, it takes no more than it has room for.
                    let _ = hints.try_send(addr);
                }
            };
            let arrivals = state.receive(self.number, room, cx.waker(), take, unreachable);
            drop(state);
            let next = match arrivals {
                Arrivals::Taken(count) => return Poll::Ready(Ok(count)),
                Arrivals::Nothing => return Poll::Pending,
                Arrivals::Next(at) => at,
            };
            let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            ready!(Future::poll(timer.as_mut(), cx));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.network.place(self.number).unwrap_or(self.addr))
    }

    fn max_transmit_segments(&self) -> usize {
        MAX_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
