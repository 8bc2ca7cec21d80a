//! Warnings that are said now and then, however often their reason occurs.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The shortest time between two of the same kind.
const EVERY: Duration = Duration::from_secs(10);

/// A warning of one kind.
#[derive(Debug, Default)]
pub(crate) struct Sparse(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    kept_back: u64,
}

impl Sparse {
    /// Says it, with how often it was kept back since the last time, unless it was said a moment ago.
    pub(crate) fn warn(&self, say: impl FnOnce(u64)) {
        if let Some(kept_back) = self.is_time(Instant::now()) {
            say(kept_back);
        }
    }

    fn is_time(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.said.is_some_and(|said| now < said + EVERY) {
            state.kept_back += 1;
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_a_hundred_times_a_second_is_said_every_ten_seconds() {
        let (sparse, start) = (Sparse::default(), Instant::now());
        let said: Vec<_> = (0..2_500)
            .filter_map(|step| sparse.is_time(start + Duration::from_millis(10) * step))
            .collect();
        assert_eq!(said, [0, 999, 999]);
    }
}
