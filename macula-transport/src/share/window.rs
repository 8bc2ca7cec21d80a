//! How much QUIC may keep of a connection: what has arrived and is not read, and what was sent and is not acknowledged.
//!
//! QUIC lets a peer fill its window without a byte being read, so the windows of all connections together must fit into the memory.
//! With few connections each has the window of the configuration. With more, a new one gets half of it, a quarter, and so on.
//!
//! The sum for `n` connections is at most `memory / PART * (1 + ln n)`: those that came first have larger windows.
//!
//! A core: no clock, no lock.

use crate::config::Limits;

/// The part of the memory that the windows of `n` equal connections take, as a divisor.
const PART: u64 = 16;
/// No window is smaller, in bytes: small calls fit into it, and large messages take more round trips.
const LEAST_BYTES: u32 = 64 * 1024;

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
        assert_eq!(
            (window(1), window(2)),
            (limits.connection_window, limits.connection_window)
        );
        assert_eq!(window(3), limits.connection_window / 2);
        assert_eq!(window(4096), LEAST_BYTES);
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
