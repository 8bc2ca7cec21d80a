//! How long the machine let work wait: a thread for each processor that sleeps for a moment and notes how late it woke.
//!
//! A promise is about the mesh, and other programs may keep the machine busy. What this notes is what their scheduler takes from any
//! thread, the mesh's too.

use std::{
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::truth::unix_us;

/// How long the threads sleep.
const MOMENT: Duration = Duration::from_millis(1);
/// What a thread may wake too late on a machine that does nothing else.
const USUAL: Duration = Duration::from_micros(200);
/// The wake-ups that a call needs one after another when its first provider is lost: its start, the caller's and the provider's
/// sockets and tasks, the timer that gives the provider up, and the same again for the second provider.
const WAKES: usize = 12;

/// A wake-up that came late: when, and by how many microseconds.
type Late = (u64, u64);

/// The threads that watch.
#[derive(Debug)]
pub(super) struct Witness {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Late>>>,
}

impl Witness {
    /// Watches from now on.
    pub(super) fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = (0..processors).map(|_| {
            let over = Arc::clone(&over);
            thread::spawn(move || watch(&over))
        });
        Self {
            threads: threads.collect(),
            over,
        }
    }

    /// What was seen until now.
    pub(super) fn stop(mut self) -> Withheld {
        self.over.store(true, Ordering::Relaxed);
        let threads = self.threads.drain(..);
        Withheld(threads.map(|it| it.join().unwrap_or_default()).collect())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn watch(over: &AtomicBool) -> Vec<Late> {
    let mut seen = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let slept = Instant::now();
        thread::sleep(MOMENT);
        let late = slept.elapsed().saturating_sub(MOMENT);
        if late > USUAL {
            seen.push((unix_us(), u64::try_from(late.as_micros()).unwrap_or(u64::MAX)));
        }
    }
    seen
}

/// The late wake-ups of each thread, in order.
#[derive(Debug, Default)]
pub(crate) struct Withheld(Vec<Vec<Late>>);

impl Withheld {
    /// How long other work may have held a call up between these times, in microseconds: the [`WAKES`] latest wake-ups of the thread
    /// that was held up most.
    pub(crate) fn between(&self, from_us: u64, until_us: u64) -> u64 {
        let held = self.0.iter().map(|late| {
            let first = late.partition_point(|(at, _)| *at < from_us);
            let during = late[first..]
                .iter()
                .take_while(|(at, by)| at.saturating_sub(*by) < until_us);
            let mut worst: Vec<_> = during.map(|(at, by)| by.min(&(at - from_us)).to_owned()).collect();
            worst.sort_unstable_by(|a, b| b.cmp(a));
            worst.iter().take(WAKES).sum::<u64>()
        });
        held.max().unwrap_or_default().min(until_us.saturating_sub(from_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_allowed_the_latest_wake_ups_during_it_and_no_others() {
        let mut late: Vec<_> = (0..20).map(|at| (1_000 + at * 1_000, 10)).collect();
        late.push((50_000, 7_000));
        let withheld = Withheld(vec![late, vec![(50_500, 900)]]);
        assert_eq!(withheld.between(0, 40_000), 120, "no more wake-ups than a call needs");
        assert_eq!(
            withheld.between(47_000, 49_000),
            2_000,
            "no more than the call's own time"
        );
        assert_eq!(withheld.between(60_000, 70_000), 0);
    }
}
