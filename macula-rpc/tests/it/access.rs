//! Who may call what (A5, A8), in open and closed realms, by every way there is.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, ready},
    stream,
};
use macula_rpc::{
    Allowed, CallError, Client, NodeId, Provider, Request, Requests, Resolve, ResolveError, ResolveOptions, Resolved,
    Routers, Server, ServiceName, ServiceOptions, StaticResolver, Status, StatusCode,
};
use macula_transport::{Access, CallRequest, Config, Connection, Endpoint, Identity, Role, Route, testing::Network};
use macula_wire::{Address, Grant, GrantRole, Pattern, Patterns, Realm, RealmKey, RealmName, SecretKey};

const NOW: u64 = 1_700_000_000;

/// A node with a server: on an in-memory network, in a closed realm unless it is open.
struct Node {
    endpoint: Endpoint,
    server: Server,
    at: Address,
}

fn realm_key() -> RealmKey {
    RealmKey::from_bytes(&[9; 32])
}

fn closed() -> Realm {
    realm_key().realm(RealmName::new("shop").unwrap())
}

fn identity(n: u8) -> Identity {
    Identity::from_secret(SecretKey::from_bytes(&[n; 32]))
}

fn id(n: u8) -> NodeId {
    identity(n).node_id()
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// Node `n`, whose grant lets it call `call` and provide everything, with the label `team`.
async fn node(network: &Network, realm: &Realm, n: u8, call: &str, team: &str) -> Node {
    member(network, realm, n, call, Patterns::all(), team).await
}

async fn member(network: &Network, realm: &Realm, n: u8, call: &str, provide: Patterns, team: &str) -> Node {
    let access = Access::with_clock(realm.clone(), id(n), Arc::new(|| NOW));
    if realm.is_closed() {
        let call = Patterns::from_iter([call.parse::<Pattern>().unwrap()]);
        let grant = Grant::new(realm, id(n), NOW..=NOW + 1000)
            .with_role(GrantRole::Node)
            .with_call(call);
        let grant = grant.with_provide(provide).with_label("team", team);
        access.set_grant(&grant.sign(&realm_key()).unwrap()).unwrap();
    }
    let server = Server::new();
    let listen = std::net::SocketAddr::from(([10, 0, 0, n], 9443));
    let config = Config::new(identity(n))
        .with_network(network)
        .with_role(Role::Node)
        .with_access(access)
        .with_listen(listen);
    let endpoint = Endpoint::bind(config, server.clone()).await.unwrap();
    Node {
        endpoint,
        server,
        at: listen.try_into().unwrap(),
    }
}

/// Answers with the caller's number, its label, and the router's number.
async fn whoami(request: Request) -> Result<String, Status> {
    let peer = request.peer().ok_or_else(|| Status::internal("called from here"))?;
    let number = |node: &NodeId| (0..100).find(|n| id(*n) == *node);
    let team = peer.labels().get("team").cloned();
    Ok(format!(
        "{:?} {team:?} {:?}",
        number(&peer.node_id),
        peer.router.as_ref().map(number)
    ))
}

impl Node {
    fn provider(&self) -> Provider {
        Provider::new(self.endpoint.node_id(), [self.at.clone()])
    }

    /// A client that knows this provider.
    fn client_of(&self, provider: &Self, service: &str) -> Client {
        let known = StaticResolver::new().with_service(name(service), [provider.provider()]);
        Client::builder(&self.endpoint, known).build()
    }

    async fn connection(&self, to: &Self) -> Connection {
        self.endpoint
            .pool()
            .get(&to.endpoint.node_id(), std::slice::from_ref(&to.at))
            .await
            .unwrap()
    }
}

/// A directory that gives no answer.
struct Down;

impl Resolve for Down {
    fn resolve<'a>(&'a self, _: &'a ServiceName, _: ResolveOptions) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        ready(Err(ResolveError::Unreachable)).boxed()
    }
}

struct Via(Provider);

impl Routers for Via {
    fn routers(&self) -> Vec<Provider> {
        vec![self.0.clone()]
    }
}

/// A client of `caller` that knows a router only.
fn through(caller: &Node, router: &Node) -> Client {
    Client::builder(&caller.endpoint, Down)
        .routers(Via(router.provider()))
        .build()
}

fn text(reply: Result<Bytes, CallError>) -> String {
    String::from_utf8(reply.unwrap().to_vec()).unwrap()
}

