//! Peers that keep to the transport's protocol and to nothing else.

use macula_dht::{Request, Response};
use macula_node::{Identity, Node};
use macula_transport::{CallRequest, Config, Connection, Endpoint, NoService, Protocol, Route};
use macula_wire::{Address, ServiceName};
use tokio::task::JoinSet;

use crate::PATIENCE;

/// One identity of an attacker, and its connection to the victim.
pub(crate) struct Attacker {
    pub(crate) connection: Connection,
    _endpoint: Endpoint,
}

impl Attacker {
    /// From this loopback network.
    pub(crate) async fn new(network: u8, victim: &Node) -> Self {
        Self::announcing(network, victim, []).await
    }

    /// From this loopback network, and it says that it listens at these addresses.
    pub(crate) async fn announcing(network: u8, victim: &Node, at: impl IntoIterator<Item = Address>) -> Self {
        let config = Config::new(Identity::generate().unwrap())
            .with_listen(([127, 0, network, 1], 0).into())
            .with_advertised(at);
        let endpoint = Endpoint::bind(config, NoService).await.unwrap();
        let at = [victim.local_addr().try_into().unwrap()];
        let connection = endpoint.pool().get(&victim.id(), &at).await.unwrap();
        Self {
            connection,
            _endpoint: endpoint,
        }
    }

    /// Asks the victim's directory. `None` when it does not answer.
    pub(crate) async fn ask(&self, request: &Request) -> Option<Response> {
        let asked = self.connection.request(Protocol::Dht, request.encode(), PATIENCE);
        Response::decode(asked.await.ok()?).ok()
    }

    /// Makes calls that it waits for as long as they may take.
    pub(crate) fn call(&self, calls: &mut JoinSet<()>, service: &str, route: Option<Route>) {
        let (connection, service) = (self.connection.clone(), ServiceName::new(service).unwrap());
        calls.spawn(async move {
            let passage = route.map(|_| connection.passage(&service)).unwrap_or_default();
            let request = CallRequest::new(&service, "")
                .with_timeout(PATIENCE)
                .with_route(route)
                .with_passage(passage);
            // What becomes of it is the victim's affair.
            let _ = connection.call(request).await;
        });
    }
}
