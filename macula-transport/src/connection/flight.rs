//! How much bulk a connection may have under way beside small calls (P5).
//!
//! Lanes go first when packets are filled, but a small frame still queues behind bytes sent earlier, in the kernel and at the peer, until
//! the peer has decrypted them. Congestion control does not bound that queue on a short path: it loses nothing, so the window grows.
//! While small calls are under way, bulk is therefore written piece by piece as earlier bytes are acknowledged, up to
//! [`Flight::bulk_limit`]: a short queue beside the bytes that the path itself holds. On paths of many milliseconds the bound is above
//! every window and changes nothing.
//!
//! **Invariants:** a writer that waits for room has it once everything was acknowledged; the count is set right whenever everything
//! that was written has been sent.
//!
//! A core: no clock, no lock.
//!
//! Left out: how much the network takes, which is the congestion controller's to say.

use std::time::Duration;

/// The bulk that may be under way beside small calls on a path that holds none, in bytes. Over loopback, half as much gives a third less
/// throughput beside small calls, and half as much again a third more wait for these.
const MIN_BULK_BYTES: u64 = 48 * 1024;
/// The fastest path that bulk beside small calls can fill, in bytes for each second.
const PATH_BYTES_PER_SECOND: u64 = 250_000_000;

/// What a connection has under way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flight {
    /// Bulk that was written and not yet acknowledged, in bytes. Other bytes are acknowledged too, so this is a lower bound.
    bulk: u64,
    min_rtt: Option<Duration>,
}

impl Flight {
    /// The bulk that may be under way beside small calls, in bytes.
    pub(crate) fn bulk_limit(&self) -> u64 {
        let nanos = u64::try_from(self.min_rtt.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX);
        MIN_BULK_BYTES.saturating_add(nanos.saturating_mul(PATH_BYTES_PER_SECOND / 1_000_000) / 1000)
    }

    /// Whether `bytes` more of bulk may be written beside small calls. A piece of any size may when there is no other.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.bulk == 0 || self.bulk.saturating_add(bytes) <= self.bulk_limit()
    }

    /// Bulk was written.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.bulk = self.bulk.saturating_add(bytes);
    }

    /// The peer has these bytes.
    pub(crate) fn acked(&mut self, bytes: u64, min_rtt: Duration) {
        self.bulk = self.bulk.saturating_sub(bytes);
        self.min_rtt = Some(min_rtt);
    }

    /// Everything written before was sent, and this much of it is neither acknowledged nor lost.
    pub(crate) fn all_sent(&mut self, in_flight: u64) {
        self.bulk = self.bulk.min(in_flight);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHORT: Duration = Duration::from_micros(40);

    #[test]
    fn p5_bulk_beside_small_calls_is_bounded_by_what_the_path_holds() {
        let mut flight = Flight::default();
        assert!(flight.has_room(4 << 20), "the first piece always goes");
        flight.wrote(32 * 1024);
        assert!(flight.has_room(16 * 1024));
        flight.wrote(16 * 1024);
        assert!(!flight.has_room(1));
        flight.acked(32 * 1024, SHORT);
        assert!(flight.has_room(16 * 1024));
        assert_eq!(flight.bulk_limit(), MIN_BULK_BYTES + 10_000);
        flight.acked(0, Duration::from_millis(80));
        assert!(flight.bulk_limit() > 16 << 20, "a long path is not bounded");
        flight.acked(0, Duration::MAX);
        assert!(flight.bulk_limit() > 16 << 20);
    }

    #[test]
    fn bulk_that_never_left_does_not_count_once_all_was_sent() {
        let mut flight = Flight::default();
        flight.wrote(1 << 20);
        flight.all_sent(1000);
        assert!(flight.has_room(16 * 1024));
        flight.all_sent(1 << 20);
        assert!(flight.has_room(16 * 1024), "what else is under way is no bulk");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64),
        Ack(u64),
        Sent,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..70_000_u64).prop_map(Step::Write),
            (1..70_000_u64).prop_map(Step::Ack),
            Just(Step::Sent),
        ]
    }

    proptest! {
        /// A sender that writes only where there is room, on a path that acknowledges and sends in any order.
        #[test]
        fn p5_a_sender_that_asks_keeps_to_the_limit_and_is_never_stuck(steps in prop::collection::vec(step(), 1..200)) {
            let mut flight = Flight::default();
            let mut outstanding = 0_u64;
            for step in steps {
                match step {
                    Step::Write(bytes) if flight.has_room(bytes) => {
                        prop_assert!(outstanding == 0 || outstanding + bytes <= flight.bulk_limit());
                        flight.wrote(bytes);
                        outstanding += bytes;
                    }
                    Step::Write(_) => prop_assert!(outstanding > 0),
                    Step::Ack(bytes) => {
                        let bytes = bytes.min(outstanding);
                        outstanding -= bytes;
                        flight.acked(bytes, SHORT);
                    }
                    Step::Sent => flight.all_sent(outstanding),
                }
            }
            flight.acked(outstanding, SHORT);
            prop_assert!(flight.has_room(u64::MAX), "a writer that waits for the last acknowledgement goes on");
        }
    }
}
