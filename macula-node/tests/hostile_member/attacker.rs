//! The bad member: an endpoint with a valid grant, and a handler that lies.

use std::sync::{Arc, Mutex};

use futures::{FutureExt as _, future::BoxFuture};
use macula_dht::{Request, Response};
use macula_node::{Bytes, Chain, Node};
use macula_transport::{
    Access, Config, Connection, Endpoint, Handler, IncomingCall, PeerInfo, Protocol, Reply, Role, Visitor,
    testing::Network,
};
use macula_wire::SignedProvider;

use crate::{BAD, OPEN, START, addr, chain, identity, realm};

/// What the attacker answers.
#[derive(Default)]
pub(crate) struct Lies {
    /// To each question after providers.
    pub(crate) records: Vec<SignedProvider>,
    /// To each visitor.
    pub(crate) visits: Option<Bytes>,
    /// How many questions after providers it was asked.
    pub(crate) asked: usize,
    /// How many calls reached it.
    pub(crate) called: usize,
}

#[derive(Clone, Default)]
struct Liar(Arc<Mutex<Lies>>);

impl Handler for Liar {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
        self.0.lock().unwrap().called += 1;
        std::future::ready(Reply::ok("a lie")).boxed()
    }

    fn request(&self, _: &Arc<PeerInfo>, protocol: Protocol, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        let mut lies = self.0.lock().unwrap();
        let answer = match (protocol, Request::decode(body)) {
            (Protocol::Dht, Ok(Request::Ping)) => Some(Response::Pong),
            (Protocol::Dht, Ok(Request::FindNode { .. })) => Some(Response::Nodes(Vec::new())),
            (Protocol::Dht, Ok(Request::FindProviders { .. })) => {
                lies.asked += 1;
                Some(Response::Providers {
                    records: lies.records.clone(),
                    closest: Vec::new(),
                    more: false,
                })
            }
            _ => None,
        };
        std::future::ready(answer.map(|answer| answer.encode())).boxed()
    }

    fn visit(&self, _: Visitor, _: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        std::future::ready(self.0.lock().unwrap().visits.clone()).boxed()
    }
}

/// The attacker's node.
pub(crate) struct Attacker {
    pub(crate) endpoint: Endpoint,
    liar: Liar,
}

impl Attacker {
    /// With a grant for [`OPEN`] alone.
    pub(crate) async fn new(network: &Network) -> Self {
        Self::with(network, &chain(BAD, START, crate::DAY, &[OPEN])).await
    }

    pub(crate) async fn with(network: &Network, chain: &Chain) -> Self {
        let clock = network.clone();
        let clock = Arc::new(move || START + clock.elapsed().as_secs());
        let access = Access::with_clock(realm(), identity(BAD).node_id(), clock);
        access.set_grant(chain).unwrap();
        let config = Config::new(identity(BAD))
            .with_network(network)
            .with_role(Role::Node)
            .with_access(access)
            .with_listen(addr(BAD));
        let liar = Liar::default();
        let endpoint = Endpoint::bind(config, liar.clone()).await.unwrap();
        let here: macula_wire::Address = addr(BAD).try_into().unwrap();
        endpoint.set_advertised([here]);
        Self { endpoint, liar }
    }

    pub(crate) fn lies<T>(&self, tell: impl FnOnce(&mut Lies) -> T) -> T {
        tell(&mut self.liar.0.lock().unwrap())
    }

    pub(crate) async fn connect(&self, to: &Node) -> Connection {
        let at = [to.local_addr().try_into().unwrap()];
        self.endpoint.pool().get(&to.id(), &at).await.unwrap()
    }
}
