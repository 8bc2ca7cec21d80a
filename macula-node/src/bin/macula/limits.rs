//! Says in the log that a limit was reached, once a minute for each and not once for each call.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use macula_node::{Node, NodeState};

/// How often the counters are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The shortest time between two words about one limit.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Looks after the limits of a node, for as long as it is polled.
pub(crate) async fn watch(node: &Node) {
    let mut watch = Watch::default();
    loop {
        for (limit, times) in watch.look(Instant::now(), &counts(&node.state().await)) {
            tracing::warn!(times, "{limit}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

type Counts = [(&'static str, u64); 8];

/// The refusals so far, and the words for each.
fn counts(state: &NodeState) -> Counts {
    let (transport, dht) = (state.transport, state.directory.stats.dht);
    [
        (
            "calls were refused, because as many run as may at a time",
            transport.places.refused,
        ),
        (
            "peers were turned away: another realm or version, or no introduction",
            transport.rejected_hellos,
        ),
        (
            "peers were turned away, because there are too many connections or handshakes",
            transport.rejected_busy,
        ),
        (
            "streams of peers were ended, because their frames are too large or malformed",
            transport.rejected_frames,
        ),
        (
            "requests of peers to the directory were declined, because they come too fast",
            dht.rate_limited,
        ),
        (
            "records of others were refused: the store is full, or they are wrong",
            dht.refused,
        ),
        (
            "messages of peers were refused or given up, because the memory for them is full",
            transport.memory.refused + transport.memory.evicted,
        ),
        ("handlers panicked", transport.handler_panics),
    ]
}

#[derive(Debug, Default)]
struct Watch {
    /// The count that was said last of each, and when.
    said: BTreeMap<&'static str, (u64, Option<Instant>)>,
}

impl Watch {
    /// The limits to speak of now, each with how often it was reached since it was spoken of.
    fn look(&mut self, now: Instant, counts: &[(&'static str, u64)]) -> Vec<(&'static str, u64)> {
        let mut news = Vec::new();
        for (limit, count) in counts {
            let (said, at) = self.said.entry(limit).or_default();
            let is_due = at.is_none_or(|at| at + SAY_EVERY <= now);
            if *count > *said && is_due {
                news.push((*limit, *count - *said));
                (*said, *at) = (*count, Some(now));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_reached_all_the_time_is_said_once_a_minute_with_its_count() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let mut look = |seconds, full, other| {
            let counts = [("full", full), ("other", other)];
            watch.look(start + Duration::from_secs(seconds), &counts)
        };
        assert_eq!(look(0, 0, 0), []);
        assert_eq!(look(5, 400, 0), [("full", 400)]);
        assert_eq!(look(10, 900, 1), [("other", 1)]);
        assert_eq!(look(64, 9_000, 1), []);
        assert_eq!(look(65, 9_400, 1), [("full", 9_000)]);
        assert_eq!(look(200, 9_400, 1), []);
    }
}
