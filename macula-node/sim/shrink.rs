//! The smallest schedule that still breaks a rule: faults are left out, happen to fewer nodes, and last less long.

use std::time::Duration;

use crate::{fault::Schedule, run};

/// The most runs that shrinking one schedule may take.
const MAX_RUNS: usize = 80;
const SHORTEST: Duration = Duration::from_millis(50);

/// A smaller schedule that breaks `rule` too.
pub(super) fn shrink(schedule: &Schedule, rule: &str) -> Schedule {
    let mut smallest = schedule.clone();
    let mut runs = 0;
    loop {
        let mut smaller = candidates(&smallest).into_iter();
        let found = smaller.find(|candidate| {
            runs += 1;
            runs <= MAX_RUNS && breaks(candidate, rule)
        });
        match found {
            Some(found) => smallest = found,
            None => return smallest,
        }
    }
}

fn breaks(schedule: &Schedule, rule: &str) -> bool {
    run::run(schedule).is_ok_and(|outcome| outcome.broken.iter().any(|broken| broken.rule == rule))
}

/// Schedules that are one step smaller, the largest steps first.
fn candidates(schedule: &Schedule) -> Vec<Schedule> {
    let mut all = Vec::new();
    for n in 0..schedule.faults.len() {
        let mut without = schedule.clone();
        without.faults.remove(n);
        all.push(without);
    }
    for (n, fault) in schedule.faults.iter().enumerate() {
        for at in 0..fault.who.len() {
            if fault.who.len() > 1 {
                let mut fewer = schedule.clone();
                fewer.faults[n].who.remove(at);
                all.push(fewer);
            }
        }
        let half = Duration::from_millis(fault.lasts.as_millis() as u64 / 2);
        if half >= SHORTEST {
            let mut shorter = schedule.clone();
            shorter.faults[n].lasts = half;
            all.push(shorter);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NODES, schedule};

    #[test]
    fn every_candidate_is_smaller_and_none_is_left_at_the_end() {
        let size = |schedule: &Schedule| -> u128 {
            let faults = schedule.faults.iter();
            faults
                .map(|fault| 1_000_000 + fault.who.len() as u128 * 100_000 + fault.lasts.as_millis())
                .sum()
        };
        for seed in 0..100 {
            let mut schedule = schedule::of_seed(seed, NODES);
            while let Some(smaller) = candidates(&schedule).into_iter().next_back() {
                assert!(size(&smaller) < size(&schedule));
                schedule = smaller;
            }
            assert_eq!(schedule.faults, []);
        }
    }
}
