//! How much QUIC may keep of a connection: what has arrived and is not read, and what was sent and is not acknowledged.
//!
//! QUIC lets a peer fill its window without a byte being read, so the windows of all connections together must fit into the memory.
//! With few connections each has the window of the configuration. With more, a new one gets half of it, a quarter, and so on.
//!
//! The sum for `n` connections is at most `memory / PART * (1 + ln n)`, those that came first having larger windows, and the
//! [`LEAST_BYTES`] of those that come when no share is as large.
//!
//! A core: no clock, no lock.

use crate::config::Limits;

/// The part of the memory that the windows of `n` equal connections take, as a divisor.
const PART: u64 = 24;
/// No window is smaller, in bytes: small calls fit into it, and large messages take more round trips.
const LEAST_BYTES: u32 = 16 * 1024;

/// The window of a new connection, in bytes each way, when there are `connections` of them with it.
pub(crate) fn of_connection(limits: &Limits, connections: usize) -> u32 {
    let each = limits.memory_bytes / PART / (connections.max(1) as u64) / 2;
    let halves = std::iter::successors(Some(limits.connection_window), |window| Some(window / 2));
    let fits = |window: &u32| u64::from(*window) <= each || *window <= LEAST_BYTES;
    halves.into_iter().find(fits).unwrap_or(LEAST_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::memory::MemoryBudget;

    fn limits() -> Limits {
        Limits {
            memory_bytes: 1 << 30,
            ..Limits::default()
        }
    }

    #[test]
    fn x6_a_connection_has_its_whole_window_while_connections_are_few() {
        let limits = limits();
        let window = |connections| of_connection(&limits, connections);
        assert_eq!(window(1), limits.connection_window);
        assert_eq!(window(2), limits.connection_window / 2);
        assert_eq!(window(4096), LEAST_BYTES);
    }

    /// The rest of the memory is charged piece by piece: see `memory.rs`.
    #[test]
    fn x6_as_many_connections_as_are_accepted_fit_into_the_memory_and_a_fifth() {
        for mebibytes in [64, 128, 256, 1024, 8192] {
            let limits = Limits {
                memory_bytes: mebibytes << 20,
                ..Limits::default()
            };
            let memory = MemoryBudget::new(limits.memory_bytes);
            let most = memory.max_accepted().min(limits.max_accepted);
            let windows: u64 = (1..=most).map(|n| 2 * u64::from(of_connection(&limits, n))).sum();
            let all = windows + memory.stats().charged;
            assert!(
                all <= limits.memory_bytes * 6 / 5,
                "{mebibytes} MiB: {all} bytes for {most}"
            );
        }
    }

    #[test]
    fn x6_the_windows_of_all_connections_fit_into_the_memory() {
        let limits = limits();
        for connections in [1, 10, 100, 1000] {
            let sum: u64 = (1..=connections)
                .map(|n| 2 * u64::from(of_connection(&limits, n)))
                .sum();
            let bound = (limits.memory_bytes / PART) as f64 * (1.0 + (connections as f64).ln());
            assert!(sum as f64 <= bound, "{sum} {connections}");
        }
    }
}
