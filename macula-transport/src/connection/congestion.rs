//! Drives [`Flight`]: a congestion controller that is quinn's Cubic and keeps count beside it, and the wait for room.

use std::{
    any::Any,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;
use tokio::{
    sync::{Notify, futures::Notified},
    time::timeout,
};

use super::{
    flight::Flight,
    pulse::{Pulse, Variance},
};
use crate::endpoint::quic::INITIAL_RTT;

/// Small calls go beside bulk when there was one within this time.
const LATELY: Duration = Duration::from_millis(10);
/// The longest that one piece of bulk waits for room, in case the count is wrong.
const MAX_WAIT: Duration = Duration::from_millis(10);

/// What a new connection may have under way, in bytes: five datagrams of the largest size. RFC 9002 allows two where datagrams are
/// large. Probes for the path's datagram size fill such a window, and then the frame that closes a connection, with its reason, is never
/// sent.
const INITIAL_WINDOW: u64 = 5 * crate::endpoint::quic::MAX_DATAGRAM_BYTES as u64;

/// What a connection has under way, shared between its congestion controller and the tasks that write to it.
#[derive(Debug)]
pub(crate) struct Bulk {
    flight: Mutex<Flight>,
    pulse: Pulse,
    /// Woken when bytes were acknowledged.
    acked: Notify,
    epoch: Instant,
    /// When small calls were last under way, in microseconds since the epoch and one; 0 when never.
    small_calls_at: AtomicU64,
}

impl Bulk {
    fn new(epoch: Instant) -> Self {
        Self {
            flight: Mutex::default(),
            pulse: Pulse::new(epoch, INITIAL_RTT),
            acked: Notify::new(),
            epoch,
            small_calls_at: AtomicU64::new(0),
        }
    }

    /// What this connection's controller counts.
    pub(crate) fn of(quic: &quinn::Connection) -> Arc<Self> {
        match quic.congestion_state().into_any().downcast::<Counting>() {
            Ok(counting) => counting.shared,
            // Every connection of this crate has the controller below; another one is not bounded.
            Err(_) => Arc::new(Self::new(Instant::now())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    /// What is known of the peer's acknowledgements.
    pub(crate) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Ends with the next acknowledgement after this call.
    pub(crate) fn acknowledged(&self) -> Notified<'_> {
        self.acked.notified()
    }

    /// Small calls are under way.
    pub(crate) fn saw_small_calls(&self, now: Instant) {
        self.small_calls_at
            .fetch_max(self.micros(now).saturating_add(1), Relaxed);
    }

    /// Whether small calls are under way.
    pub(crate) fn has_small_calls(&self) -> bool {
        match self.small_calls_at.load(Relaxed) {
            0 => false,
            at => self.micros(tokio::time::Instant::now().into_std()) < at + LATELY.as_micros() as u64,
        }
    }

    /// Waits until so much bulk may be written, and counts it as written.
    pub(crate) async fn make_room(&self, bytes: u64) {
        loop {
            let acked = self.acked.notified();
            {
                let mut flight = self.lock();
                if flight.has_room(bytes) || !self.has_small_calls() {
                    flight.wrote(bytes);
                    return;
                }
            }
            if timeout(MAX_WAIT, acked).await.is_err() {
                self.lock().wrote(bytes);
                return;
            }
        }
    }
}

/// Makes a controller for each connection.
#[derive(Debug)]
pub(crate) struct Factory {
    cubic: Arc<CubicConfig>,
}

impl Default for Factory {
    fn default() -> Self {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW);
        Self { cubic: Arc::new(cubic) }
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Counting {
            inner: self.cubic.clone().build(now, current_mtu),
            shared: Arc::new(Bulk::new(now)),
            variance: Variance::new(INITIAL_RTT),
            sampled: false,
        })
    }
}

/// Cubic (RFC 9438), counted.
struct Counting {
    inner: Box<dyn Controller>,
    shared: Arc<Bulk>,
    variance: Variance,
    /// There was a sample of the round trip since the variance was computed.
    sampled: bool,
}

impl Controller for Counting {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.shared.pulse.sent(now);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.shared.lock().acked(bytes, rtt.min());
        // Each batch of acknowledgements but the first shows the sample of the one before it.
        if std::mem::take(&mut self.sampled)
            && let Some(variance) = self.variance.update(rtt.get())
        {
            self.shared.pulse.varies(variance);
        }
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        if app_limited {
            self.shared.lock().all_sent(in_flight);
        }
        self.sampled = true;
        self.shared.pulse.acknowledged(now, in_flight);
        self.shared.acked.notify_waiters();
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            shared: self.shared.clone(),
            variance: self.variance,
            sampled: self.sampled,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const PIECE: u64 = 16 * 1024;

    /// Fills the room there is for bulk.
    fn fill(shared: &Bulk) {
        while shared.lock().has_room(PIECE) {
            shared.lock().wrote(PIECE);
        }
    }

    #[tokio::test]
    async fn bulk_alone_does_not_wait() {
        let shared = Bulk::new(Instant::now());
        fill(&shared);
        assert!(shared.make_room(PIECE).now_or_never().is_some());
    }

    #[tokio::test]
    async fn p5_bulk_beside_small_calls_waits_for_acknowledgements() {
        let shared = Bulk::new(Instant::now());
        shared.saw_small_calls(Instant::now() + HOUR);
        fill(&shared);
        let mut waiting = std::pin::pin!(shared.make_room(PIECE));
        assert!(waiting.as_mut().now_or_never().is_none());
        shared.lock().acked(PIECE, Duration::ZERO);
        shared.acked.notify_waiters();
        assert!(waiting.now_or_never().is_some());
        assert!(!shared.lock().has_room(PIECE), "what was let through is counted");
    }

    #[tokio::test]
    async fn bulk_that_hears_of_no_acknowledgement_goes_on_all_the_same() {
        let shared = Bulk::new(Instant::now());
        shared.saw_small_calls(Instant::now() + HOUR);
        fill(&shared);
        shared.make_room(PIECE).await;
    }

    #[test]
    fn small_calls_count_for_a_while() {
        let now = Instant::now() - HOUR;
        let shared = Bulk::new(now);
        assert!(!shared.has_small_calls());
        shared.saw_small_calls(now);
        assert!(!shared.has_small_calls(), "that was an hour ago");
        shared.saw_small_calls(now + 2 * HOUR);
        assert!(shared.has_small_calls());
    }

    /// A peer that is turned away at once is told why: a probe of the path's size leaves room for the close.
    #[test]
    fn a_new_connection_has_room_beside_the_probe_of_the_largest_datagram() {
        let mut controller = Arc::new(Factory::default()).build(Instant::now(), 1_200);
        controller.on_mtu_update(crate::endpoint::quic::MAX_DATAGRAM_BYTES);
        let datagram = u64::from(crate::endpoint::quic::MAX_DATAGRAM_BYTES);
        assert!(controller.window() > 2 * datagram, "{}", controller.window());
    }
}
