//! The nodes that this one talks to, and those whose connection broke.
//!
//! A node that was killed and started again has forgotten every record it held, and yet no request to it fails. Its connection
//! breaks, though, within a keep-alive interval. The core is then told to ask the node again, at once and a few times later. When it
//! answers, the core hands over the records that it should hold (N3). A node that does not answer leaves the core's routing table, and
//! the core looks for it from then on.

use std::time::{Duration, Instant};

use macula_dht::Contact;
use macula_transport::{CloseCode, ConnectionEnd, Lost};

/// The most connections that are watched; the one used longest ago makes room. The same limit holds for missing nodes,
/// and further ones are not asked after.
const MAX_WATCHED: usize = 64;
/// When a node is asked again after its connection broke: so often that the core gives up a node that never answers.
const ASK_AFTER: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_secs(2),
    Duration::from_secs(6),
    Duration::from_secs(14),
];

/// The nodes that this one talked to last, and those that went missing.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// The latest last.
    connected: Vec<(Contact, ConnectionEnd)>,
    missing: Vec<Missing>,
}

#[derive(Debug)]
struct Missing {
    contact: Contact,
    since: Instant,
    asked: usize,
}

impl Neighbours {
    /// A request to `to` was answered over a connection, which tells its end.
    pub(super) fn talked_to(&mut self, to: Contact, connection: ConnectionEnd) {
        self.missing.retain(|missing| missing.contact.node_id() != to.node_id());
        self.connected.retain(|(known, _)| known.node_id() != to.node_id());
        if self.connected.len() == MAX_WATCHED {
            self.connected.remove(0);
        }
        self.connected.push((to, connection));
    }

    /// The nodes to ask now whether they are there.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Contact> {
        let missing = &mut self.missing;
        self.connected.retain(|(contact, connection)| match connection.lost() {
            None => true,
            Some(end) => {
                if !is_retired(&end) && missing.len() < MAX_WATCHED {
                    missing.push(Missing {
                        contact: contact.clone(),
                        since: now,
                        asked: 0,
                    });
                }
                false
            }
        });
        let mut due = Vec::new();
        missing.retain_mut(|missing| {
            if ASK_AFTER
                .get(missing.asked)
                .is_some_and(|&after| missing.since + after <= now)
            {
                missing.asked += 1;
                due.push(missing.contact.clone());
            }
            missing.asked < ASK_AFTER.len()
        });
        due
    }
}

/// Whether a connection ended because it was not needed, which says nothing about the node.
fn is_retired(end: &Lost) -> bool {
    match end {
        // Given up because the node was silent.
        Lost::ClosedHere(CloseCode::Unresponsive) => false,
        Lost::ClosedHere(_) => true,
        Lost::ClosedByPeer { code, .. } => *code == CloseCode::Retired,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n3_a_node_that_was_given_up_as_silent_is_missing_and_one_that_was_not_needed_is_not() {
        let by_peer = |code| Lost::ClosedByPeer {
            code,
            reason: "".into(),
        };
        for missing in [
            Lost::ClosedHere(CloseCode::Unresponsive),
            Lost::TimedOut,
            Lost::Restarted,
            by_peer(CloseCode::Shutdown),
            by_peer(CloseCode::Aborted),
        ] {
            assert!(!is_retired(&missing), "{missing:?}");
        }
        for retired in [
            Lost::ClosedHere(CloseCode::Retired),
            Lost::ClosedHere(CloseCode::Shutdown),
            by_peer(CloseCode::Retired),
        ] {
            assert!(is_retired(&retired), "{retired:?}");
        }
    }
}
