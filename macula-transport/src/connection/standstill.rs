//! Whether this process stood still, and for how long packets may have waited for it (Y15).
//!
//! A process that was stopped and goes on reads the packets that came meanwhile, among them calls that their callers gave up long ago. A
//! packet does not say when it came. So a heart beats while the process runs, and a packet came after the last beat: else it would have
//! been read then. After a late beat this is certain again only once the heart has beaten in time.
//!
//! A core: no clock, no lock.
//!
//! Left out: packets that were lost meanwhile and are sent again. Their callers have given up and do not send them.

use std::time::{Duration, Instant};

/// How often the heart beats.
pub(crate) const BEAT: Duration = Duration::from_millis(250);
/// A beat that is later than this shows that the process stood still. A busy process beats late, too, but not by that much.
const LATE: Duration = Duration::from_millis(500);
/// How many beats in time show that everything which waited was read.
const BEATS_IN_TIME: u8 = 2;

/// The heart.
#[derive(Debug)]
pub(crate) struct Heart {
    last: Instant,
    before: Instant,
    /// Beats in time that are missing.
    missing: u8,
}

impl Heart {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last: now,
            before: now,
            missing: 0,
        }
    }

    /// Beats, and gives the time before which every packet that came is certain to be read. A heart that is always late still gives the
    /// beat before the last: a process that is too slow for its work must not take every call for old.
    pub(crate) fn beat(&mut self, now: Instant) -> Instant {
        let late = now.saturating_duration_since(self.last) > BEAT + LATE;
        let (last, before) = (self.last, self.before);
        (self.last, self.before) = (now, last);
        self.missing = match late {
            true => BEATS_IN_TIME,
            false => self.missing.saturating_sub(1),
        };
        match (late, self.missing) {
            (true, _) => last,
            (false, 0) => now,
            (false, _) => before,
        }
    }
}

/// How long a packet that is read now may have waited, when every packet before `certain` was read; nothing while that is usual.
pub(crate) fn waited(certain: Duration, now: Duration) -> Duration {
    let waited = now.saturating_sub(certain);
    if waited > BEAT + LATE { waited } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn y15_what_is_read_after_a_stop_may_have_waited_for_all_of_it() {
        let start = Instant::now();
        let mut heart = Heart::new(start);
        let mut certain = start;
        let at = |millis| start + Duration::from_millis(millis);
        let waited = |certain: Instant, now: Instant| waited(certain - start, now - start);
        for millis in [250, 500, 760] {
            certain = heart.beat(at(millis));
            assert_eq!(waited(certain, at(millis + 240)), Duration::ZERO);
        }
        // It stops for ten seconds. Packets may be read before the heart beats again, and after.
        assert_eq!(waited(certain, at(10_760)), Duration::from_secs(10));
        assert_eq!(heart.beat(at(10_765)), certain);
        assert_eq!(waited(certain, at(10_800)), Duration::from_millis(10_040));
        assert_eq!(heart.beat(at(11_015)), certain, "a beat in time, the first");
        certain = heart.beat(at(11_265));
        assert_eq!(waited(certain, at(11_300)), Duration::ZERO);
    }

    #[test]
    fn y15_a_process_that_is_always_late_takes_no_more_than_its_last_calls_for_old() {
        let start = Instant::now();
        let mut heart = Heart::new(start);
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in 1..100 {
            assert_eq!(heart.beat(at(seconds)), at(seconds - 1));
        }
    }

    #[test]
    fn y15_a_busy_process_has_not_stood_still() {
        let start = Instant::now();
        let mut heart = Heart::new(start);
        let late = start + BEAT + LATE;
        assert_eq!(heart.beat(late), late);
        assert_eq!(waited(Duration::ZERO, BEAT + LATE), Duration::ZERO);
    }
}
