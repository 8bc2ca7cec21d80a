//! The signature checks that calls of peers cause: so many a second in the whole endpoint, shared as [`Shares`] says.
//!
//! A call that a router passes on brings its caller's passage, which anyone can make up. Checking it costs far more than sending it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use macula_wire::{Admission, Holder, NodeId, Shares};

/// How many passages are checked in a second. Each costs up to three signatures, so all of them take a small part of one core.
const CHECKS_A_SECOND: u64 = 1024;

/// The checks of the current second.
#[derive(Debug)]
pub(crate) struct Checks(Mutex<Second>);

#[derive(Debug)]
struct Second {
    began: Instant,
    made: Shares<NodeId>,
    turn: u64,
}

impl Checks {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Second {
            began: now,
            made: Shares::new(CHECKS_A_SECOND),
            turn: 0,
        }))
    }

    /// Whether a check may be made for this peer now. When all of the second's checks are made, a peer that had few gets one more in
    /// place of one of the peer that had most.
    pub(crate) fn take(&self, now: Instant, peer: &Holder<NodeId>) -> bool {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(second.began) >= Duration::from_secs(1) {
            second.began = now;
            second.made = Shares::new(CHECKS_A_SECOND);
        }
        second.turn += 1;
        let turn = second.turn;
        loop {
            match second.made.admit(peer, 1, turn) {
                Admission::Granted => return true,
                Admission::Evict(largest) => second.made.release(&largest, 1),
                Admission::Refused => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use macula_wire::Network;

    use super::*;

    fn peer(network: u8, peer: u8) -> Holder<NodeId> {
        Holder::new(Network::V4([10, 0, network]), NodeId::from_bytes([peer; 32]))
    }

    #[test]
    fn a8_one_network_cannot_use_up_the_checks_of_a_second() {
        let now = Instant::now();
        let checks = Checks::new(now);
        let made = (0..4 * CHECKS_A_SECOND).filter(|n| checks.take(now, &peer(1, (n % 8) as u8)));
        assert_eq!(made.count() as u64, CHECKS_A_SECOND);
        let honest = (0..CHECKS_A_SECOND).filter(|_| checks.take(now, &peer(2, 9)));
        assert_eq!(honest.count() as u64, CHECKS_A_SECOND / 2);
        assert!(!checks.take(now, &peer(1, 1)), "it has had more than its share");
        assert!(checks.take(now + Duration::from_secs(1), &peer(1, 1)), "a new second");
    }
}
