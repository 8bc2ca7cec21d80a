//! A UDP proxy between a client and a node that treats datagrams badly: loss, delay, reordering, duplication, corruption, cuts.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use tokio::{net::UdpSocket, task::JoinHandle};

/// What befalls a datagram; probabilities are of 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) corrupt: f64,
    /// Each way.
    pub(crate) delay: Duration,
    /// At most so much more, for each datagram by itself: this reorders.
    pub(crate) jitter: Duration,
    /// Nothing passes.
    pub(crate) cut: bool,
}

/// A proxy to one node. Ends when dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    faults: Arc<Mutex<Faults>>,
    task: JoinHandle<()>,
}

/// SplitMix64: the same seed, the same fate of the n-th datagram.
pub(crate) struct Random(SplitMix64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64::seed_from_u64(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Proxy {
    pub(crate) async fn new(to: SocketAddr, seed: u64) -> Self {
        let front = Arc::new(UdpSocket::bind(super::loopback()).await.unwrap());
        let back = Arc::new(UdpSocket::bind(super::loopback()).await.unwrap());
        let address = front.local_addr().unwrap();
        let faults = Arc::new(Mutex::new(Faults::default()));
        let task = tokio::spawn(carry(front, back, to, faults.clone(), Random::new(seed)));
        Self { address, faults, task }
    }

    pub(crate) fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    front: Arc<UdpSocket>,
    back: Arc<UdpSocket>,
    to: SocketAddr,
    faults: Arc<Mutex<Faults>>,
    mut random: Random,
) {
    let (mut there, mut here) = ([0; 65_536], [0; 65_536]);
    let mut client = None;
    loop {
        tokio::select! {
            received = front.recv_from(&mut there) => {
                let Ok((length, from)) = received else { continue };
                client = Some(from);
                pass(&there[..length], &back, to, *faults.lock().unwrap(), &mut random);
            }
            received = back.recv_from(&mut here) => {
                let (Ok((length, _)), Some(client)) = (received, client) else { continue };
                pass(&here[..length], &front, client, *faults.lock().unwrap(), &mut random);
            }
        }
    }
}

fn pass(datagram: &[u8], socket: &Arc<UdpSocket>, to: SocketAddr, faults: Faults, random: &mut Random) {
    if faults.cut || random.unit() < faults.loss {
        return;
    }
    let mut datagram = datagram.to_vec();
    if random.unit() < faults.corrupt {
        let at = random.next() as usize % datagram.len().max(1);
        datagram[at] ^= 1 << (random.next() % 8);
    }
    let copies = if random.unit() < faults.duplicate { 2 } else { 1 };
    for _ in 0..copies {
        let delay = faults.delay + faults.jitter.mul_f64(random.unit());
        if delay.is_zero() {
            // A full buffer loses it, as networks do.
            let _ = socket.try_send_to(&datagram, to);
        } else {
            let (socket, datagram) = (socket.clone(), datagram.clone());
            let at = tokio::time::Instant::now() + delay;
            tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                let _ = socket.try_send_to(&datagram, to);
            });
        }
    }
}
