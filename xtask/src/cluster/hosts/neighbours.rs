//! The kernel's table of neighbours, which all network namespaces of a machine share.
//!
//! Thirty hosts that know each other have more entries than a machine's usual 1 024, and packets to the rest are dropped. A real host has
//! a kernel of its own, so the suite makes room for its time.

use std::fs;

/// The most entries while scenarios run.
const ENTRIES: u32 = 16_384;
const LIMITS: [&str; 2] = [
    "/proc/sys/net/ipv4/neigh/default/gc_thresh3",
    "/proc/sys/net/ipv6/neigh/default/gc_thresh3",
];

/// Room in the table; dropping it gives the machine its own limits back.
#[derive(Debug)]
pub(super) struct Room(Vec<(&'static str, String)>);

impl Room {
    /// Makes room where this process may. Where it may not, only the largest scenarios notice.
    pub(super) fn make() -> Self {
        let raise = |file: &'static str| {
            let before = fs::read_to_string(file).ok()?;
            let is_small = before.trim().parse().is_ok_and(|entries: u32| entries < ENTRIES);
            (is_small && fs::write(file, ENTRIES.to_string()).is_ok()).then_some((file, before))
        };
        Self(LIMITS.into_iter().filter_map(raise).collect())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (file, before) in &self.0 {
            // It could be written a moment ago.
            let _ = fs::write(file, before);
        }
    }
}
