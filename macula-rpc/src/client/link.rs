//! The state of the link to a provider, as a balancer knows it, from the connection pool's word.

use macula_select::Link;
use macula_transport::{CloseCode, Lost, Pool, Presence};
use macula_wire::NodeId;

/// The link that the pool has to a node.
pub(super) fn of(pool: &Pool, node: &NodeId) -> Link {
    match pool.open(node).map(|connection| connection.presence()) {
        Some(Presence::Up) => Link::Up,
        Some(Presence::Suspected) => Link::Suspected,
        None => Link::Idle,
    }
}

/// The state in which the end of a connection leaves the link.
pub(super) fn after(lost: &Lost) -> Link {
    match lost {
        Lost::Restarted => Link::Idle,
        Lost::ClosedByPeer { code, .. } => match code {
            CloseCode::Shutdown | CloseCode::Aborted => Link::Down,
            // The peer is there and made room.
            _ => Link::Idle,
        },
        Lost::ClosedHere(code) => match code {
            CloseCode::Unresponsive => Link::Down,
            _ => Link::Idle,
        },
        Lost::TimedOut => Link::Down,
        _ => Link::Down,
    }
}

/// Whether the peer lives although the connection ended.
pub(super) fn is_there(lost: &Lost) -> bool {
    match lost {
        Lost::Restarted => true,
        Lost::ClosedByPeer { code, .. } | Lost::ClosedHere(code) => *code == CloseCode::Retired,
        _ => false,
    }
}
