//! How busy a node says it is: the reports that peers choose by.
//!
//! [`Reporter`] decides when one is sent.
//!
//! A core: no clock, no socket.
//!
//! **Invariants:** the same is not said twice within [`REPEAT`]; a peer that was told that a node is busy is told again while it is,
//! because a report grows old.
//!
//! Left out: the meaning of a load. [`Handler::load`](crate::Handler::load) says it, and the layer that chooses weighs it.

use std::time::{Duration, Instant};

use macula_wire::proto;

/// How often a node looks at its load, and the most often it tells a peer.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How long a report is good for its receiver: a busy node repeats it after this.
const REPEAT: Duration = Duration::from_secs(4);
/// A change of less than this, in percent of the capacity, is not worth telling.
const STEP: u32 = 5;

/// How busy a node is: the calls it runs, and how many it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadReport {
    /// Calls running now.
    pub running: u32,
    /// Calls it can run at a time.
    pub capacity: u32,
}

impl LoadReport {
    /// The part of the capacity in use: 0 is idle, 1 is full. A node without capacity is full.
    #[must_use]
    pub fn share(&self) -> f64 {
        if self.running >= self.capacity {
            1.0
        } else {
            f64::from(self.running) / f64::from(self.capacity)
        }
    }

    /// Counted in whole numbers: a share of 0.57 is a little less than that.
    fn percent(&self) -> u32 {
        let (running, capacity) = (u64::from(self.running), u64::from(self.capacity));
        (running * 100)
            .checked_div(capacity)
            .map_or(100, |percent| percent.min(100) as u32)
    }

    pub(crate) fn to_wire(self) -> proto::Load {
        proto::Load {
            running: self.running,
            capacity: self.capacity,
        }
    }

    pub(crate) fn from_wire(load: proto::Load) -> Self {
        Self {
            running: load.running,
            capacity: load.capacity,
        }
    }
}

/// What one peer was told.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    told: Option<(Instant, u32)>,
}

impl Reporter {
    /// Whether the peer is to be told now; it then counts as told.
    pub(crate) fn is_due(&mut self, now: Instant, load: LoadReport) -> bool {
        let percent = load.percent();
        let due = match self.told {
            // A node that has said nothing counts as idle.
            None => percent >= STEP,
            Some((at, told)) => {
                let ends = percent != told && (percent == 0 || percent == 100);
                ends || percent.abs_diff(told) >= STEP || (percent > 0 && now >= at + REPEAT)
            }
        };
        if due {
            self.told = Some((now, percent));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn percent(percent: u32) -> LoadReport {
        LoadReport {
            running: percent,
            capacity: 100,
        }
    }

    #[test]
    fn a_share_is_between_idle_and_full() {
        for (running, capacity, share) in [(0, 8, 0.0), (4, 8, 0.5), (8, 8, 1.0), (9, 8, 1.0), (0, 0, 1.0)] {
            assert_eq!(LoadReport { running, capacity }.share(), share);
        }
        for whole in 0..=100 {
            assert_eq!(percent(whole).percent(), whole);
        }
        let (running, capacity) = (u32::MAX - 1, u32::MAX);
        assert_eq!(LoadReport { running, capacity }.percent(), 99);
    }

    #[test]
    fn what_matters_is_told_once_and_a_load_that_lasts_is_repeated() {
        let (start, mut reporter) = (Instant::now(), Reporter::default());
        let after = |millis| start + Duration::from_millis(millis);
        let told = [
            (0, 0, false, "idle, which peers assume"),
            (1000, 50, true, "busy"),
            (2000, 52, false, "about the same"),
            (3000, 57, true, "busier"),
            (6000, 57, false, "the same"),
            (7000, 57, true, "still busy"),
            (8000, 100, true, "full"),
            (9000, 99, false, "hardly less"),
            (10_000, 0, true, "idle again"),
            (90_000, 0, false, "still idle"),
        ];
        for (millis, load, due, what) in told {
            assert_eq!(reporter.is_due(after(millis), percent(load)), due, "{what}");
        }
    }

    proptest! {
        #[test]
        fn what_a_peer_knows_is_never_far_off_nor_old(loads in prop::collection::vec((0..=100_u32, 0..3_u32), 1..200)) {
            let (mut now, mut reporter) = (Instant::now(), Reporter::default());
            let mut known: Option<(Instant, u32)> = None;
            for (load, pause) in loads {
                now += REPORT_EVERY * pause;
                if reporter.is_due(now, percent(load)) {
                    if let Some((at, told)) = known {
                        prop_assert!(load != told || now >= at + REPEAT, "the same was said twice");
                    }
                    known = Some((now, load));
                }
                let believed = known.map_or(0, |(_, told)| told);
                prop_assert!(believed.abs_diff(load) < STEP);
                prop_assert!(load == 0 || known.is_none() || known.is_some_and(|(at, _)| now < at + REPEAT));
            }
        }
    }
}
