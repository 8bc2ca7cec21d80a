//! The state of the link to a provider, as a balancer knows it, from the connection pool's word.

use macula_select::Link;
use macula_transport::{Lost, Pool, Presence};
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
    match lost.peer_is_gone() {
        true => Link::Down,
        // The peer was restarted, made room, or turned this node away.
        false => Link::Idle,
    }
}
