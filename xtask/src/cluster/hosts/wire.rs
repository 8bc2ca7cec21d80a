//! A link whose packets pass through this process, which loses, delays, duplicates and reorders them by a seed.
//!
//! A link is two TAP devices, one at each end. A thread for each direction reads frames from one and writes them to the other when
//! they are due. The kernel's own emulator (`tc netem`) would do the same, and is not in every kernel.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::host::Counter;
use crate::cluster::scenario::{Draws, Wire};

/// The largest frame: an Ethernet header and a packet of a link with the usual MTU, and room for a tag.
const MAX_FRAME: usize = 2_048;
/// Frames that wait in one direction. A link has a queue, and drops what does not fit.
const MAX_WAITING: usize = 4_096;
/// How often a thread looks whether the link still stands.
const LOOKS_EVERY: Duration = Duration::from_millis(100);

/// What a link has done to frames, in both directions together.
#[derive(Debug, Default)]
struct Done {
    lost: AtomicU64,
    doubled: AtomicU64,
    overtaken: AtomicU64,
}

/// A link between two TAP devices. Dropping it ends its threads and removes the devices.
#[derive(Debug)]
pub(super) struct Cable {
    wire: Arc<Mutex<Option<Wire>>>,
    done: Arc<Done>,
    unplugged: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Cable {
    /// Makes both devices in this process's network namespace. They pass every frame on until [`Cable::set`] says otherwise.
    pub(super) fn new(names: [&str; 2], seed: u64) -> Result<Self> {
        let [near, far] = names.map(|name| {
            let device = DeviceBuilder::new()
                .name(name)
                .layer(Layer::L2)
                .enable(false)
                .build_sync();
            device.with_context(|| format!("cannot make the TAP device {name}"))
        });
        let (near, far) = (Arc::new(near?), Arc::new(far?));
        let wire = Arc::new(Mutex::new(None));
        let done = Arc::new(Done::default());
        let unplugged = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to, draws) in [(&near, &far, Draws(seed)), (&far, &near, Draws(!seed))] {
            from.set_nonblocking(true).context("a TAP device cannot be polled")?;
            let mut direction = Direction {
                from: Arc::clone(from),
                to: Arc::clone(to),
                wire: Arc::clone(&wire),
                done: Arc::clone(&done),
                unplugged: Arc::clone(&unplugged),
                draws,
                waiting: BinaryHeap::new(),
                frames: 0,
            };
            threads.push(thread::spawn(move || direction.carry()));
        }
        Ok(Self {
            wire,
            done,
            unplugged,
            threads,
        })
    }

    /// What the link has done to frames so far.
    pub(super) fn counters(&self) -> Vec<Counter> {
        let Done {
            lost,
            doubled,
            overtaken,
        } = &*self.done;
        let counted = [("packets lost", lost), ("doubled", doubled), ("overtaken", overtaken)];
        counted
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
            .into()
    }

    /// What the link does to frames from now on.
    pub(super) fn set(&self, wire: Wire) {
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = Some(wire);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.unplugged.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A frame that waits: when it is due, its number, its bytes.
type Waiting = Reverse<(Instant, u64, Vec<u8>)>;

/// One direction of a link.
struct Direction {
    from: Arc<SyncDevice>,
    to: Arc<SyncDevice>,
    wire: Arc<Mutex<Option<Wire>>>,
    done: Arc<Done>,
    unplugged: Arc<AtomicBool>,
    draws: Draws,
    waiting: BinaryHeap<Waiting>,
    /// Frames so far. Frames that are due at the same time leave in this order.
    frames: u64,
}

impl Direction {
    /// Carries frames until the link is unplugged or a device is gone.
    fn carry(&mut self) {
        let mut buffer = [0; MAX_FRAME];
        while !self.unplugged.load(Ordering::Relaxed) {
            let next = self.waiting.peek().map(|Reverse((due, ..))| *due);
            let wait = next.map_or(LOOKS_EVERY, |due| {
                due.saturating_duration_since(Instant::now()).min(LOOKS_EVERY)
            });
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: wait.subsec_nanos().into(),
            };
            let mut fds = [PollFd::from_borrowed_fd(self.from.as_fd(), PollFlags::IN)];
            if poll(&mut fds, Some(&timeout)).is_err_and(|error| error != rustix::io::Errno::INTR) {
                return;
            }
            loop {
                match self.from.recv(&mut buffer) {
                    Ok(len) => self.accept(&buffer[..len]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // A device that is down gives an error now and then; one whose namespace is gone gives nothing else.
                    Err(_) => {
                        thread::sleep(Duration::from_millis(1));
                        break;
                    }
                }
            }
            self.send_due();
        }
    }

    /// Decides what becomes of a frame.
    fn accept(&mut self, frame: &[u8]) {
        let wire = *self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let Some(wire) = wire else {
            self.wait(now, frame);
            return;
        };
        if self.happens(wire.loss) {
            self.done.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let delay = Duration::from_millis(wire.delay_ms.into());
        let late = if self.happens(wire.reordered) {
            self.done.overtaken.fetch_add(1, Ordering::Relaxed);
            delay
        } else {
            Duration::ZERO
        };
        self.wait(now + delay + late, frame);
        if self.happens(wire.duplicated) {
            self.done.doubled.fetch_add(1, Ordering::Relaxed);
            self.wait(now + delay, frame);
        }
    }

    fn happens(&mut self, percent: u8) -> bool {
        self.draws.below(100) < u64::from(percent)
    }

    fn wait(&mut self, due: Instant, frame: &[u8]) {
        if self.waiting.len() < MAX_WAITING {
            self.frames += 1;
            self.waiting.push(Reverse((due, self.frames, frame.to_vec())));
        }
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let Some(Reverse((_, _, frame))) = self.waiting.pop() {
                // A device that is down takes no frame, and a cable that is cut loses them.
                let _ = self.to.send(&frame);
            }
        }
    }
}
