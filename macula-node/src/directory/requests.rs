//! The directory's side of the network: one request, one reply, reported by number.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use macula_dht::{Contact, Peer, Reply, RequestFailed, RequestId, Response, Role};
use macula_transport::{Connection, DialError, PeerInfo, Pool, Protocol, RequestError};
use macula_wire::Endpoint;

use super::JoinCause;

/// What came of a request.
pub(super) enum Done {
    /// A reply, or why there is none; and the connection it came over, or for a person why there was none.
    Replied {
        id: RequestId,
        result: Result<Reply, RequestFailed>,
        end: Result<Connection, JoinCause>,
        to: Contact,
    },
    /// Who listens at an endpoint, or why nobody does.
    Identified {
        id: RequestId,
        endpoint: Endpoint,
        peer: Result<Arc<PeerInfo>, JoinCause>,
    },
}

/// Sends a request and waits for its reply, `within` in all.
pub(super) async fn send(pool: Pool, id: RequestId, to: Contact, body: Bytes, within: Duration) -> Done {
    let exchange = async {
        let connection = pool.get(to.node_id(), to.endpoints()).await.map_err(Failed::Dial)?;
        let reply = connection
            .request(Protocol::Dht, body, within)
            .await
            .map_err(Failed::Request)?;
        Ok((reply, connection))
    };
    let (result, end) = match tokio::time::timeout(within, exchange).await {
        Ok(Ok((reply, connection))) => (Ok(read(reply, &connection)), Ok(connection)),
        Ok(Err(Failed::Dial(error))) => (Err(RequestFailed::Unreachable), Err(JoinCause::Dial(Arc::new(error)))),
        Ok(Err(Failed::Request(error))) => (Err(failure(&error)), Err(JoinCause::Request(Arc::new(error)))),
        Err(_) => (Err(RequestFailed::TimedOut), Err(JoinCause::NoAnswer(within))),
    };
    Done::Replied { id, result, end, to }
}

/// Finds out who listens at an endpoint.
pub(super) async fn identify(pool: Pool, id: RequestId, endpoint: Endpoint, within: Duration) -> Done {
    let peer = match tokio::time::timeout(within, pool.first_contact(&endpoint)).await {
        Ok(Ok(connection)) => Ok(Arc::clone(connection.peer())),
        Ok(Err(error)) => Err(JoinCause::Dial(Arc::new(error))),
        Err(_) => Err(JoinCause::NoAnswer(within)),
    };
    Done::Identified { id, endpoint, peer }
}

enum Failed {
    Dial(DialError),
    Request(RequestError),
}

fn read(reply: Bytes, connection: &Connection) -> Reply {
    let peer = connection.peer();
    Reply {
        response: Response::decode(reply),
        role: role(peer),
        ip: Some(peer.remote_addr.ip()),
    }
}

fn failure(error: &RequestError) -> RequestFailed {
    match error {
        RequestError::Timeout(_) => RequestFailed::TimedOut,
        _ => RequestFailed::Lost,
    }
}

pub(super) fn role(peer: &PeerInfo) -> Role {
    match peer.role {
        macula_transport::Role::Node => Role::Node,
        macula_transport::Role::Client => Role::Client,
    }
}

/// A peer as the core knows it: what its connection proved, and where its packets come from.
pub(super) fn peer(info: &PeerInfo) -> Peer {
    Peer {
        contact: contact(info, None),
        role: role(info),
    }
}

/// A peer's contact: where it says it listens, and where it was found.
pub(super) fn contact(info: &PeerInfo, found_at: Option<&Endpoint>) -> Contact {
    let found_at = found_at.filter(|endpoint| !info.endpoints.contains(endpoint));
    let endpoints = info.endpoints.iter().chain(found_at).cloned();
    Contact::new(info.node_id, endpoints).observed_at(info.remote_addr.ip())
}
