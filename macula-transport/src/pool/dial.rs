//! One dial for the pool, and the one that makes it.

use std::{io, net::SocketAddr, sync::Arc};

use futures::future::BoxFuture;
use macula_wire::{Address, NodeId};

use super::{
    PoolEvent, Shell, now,
    state::{ConnectionId, DialFailure, Ticket},
};
use crate::{
    call::{ask::Caller, connection::Connection},
    endpoint::handshake::Established,
    error::DialError,
};

/// Makes the connections that the pool asks for: the endpoint.
pub(crate) trait Dialer: Send + Sync + 'static {
    /// Dials a node, or anyone, at the first of its addresses that answers.
    fn dial<'a>(&'a self, node: Option<NodeId>, at: &'a [Address]) -> BoxFuture<'a, Result<Established, DialError>>;

    /// The addresses of an endpoint that this node's user has named.
    fn look_up<'a>(&'a self, at: &'a Address) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;

    /// Starts the tasks of a connection, unless `register` gives it no id.
    fn start(&self, established: Established, register: &mut dyn FnMut(&Arc<Caller>) -> Option<ConnectionId>) -> bool;
}

/// Makes one dial, and gives its outcome to the core and to the callers that wait for it.
pub(super) async fn dial(
    shell: Arc<Shell>,
    dialer: Arc<dyn Dialer>,
    ticket: Ticket,
    node: Option<NodeId>,
    at: Vec<Address>,
) {
    let result = match dialer.dial(node, &at).await {
        Ok(established) => {
            let mut connection = None;
            dialer.start(established, &mut |caller| {
                let mut table = shell.lock();
                if table.stopped {
                    return None;
                }
                let node = caller.link.peer.node_id;
                caller.link.memory.open();
                let id = table.state.dialed(now(), ticket, node);
                table.open.insert(id, caller.clone());
                shell.tell(PoolEvent::Opened { node, dialed: true });
                // In use from the start: it must not make room for another before the callers that wait for it have it.
                connection = Some(Connection::new(caller.clone()));
                Some(id)
            });
            connection.ok_or(DialError::ShutDown)
        }
        Err(error) => {
            tracing::debug!(node = node.map(|node| node.short()), %error, "a dial failed");
            let failure = if error.is_refusal() {
                DialFailure::Refused
            } else {
                DialFailure::Unreachable
            };
            let cause = Arc::new(error.clone());
            shell.tell(PoolEvent::DialFailed {
                node,
                error: cause.clone(),
            });
            shell.lock().state.dial_failed(now(), ticket, failure, cause);
            Err(error)
        }
    };
    let mut table = shell.lock();
    let waiters = table.waiters.remove(&ticket).unwrap_or_default();
    shell.perform(table);
    for waiter in waiters {
        // A caller that gave up has dropped its end, and needs no news.
        let _ = waiter.send(result.clone());
    }
}
