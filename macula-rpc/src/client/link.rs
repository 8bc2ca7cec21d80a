//! The state of the link to a provider, as a balancer knows it, from the connection pool's word.

use macula_select::Link;
use macula_transport::{CloseCode, Lost, Pool, Presence};
use macula_wire::NodeId;

/// The link that the pool has to a node.
pub(super) fn of(pool: &Pool, node: &NodeId) -> Link {
    pool.open(node)
        .map_or(Link::Idle, |connection| over(connection.presence()))
}

/// The link over an open connection.
pub(super) fn over(presence: Presence) -> Link {
    match presence {
        Presence::Up => Link::Up,
        Presence::Suspected => Link::Suspected,
    }
}

/// The state in which the end of a connection leaves the link.
pub(super) fn after(lost: &Lost) -> Link {
    match lost {
        Lost::Restarted => Link::Idle,
        Lost::ClosedByPeer { code, .. } => match code {
            CloseCode::Shutdown | CloseCode::Aborted => Link::Down,
            // The peer is there, and made room or turned this node away.
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
