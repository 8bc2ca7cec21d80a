//! The directory's side of the network: one request, one reply, reported by number.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use macula_dht::{Contact, Peer, Reply, RequestFailed, RequestId, Response, Role};
use macula_transport::{Connection, DialError, PeerInfo, Pool, Protocol, RequestError};
use macula_wire::Address;

use super::JoinCause;

/// The result of a request.
pub(super) enum Done {
    /// The reply or the core's error, and the connection or the error for people.
    Replied {
        id: RequestId,
        result: Result<Reply, RequestFailed>,
        end: Result<Connection, JoinCause>,
        to: Contact,
    },
    /// The nodes that listen at an endpoint, at least one, or why there are none.
    Identified {
        id: RequestId,
        endpoint: Address,
        peers: Result<Vec<Found>, JoinCause>,
    },
}

/// Sends a request and waits for its reply, `within` in all. In a full pool it waits for a place: dials of dead nodes soon leave theirs,
/// and a lookup that left living nodes out would miss their records.
pub(super) async fn send(pool: Pool, id: RequestId, to: Contact, body: Bytes, within: Duration) -> Done {
    let until = tokio::time::Instant::now().into_std() + within;
    let once = async || {
        let connection = pool
            .get_by(to.node_id(), to.endpoints(), until)
            .await
            .map_err(Failed::Dial)?;
        match connection.request(Protocol::Dht, body.clone(), within).await {
            Ok(reply) => Ok((reply, connection)),
            Err(error) => Err(Failed::Request(error)),
        }
    };
    let exchange = async {
        match once().await {
            // The connection was dead already, as after a suspension. Every request may be made twice.
            Err(Failed::Request(error)) if failure(&error) == RequestFailed::Lost => once().await,
            outcome => outcome,
        }
    };
    let (result, end) = match tokio::time::timeout(within, exchange).await {
        Ok(Ok((reply, connection))) => (Ok(read(reply, &connection)), Ok(connection)),
        Ok(Err(Failed::Dial(error))) => (Err(not_dialed(&error)), Err(JoinCause::Dial(Arc::new(error)))),
        Ok(Err(Failed::Request(error))) => (Err(failure(&error)), Err(JoinCause::Request(Arc::new(error)))),
        Err(_) => (Err(RequestFailed::TimedOut), Err(JoinCause::NoAnswer(within))),
    };
    Done::Replied { id, result, end, to }
}

/// The most addresses of one host name that are asked.
const MAX_ADDRESSES: usize = 16;
/// How long after the first node the others at a name are waited for: one dead address should not delay the join, and the first node
/// knows the others.
const OTHERS_WITHIN: Duration = Duration::from_millis(250);

/// A node that was found at an address.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) peer: Arc<PeerInfo>,
    /// The address; or the name, when it stands for that address alone, which may be another one tomorrow.
    pub(super) at: Address,
}

/// Finds the nodes that listen at an endpoint: at its address, or at each address of its host name.
pub(super) async fn identify(pool: Pool, id: RequestId, endpoint: Address, within: Duration) -> Done {
    let search = async {
        let addresses = addresses(&pool, &endpoint).await?;
        identify_each(&pool, addresses).await
    };
    let peers = tokio::time::timeout(within, search).await;
    let peers = peers.unwrap_or(Err(JoinCause::NoAnswer(within)));
    Done::Identified { id, endpoint, peers }
}

