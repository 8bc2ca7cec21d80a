//! A stranger who publishes again and again what it has seen, and what it has made up.

use std::{collections::BTreeMap, error::Error, time::Duration};

use bytes::Bytes;
use macula_dht::{Request, Response};
use macula_node::Node;
use macula_transport::{Config, Connection, Endpoint, Identity, NoService, Protocol, Role, testing::Network};
use macula_wire::{Address, NodeId, Realm, ServiceKey, SignedProvider};
use tokio::task::JoinHandle;

use crate::world::services;

const EVERY: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(1);
/// The most records that one request carries here.
const AT_ONCE: usize = 8;

/// Ends when it is dropped.
pub(super) struct Stranger {
    task: JoinHandle<()>,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Seen = BTreeMap<(ServiceKey, NodeId, Bytes), SignedProvider>;

impl Stranger {
    pub(super) async fn start(network: &Network, identity: Identity, at: &[Node]) -> Result<Self, Box<dyn Error>> {
        let config = Config::new(identity).with_network(network).with_role(Role::Client);
        let endpoint = Endpoint::bind(config, NoService).await?;
        let at: Vec<(NodeId, Vec<Address>)> = at.iter().map(|node| (node.id(), node.endpoints().to_vec())).collect();
        let task = tokio::spawn(async move {
            let mut seen = Seen::new();
            loop {
                for (id, addresses) in &at {
                    // A node that is gone has nothing to steal.
                    if let Ok(connection) = endpoint.pool().get(id, addresses).await {
                        look(&connection, &mut seen).await;
                        publish(&connection, &seen).await;
                    }
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Ok(Self { task })
    }
}

fn keys() -> Vec<ServiceKey> {
    let realm = Realm::default();
    services()
        .iter()
        .map(|service| ServiceKey::new(&realm, service))
        .collect()
}

/// Remembers the records that a node has.
async fn look(connection: &Connection, seen: &mut Seen) {
    let realm = Realm::default().hash();
    for key in keys() {
        let request = Request::FindProviders { key, after: None }.encode();
        let Ok(reply) = connection.request(Protocol::Dht, request, PATIENCE).await else {
            continue;
        };
        if let Ok(Response::Providers { records, .. }) = Response::decode(reply) {
            for record in records {
                if let Ok(verified) = record.verify(&realm, &key)
                    && !verified.is_withdrawn()
                {
                    seen.insert((key, *verified.node_id(), record.body.clone()), record);
                }
            }
        }
    }
}

/// Publishes each record again as it was, with a byte changed, and under another key.
async fn publish(connection: &Connection, seen: &Seen) {
    let keys = keys();
    for key in &keys {
        let own = seen
            .iter()
            .filter(|((of, ..), _)| of == key)
            .map(|(_, record)| record.clone());
        let foreign = seen
            .iter()
            .filter(|((of, ..), _)| of != key)
            .map(|(_, record)| record.clone());
        let changed = own.clone().map(|mut record| {
            let mut body = record.body.to_vec();
            if let Some(last) = body.last_mut() {
                *last ^= 1;
            }
            record.body = body.into();
            record
        });
        let all: Vec<SignedProvider> = own.chain(foreign.take(2)).chain(changed.take(2)).collect();
        for records in all.chunks(AT_ONCE) {
            let request = Request::Publish {
                key: *key,
                records: records.to_vec(),
            };
            // Refused or not, the oracle looks at what is used.
            let _ = connection.request(Protocol::Dht, request.encode(), PATIENCE).await;
        }
    }
}
