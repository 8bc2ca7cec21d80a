//! What a connection's congestion controller sees of the peer's acknowledgements: since when some are due, and how much the round
//! trip varies.
//!
//! quinn keeps the variance of the round trip to itself, but shows its controller the smoothed round trip. RFC 9002 (section 5.3)
//! says how a sample changes that, so each sample can be computed back from the change it made.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How long a peer may hold back an acknowledgement: QUIC's default (RFC 9000, section 18.2), which every node keeps.
pub(crate) const MAX_ACK_DELAY: Duration = Duration::from_millis(25);
/// The least that the variance adds to a probe timeout (RFC 9002, section 6.1.2).
const GRANULARITY: Duration = Duration::from_millis(1);

/// The probe timeout of a path (RFC 9002, section 6.2.1).
pub(crate) fn pto(smoothed: Duration, variance: Duration) -> Duration {
    prompt_pto(smoothed, variance) + MAX_ACK_DELAY
}

/// The same for packets whose acknowledgement the peer may not delay.
fn prompt_pto(smoothed: Duration, variance: Duration) -> Duration {
    smoothed + (4 * variance).max(GRANULARITY)
}

/// Shared between a connection's controller, which writes, and its watch, which reads.
#[derive(Debug)]
pub(crate) struct Pulse {
    epoch: Instant,
    /// Since when acknowledgements are due, as [`Pulse::stamp`] has it; 0 when none are.
    unanswered: AtomicU64,
    /// Nanoseconds.
    variance: AtomicU64,
}

impl Pulse {
    /// Of a connection that has assumed `initial_rtt` so far.
    pub(crate) fn new(epoch: Instant, initial_rtt: Duration) -> Self {
        Self {
            epoch,
            unanswered: AtomicU64::new(0),
            variance: AtomicU64::new(nanos(initial_rtt / 2)),
        }
    }

    /// A packet was sent. quinn does not say whether it asks for an acknowledgement.
    pub(crate) fn sent(&self, now: Instant) {
        if self.unanswered.load(Relaxed) == 0 {
            self.unanswered.store(self.stamp(now, false), Relaxed);
        }
    }

    /// Acknowledgements came, and leave `in_flight` bytes without one.
    pub(crate) fn acknowledged(&self, now: Instant, in_flight: u64) {
        let stamp = if in_flight == 0 { 0 } else { self.stamp(now, true) };
        self.unanswered.store(stamp, Relaxed);
    }

    pub(crate) fn varies(&self, variance: Duration) {
        self.variance.store(nanos(variance), Relaxed);
    }

    /// What the peer has not acknowledged.
    pub(crate) fn unanswered(&self) -> Option<Unacknowledged> {
        match self.unanswered.load(Relaxed) {
            0 => None,
            stamp => Some(Unacknowledged {
                since: self.epoch + Duration::from_nanos(stamp >> 1),
                certain: stamp & 1 == 1,
            }),
        }
    }

    /// The probe timeout with this smoothed round trip.
    pub(crate) fn pto(&self, smoothed: Duration) -> Duration {
        pto(smoothed, self.variance())
    }

    /// The same for packets whose acknowledgement the peer may not delay.
    pub(crate) fn prompt_pto(&self, smoothed: Duration) -> Duration {
        prompt_pto(smoothed, self.variance())
    }

    fn variance(&self) -> Duration {
        Duration::from_nanos(self.variance.load(Relaxed))
    }

    /// Nanoseconds since the epoch, at least one, and a bit for certainty.
    fn stamp(&self, now: Instant, certain: bool) -> u64 {
        let nanos = nanos(now.saturating_duration_since(self.epoch)).clamp(1, u64::MAX >> 1);
        nanos << 1 | u64::from(certain)
    }
}

/// Packets that the peer has not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unacknowledged {
    pub(crate) since: Instant,
    /// They ask for an acknowledgement; else they may be acknowledgements themselves.
    pub(crate) certain: bool,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The variance of the round trip, computed from its smoothed values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variance {
    smoothed: Duration,
    /// `None` until there is a sample.
    variance: Option<Duration>,
}

impl Variance {
    pub(crate) fn new(initial_rtt: Duration) -> Self {
        Self {
            smoothed: initial_rtt,
            variance: None,
        }
    }

    /// Takes the smoothed round trip after a sample; the variance, once there is one.
    pub(crate) fn update(&mut self, smoothed: Duration) -> Option<Duration> {
        if self.variance.is_none() && smoothed == self.smoothed {
            return None;
        }
        let before = std::mem::replace(&mut self.smoothed, smoothed);
        let variance = match self.variance {
            // The first sample is the smoothed round trip itself.
            None => smoothed / 2,
            Some(variance) => {
                let sample = (8 * smoothed).saturating_sub(7 * before);
                (3 * variance + before.abs_diff(sample)) / 4
            }
        };
        self.variance = Some(variance);
        Some(variance)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INITIAL: Duration = Duration::from_millis(100);

    #[test]
    fn l1_acknowledgements_are_due_from_the_first_packet_that_has_none() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let pulse = Pulse::new(start, INITIAL);
        let since = |millis, certain| {
            Some(Unacknowledged {
                since: at(millis),
                certain,
            })
        };
        assert_eq!(pulse.unanswered(), None);
        pulse.sent(at(1));
        pulse.sent(at(5));
        assert_eq!(pulse.unanswered(), since(1, false));
        pulse.acknowledged(at(7), 1200);
        assert_eq!(pulse.unanswered(), since(7, true), "it was heard then, and owes more");
        pulse.acknowledged(at(8), 0);
        assert_eq!(pulse.unanswered(), None);
        pulse.sent(at(9));
        assert_eq!(pulse.unanswered(), since(9, false));
    }

    #[test]
    fn l1_a_probe_timeout_on_a_quiet_lan_is_mostly_the_acknowledgements_delay() {
        let millis = Duration::from_millis;
        assert_eq!(pto(millis(1), Duration::ZERO), millis(27));
        assert_eq!(pto(millis(30), millis(3)), millis(67));
    }

    proptest! {
        /// RFC 9002, section 5.3, with the samples at hand.
        #[test]
        fn l1_the_variance_is_the_one_of_the_samples(samples in prop::collection::vec(1_000_u64..99_000_000, 1..50)) {
            let mut variance = Variance::new(INITIAL);
            prop_assert_eq!(variance.update(INITIAL), None);
            let (mut smoothed, mut expected) = (None, Duration::ZERO);
            for sample in samples.into_iter().map(Duration::from_nanos) {
                match smoothed {
                    None => (smoothed, expected) = (Some(sample), sample / 2),
                    Some(before) => {
                        expected = (3 * expected + before.abs_diff(sample)) / 4;
                        smoothed = Some((7 * before + sample) / 8);
                    }
                }
                let computed = variance.update(smoothed.unwrap()).unwrap();
                prop_assert!(computed.abs_diff(expected) < Duration::from_nanos(50), "{computed:?} {expected:?}");
            }
        }
    }
}