/// The addresses to dial for an endpoint.
async fn addresses(pool: &Pool, endpoint: &Address) -> Result<Vec<Address>, JoinCause> {
    let unresolved = |source| {
        JoinCause::Dial(Arc::new(DialError::Resolve {
            endpoint: endpoint.clone(),
            source: Arc::new(source),
        }))
    };
    let found = pool.look_up(endpoint).await.map_err(unresolved)?;
    let mut addresses: Vec<_> = found
        .into_iter()
        .filter_map(|addr| Address::try_from(addr).ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    match addresses.len() {
        // Kept as a name: the transport looks it up each time it dials.
        0 | 1 => Ok(vec![endpoint.clone()]),
        _ => Ok(addresses),
    }
}

/// The nodes at these addresses that answer with the first one or soon after it; an error when none answers.
async fn identify_each(pool: &Pool, addresses: Vec<Address>) -> Result<Vec<Found>, JoinCause> {
    let mut dials: FuturesUnordered<_> = addresses
        .into_iter()
        .map(|at| async move {
            let connection = pool.first_contact(&at).await?;
            let peer = Arc::clone(connection.peer());
            Ok::<_, DialError>(Found { peer, at })
        })
        .collect();
    let (mut found, mut error) = (Vec::new(), DialError::NoAddress);
    while found.is_empty() {
        match dials.next().await {
            Some(Ok(first)) => found.push(first),
            Some(Err(new)) => error = new,
            None => return Err(JoinCause::Dial(Arc::new(error))),
        }
    }
    let others = async {
        while let Some(next) = dials.next().await {
            found.extend(next.ok());
        }
    };
    // Those that are found later are in the pool, and are met through the first.
    let _ = tokio::time::timeout(OTHERS_WITHIN, others).await;
    Ok(found)
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

/// A pool without room says nothing of the peer (X10).
fn not_dialed(error: &DialError) -> RequestFailed {
    match error {
        DialError::PoolFull { .. } | DialError::ShutDown => RequestFailed::NotSent,
        _ => RequestFailed::Unreachable,
    }
}

fn failure(error: &RequestError) -> RequestFailed {
    match error {
        RequestError::Timeout(_) => RequestFailed::TimedOut,
        RequestError::TooLarge { .. } => RequestFailed::NotSent,
        _ => RequestFailed::Lost,
    }
}

pub(super) fn role(peer: &PeerInfo) -> Role {
    match peer.role {
        macula_transport::Role::Node => Role::Node,
        macula_transport::Role::Client => Role::Client,
    }
}

/// A peer as the core knows it: the id that its connection proved, and the address of its packets.
pub(super) fn peer(info: &PeerInfo) -> Peer {
    Peer {
        contact: contact(info, None),
        role: role(info),
    }
}

/// A peer's contact: where it says it listens, and where it was found.
pub(super) fn contact(info: &PeerInfo, found_at: Option<&Address>) -> Contact {
    let found_at = found_at.filter(|endpoint| !info.endpoints.contains(endpoint));
    let endpoints = info.endpoints.iter().chain(found_at).cloned();
    Contact::new(info.node_id, endpoints).observed_at(info.remote_addr.ip())
}

#[cfg(test)]
mod tests {
    use macula_transport::{Config, Identity, NoService};

    use super::*;

    async fn listening() -> macula_transport::Endpoint {
        let config = Config::new(Identity::generate().unwrap()).with_listen("127.0.0.1:0".parse().unwrap());
        macula_transport::Endpoint::bind(config, NoService).await.unwrap()
    }

    /// Of several nodes at one name some are gone; the others are found.
    #[tokio::test]
    async fn every_address_of_a_name_is_asked() {
        let (own, one, other) = (listening().await, listening().await, listening().await);
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let addresses: Vec<Address> = [silent.local_addr().unwrap(), one.local_addr(), other.local_addr()]
            .map(|addr| addr.try_into().unwrap())
            .into();
        let found = identify_each(&own.pool(), addresses.clone()).await.unwrap();
        // The first at least; the other, too, unless this machine is very slow.
        assert!(found.iter().all(|found| {
            let node = if found.at == addresses[1] { &one } else { &other };
            addresses[1..].contains(&found.at) && found.peer.node_id == node.node_id()
        }));
        let error = identify_each(&own.pool(), addresses[..1].to_vec()).await.unwrap_err();
        assert!(matches!(error, JoinCause::Dial(error) if error.addr().is_some()));
    }
}