/// The final status of a call that was denied: one provider was asked, once.
fn denied(result: Result<Bytes, CallError>) {
    match result.unwrap_err() {
        CallError::Answered { status, attempts, .. } => {
            assert_eq!(status.code(), StatusCode::PermissionDenied, "{status}");
            assert!(attempts.len() <= 1, "{attempts:?}");
        }
        other => panic!("not denied: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a5_a_callers_grant_decides_and_a_denial_is_final() {
    let network = Network::new(1);
    let realm = closed();
    let (provider, second) = (
        node(&network, &realm, 1, "*", "a").await,
        node(&network, &realm, 2, "*", "a").await,
    );
    let (good, bad) = (
        node(&network, &realm, 3, "shop.*", "a").await,
        node(&network, &realm, 4, "mail.*", "a").await,
    );
    for node in [&provider, &second] {
        node.server.serve(name("shop.cart"), whoami).unwrap();
        node.server
            .serve_streaming(name("shop.feed"), async |_: Request<Requests>| {
                Ok::<_, Status>(stream::iter([Ok::<_, Status>("news")]))
            })
            .unwrap();
    }
    assert_eq!(
        text(good.client_of(&provider, "shop.cart").call("shop.cart", "").await),
        "Some(3) Some(\"a\") None"
    );
    let mut known = StaticResolver::new();
    for service in ["shop.cart", "shop.feed"] {
        known = known.with_service(name(service), [provider.provider(), second.provider()]);
    }
    let client = Client::builder(&bad.endpoint, known).build();
    denied(client.call("shop.cart", "").await);
    let mut feed = client
        .request("shop.feed")
        .stream(stream::iter([Bytes::from("x")]))
        .await;
    let error = match &mut feed {
        Ok(replies) => replies.next().await.unwrap_err(),
        Err(_) => feed.err().unwrap(),
    };
    denied(Err(error));
    // Beside a call that is under way, small calls share a stream.
    let connection = bad.connection(&provider).await;
    let service = name("shop.cart");
    let calls = (0..20).map(|_| connection.call(CallRequest::new(&service, "")));
    for reply in futures::future::join_all(calls).await {
        assert_eq!(reply.unwrap().status, StatusCode::PermissionDenied);
    }
    let counted = provider.endpoint.stats().calls_denied + second.endpoint.stats().calls_denied;
    assert_eq!(counted, 22);
}

#[tokio::test(start_paused = true)]
async fn a4_a_client_sends_no_call_to_a_node_that_may_not_provide_the_service() {
    let network = Network::new(1);
    let realm = closed();
    let caller = node(&network, &realm, 1, "*", "a").await;
    let liar = member(&network, &realm, 2, "*", Patterns::NONE, "a").await;
    let provider = node(&network, &realm, 3, "*", "a").await;
    for node in [&liar, &provider] {
        let own = node.endpoint.node_id().to_string();
        let answer = move |_: Request| ready(Ok::<_, Status>(own.clone()));
        node.server.serve(name("shop.cart"), answer).unwrap();
    }
    // The directory lies: it names the node without the right first.
    let both = [liar.provider(), provider.provider()];
    let known = StaticResolver::new().with_service(name("shop.cart"), both);
    let client = Client::builder(&caller.endpoint, known)
        .strategy(macula_rpc::Strategy::First)
        .build();
    for _ in 0..10 {
        let answer = text(client.call("shop.cart", "secret").await);
        assert_eq!(answer, id(3).to_string());
    }
    let error = caller.client_of(&liar, "shop.cart").call("shop.cart", "secret").await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("does not let it provide shop.cart"), "{error}");
    assert_eq!(liar.endpoint.stats().calls_taken, 0);
}

#[tokio::test(start_paused = true)]
async fn a5_a_service_admits_the_nodes_and_labels_of_its_list() {
    let network = Network::new(1);
    let realm = closed();
    let provider = node(&network, &realm, 1, "*", "infra").await;
    let (orders, mail) = (
        node(&network, &realm, 2, "*", "orders").await,
        node(&network, &realm, 3, "*", "mail").await,
    );
    let options = ServiceOptions::new()
        .allow(Allowed::label("team", "orders"))
        .allow(id(7));
    provider.server.configure(name("shop.cart"), options);
    provider.server.serve(name("shop.cart"), whoami).unwrap();
    assert_eq!(
        text(orders.client_of(&provider, "shop.cart").call("shop.cart", "").await),
        "Some(2) Some(\"orders\") None"
    );
    denied(mail.client_of(&provider, "shop.cart").call("shop.cart", "").await);
    assert_eq!(provider.server.denied(&name("shop.cart")), 1);
    provider
        .server
        .configure(name("shop.cart"), ServiceOptions::new().allow(id(3)));
    assert!(
        mail.client_of(&provider, "shop.cart")
            .call("shop.cart", "")
            .await
            .is_ok()
    );
    denied(orders.client_of(&provider, "shop.cart").call("shop.cart", "").await);
}

#[tokio::test(start_paused = true)]
async fn a5_a_call_of_this_process_needs_the_nodes_own_right() {
    let network = Network::new(1);
    let shared = node(&network, &closed(), 1, "mail.*", "a").await;
    let client = Client::builder(&shared.endpoint, StaticResolver::new())
        .local_first(shared.server.clone())
        .build();
    for service in ["shop.cart", "mail.in", "mail.out"] {
        shared
            .server
            .serve(name(service), async |_: Request| Ok::<_, Status>("here"))
            .unwrap();
    }
    shared
        .server
        .configure(name("mail.out"), ServiceOptions::new().allow(id(5)));
    assert_eq!(text(client.call("mail.in", "").await), "here");
    denied(client.call("shop.cart", "").await);
    denied(client.call("mail.out", "").await);
}

#[tokio::test(start_paused = true)]
async fn x2_a_router_acts_for_its_caller_and_never_as_itself() {
    for realm in [Realm::default(), closed()] {
        let network = Network::new(1);
        let provider = node(&network, &realm, 1, "*", "infra").await;
        let router = node(&network, &realm, 2, "*", "infra").await;
        let stranger = node(&network, &realm, 3, "shop.*", "stranger").await;
        provider
            .server
            .configure(name("shop.safe"), ServiceOptions::new().allow(id(2)));
        for service in ["shop.cart", "shop.safe", "mail.in"] {
            provider.server.serve(name(service), whoami).unwrap();
        }
        let mut known = StaticResolver::new();
        for service in ["shop.cart", "shop.safe", "mail.in"] {
            known = known.with_service(name(service), [provider.provider()]);
        }
        let onward = Client::builder(&router.endpoint, known).build();
        router.server.route_through(&onward);
        let client = through(&stranger, &router);
        let team = if realm.is_closed() {
            "Some(\"stranger\")"
        } else {
            "None"
        };
        assert_eq!(
            text(client.call("shop.cart", "").await),
            format!("Some(3) {team} Some(Some(2))")
        );
        // The router itself may, and the stranger may not, through the router either.
        assert!(onward.call("shop.safe", "").await.is_ok());
        denied(client.call("shop.safe", "").await);
        assert_eq!(provider.server.denied(&name("shop.safe")), 1);
        if realm.is_closed() {
            // The router passes on only what its peer could call itself.
            denied(client.call("mail.in", "").await);
            assert_eq!(router.endpoint.stats().calls_denied, 1);
            assert_eq!(provider.endpoint.stats().calls_denied, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn x2_no_one_is_named_as_a_caller_without_its_leave() {
    for realm in [Realm::default(), closed()] {
        let network = Network::new(1);
        let provider = node(&network, &realm, 1, "*", "infra").await;
        let (victim, liar) = (
            node(&network, &realm, 2, "*", "a").await,
            node(&network, &realm, 3, "*", "a").await,
        );
        provider
            .server
            .configure(name("shop.safe"), ServiceOptions::new().allow(id(2)));
        provider.server.serve(name("shop.safe"), whoami).unwrap();
        let (safe, other) = (name("shop.safe"), name("shop.other"));
        let to_provider = liar.connection(&provider).await;
        // The leave that the victim gave the liar is for another service; the one for the right service is another router's.
        let for_other_service = victim.connection(&liar).await.passage(&other);
        let for_other_router = victim.connection(&provider).await.passage(&safe);
        let own = to_provider.passage(&safe);
        for passage in [
            for_other_service,
            for_other_router,
            own,
            Bytes::from("nonsense"),
            vec![7; 5000].into(),
        ] {
            let call = to_provider.call(CallRequest::new(&safe, "").with_passage(passage));
            assert_eq!(call.await.unwrap().status, StatusCode::PermissionDenied);
        }
        assert_eq!(provider.endpoint.stats().calls_denied, 5);
        // With the victim's leave for this service the liar is its router, which the victim chose.
        let chosen = victim.connection(&liar).await.passage(&safe);
        let call = to_provider
            .call(CallRequest::new(&safe, "").with_passage(chosen))
            .await
            .unwrap();
        assert_eq!(call.status, StatusCode::Ok);
        // A router that is sent no leave passes nothing on.
        let onward = liar.client_of(&provider, "shop.safe");
        liar.server.route_through(&onward);
        let connection = victim.connection(&liar).await;
        let bare = CallRequest::new(&safe, "").with_route(Some(Route::default()));
        let reply = connection
            .call(bare.with_timeout(Duration::from_secs(5)))
            .await
            .unwrap();
        assert_eq!(reply.status, StatusCode::PermissionDenied);
    }
}
