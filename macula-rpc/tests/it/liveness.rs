//! What the client makes of links that fall silent, are lost, or have no place, in paused time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use macula_rpc::{
    BudgetConfig, CallError, Client, Link, Provider, Request, Resolve, ResolveError, ResolveOptions, Resolved, Server,
    ServiceName, Source, StaticResolver, Status, Strategy,
    testing::{LinkConditions, Mesh, Network},
};
use macula_transport::{Config, Endpoint, Identity, Limits, NoService, PoolConfig};
use tokio::time::Instant;

use crate::mesh::{name, pass};

const PATIENCE: Duration = Duration::from_secs(30);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn config(network: &Network, identity: &Identity) -> Config {
    Config::new(identity.clone()).with_network(network)
}

/// A server of `api.compute` whose answer is `answer`. `api.hang` never answers.
fn answering(answer: &'static str) -> Server {
    let server = Server::new();
    let serve = move |_: Request| async move { Ok::<_, Status>(answer) };
    server.serve(name(), serve).unwrap();
    let hang = async |_: Request| std::future::pending::<Result<Bytes, Status>>().await;
    server.serve(hanging(), hang).unwrap();
    server
}

fn hanging() -> ServiceName {
    "api.hang".parse().unwrap()
}

async fn host(network: &Network, answer: &'static str) -> Endpoint {
    let config = config(network, &Identity::generate().unwrap());
    Endpoint::bind(config, answering(answer)).await.unwrap()
}

fn provider(endpoint: &Endpoint) -> Provider {
    Provider::new(endpoint.node_id(), [endpoint.local_addr().try_into().unwrap()])
}

async fn caller(network: &Network) -> Endpoint {
    let config = config(network, &Identity::generate().unwrap());
    Endpoint::bind(config, NoService).await.unwrap()
}

async fn answer(client: &Client) -> Bytes {
    client.call(name(), "").await.unwrap()
}

/// The provider has another connection, on which it is heard: it was killed and started again elsewhere, say.
#[tokio::test(start_paused = true)]
async fn l3_a_provider_that_is_heard_over_another_connection_stays_the_choice() {
    let network = Network::new(1);
    let (caller, second) = (caller(&network).await, host(&network, "second").await);
    let identity = Identity::generate().unwrap();
    let first = Endpoint::bind(config(&network, &identity), answering("first"))
        .await
        .unwrap();
    let directory = StaticResolver::new().with_service(name(), [provider(&first), provider(&second)]);
    let client = Client::builder(&caller, directory).strategy(Strategy::First).build();
    assert_eq!(answer(&client).await, "first");

    network.kill(first.local_addr());
    let again = Endpoint::bind(config(&network, &identity), answering("again"))
        .await
        .unwrap();
    let at = [caller.local_addr().try_into().unwrap()];
    let _dialed = again.pool().get(&caller.node_id(), &at).await.unwrap();
    // This call finds the silence.
    let start = Instant::now();
    answer(&client).await;
    assert!(start.elapsed() < millis(200), "{:?}", start.elapsed());
    pass(millis(200)).await;
    assert_eq!(answer(&client).await, "again");
    // And once the old connection is given up.
    pass(Duration::from_secs(10)).await;
    assert_eq!(answer(&client).await, "again");
}

/// A directory that lists one provider that is not there, and from a moment on another one.
struct Changing {
    dead: Arc<[Provider]>,
    live: Arc<[Provider]>,
    changes: Instant,
    /// How long a question past the cache takes.
    takes: Duration,
    asked: AtomicUsize,
}

impl Resolve for Changing {
    fn resolve<'a>(
        &'a self,
        _: &'a ServiceName,
        options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        async move {
            let mut providers = &self.dead;
            if options.force_refresh {
                self.asked.fetch_add(1, SeqCst);
                pass(self.takes).await;
                if Instant::now() >= self.changes {
                    providers = &self.live;
                }
            }
            Ok(Resolved {
                providers: Arc::clone(providers),
                source: Source::Static,
            })
        }
        .boxed()
    }
}

/// A caller whose directory takes so long and changes after a while.
async fn changing(takes: Duration, changes: Duration) -> (Arc<Changing>, Client, [Endpoint; 2]) {
    let network = Network::new(2);
    let (caller, live) = (caller(&network).await, host(&network, "live").await);
    let gone = host(&network, "gone").await;
    let dead = provider(&gone);
    network.kill(gone.local_addr());
    let directory = Arc::new(Changing {
        dead: [dead].into(),
        live: [provider(&live)].into(),
        changes: Instant::now() + changes,
        takes,
        asked: AtomicUsize::new(0),
    });
    let client = Client::builder(&caller, Arc::clone(&directory)).build();
    (directory, client, [caller, live])
}

#[tokio::test(start_paused = true)]
async fn d12_a_call_that_ends_leaves_its_question_to_the_others_that_wait() {
    let (directory, client, _nodes) = changing(Duration::from_secs(1), Duration::ZERO).await;
    let call = |timeout| {
        let call = client.request(name()).timeout(timeout).attempt_timeout(millis(100));
        call.send("")
    };
    let (first, second) = tokio::join!(call(millis(200)), call(PATIENCE));
    assert!(first.is_err());
    assert_eq!(second.unwrap().payload(), "live");
    assert_eq!(directory.asked.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn d12_a_call_that_has_lasted_for_long_waits_for_a_list_of_now() {
    let (_directory, client, _nodes) = changing(Duration::ZERO, Duration::from_secs(2)).await;
    let long = client.request(name()).attempt_timeout(Duration::from_secs(3));
    // Another call asks in the middle of it, before the list changes.
    let other = async {
        pass(millis(1_400)).await;
        let call = client.request(name()).attempt_timeout(millis(100));
        call.send("").await
    };
    let (long, other) = tokio::join!(long.send(""), other);
    assert!(other.is_err());
    assert_eq!(long.unwrap().payload(), "live");
}

/// The state of the only provider of a client's only service.
fn link(client: &Client, provider: &Provider) -> Link {
    let called = client.called();
    let known = called[0].providers.iter();
    let mut known = known.filter(|known| known.provider.node_id == provider.node_id);
    known.next().unwrap().link
}

/// Another provider has been down for long, so its next dial is far away.
#[tokio::test(start_paused = true)]
async fn h5_a_provider_that_is_lost_is_dialed_soon_although_others_have_been_down_for_long() {
    let mesh = Mesh::new(3);
    for node in ["a", "b"] {
        mesh.node(node)
            .serve("api.compute", move |_: Request| async move { Ok::<_, Status>(node) });
    }
    let client = mesh.node("caller").client();
    let b = Provider::new(mesh.node("b").id(), []);
    for _ in 0..10 {
        answer(&client).await;
    }
    mesh.kill("a");
    for pause in [10_000, 300, 600, 900] {
        let until = Instant::now() + millis(pause);
        while Instant::now() < until {
            answer(&client).await;
            pass(millis(100)).await;
        }
        mesh.stop("b").await;
        mesh.restart("b");
        let start = Instant::now();
        while link(&client, &b) == Link::Up {
            pass(millis(1)).await;
        }
        while link(&client, &b) != Link::Up {
            pass(millis(1)).await;
        }
        assert!(start.elapsed() < millis(200), "{:?}", start.elapsed());
    }
}

/// Y4: twenty clients call while the provider is gone for 100 ms and comes back with its key and its port. Their calls have seconds left.
#[tokio::test(start_paused = true)]
async fn h6_an_only_provider_that_restarts_in_place_fails_no_call() {
    for seed in 0..5 {
        let link = LinkConditions::new(millis(1)).with_jitter(millis(1));
        let mesh = Mesh::new(seed).with_link(link);
        let serve = async |_: Request| Ok::<_, Status>("a");
        mesh.node("a").serve("api.compute", serve);
        let clients: Vec<Client> = (0..20).map(|n| mesh.node(&format!("caller-{n}")).client()).collect();
        for client in &clients {
            answer(client).await;
        }
        let calls = clients.iter().map(async |client| {
            for _ in 0..100 {
                assert_eq!(answer(client).await, "a");
                pass(millis(5)).await;
            }
        });
        let restarts = async {
            pass(millis(50 + seed)).await;
            mesh.kill("a");
            pass(millis(100)).await;
            mesh.restart("a");
        };
        futures::join!(futures::future::join_all(calls), restarts);
    }
}

#[tokio::test(start_paused = true)]
async fn h1_a_full_pool_says_nothing_about_the_providers_health() {
    let network = Network::new(4);
    let pool = PoolConfig {
        max_connections: 1,
        ..PoolConfig::default()
    };
    let caller = config(&network, &Identity::generate().unwrap()).with_pool(pool);
    let caller = Endpoint::bind(caller, NoService).await.unwrap();
    let (busy, idle) = (host(&network, "busy").await, host(&network, "idle").await);
    let directory = StaticResolver::new()
        .with_service(hanging(), [provider(&busy)])
        .with_service(name(), [provider(&idle)]);
    let client = Client::builder(&caller, directory).build();
    let hangs = client.request(hanging()).timeout(PATIENCE).attempt_timeout(PATIENCE);
    let hangs = tokio::spawn(hangs.send(""));
    pass(millis(100)).await;
    for _ in 0..6 {
        let call = client.request(name()).timeout(millis(50));
        let error = call.send("").await.unwrap_err();
        assert!(error.to_string().contains("connections"), "{error}");
    }
    hangs.abort();
    assert_healthy(&client);
    assert_eq!(answer(&client).await, "idle");
}

#[tokio::test(start_paused = true)]
async fn h1_a_request_that_is_too_large_says_nothing_about_the_providers_health() {
    let network = Network::new(5);
    let limits = Limits {
        max_message_bytes: 1 << 20,
        ..Limits::default()
    };
    let small = config(&network, &Identity::generate().unwrap()).with_limits(limits);
    let small = Endpoint::bind(small, answering("small")).await.unwrap();
    let caller = caller(&network).await;
    let directory = StaticResolver::new().with_service(name(), [provider(&small)]);
    let client = Client::builder(&caller, directory).build();
    assert_eq!(answer(&client).await, "small");
    for _ in 0..6 {
        let error = client.call(name(), vec![0; 2 << 20]).await.unwrap_err();
        assert!(matches!(error, CallError::RequestTooLarge { .. }), "{error}");
    }
    assert_healthy(&client);
}

#[track_caller]
fn assert_healthy(client: &Client) {
    let called = client.called();
    let service = called.iter().find(|called| called.service == name()).unwrap();
    let provider = &service.providers[0];
    assert_eq!((provider.recent.failed, provider.consecutive_failures), (0, 0));
}

/// The provider has too much to do and closes a connection for it. That is load, and the retry is more of it.
#[tokio::test(start_paused = true)]
async fn l5_a_call_lost_with_a_connection_that_made_room_is_charged() {
    let network = Network::new(6);
    let limits = Limits {
        max_accepted_per_peer: 1,
        ..Limits::default()
    };
    let full = config(&network, &Identity::generate().unwrap()).with_limits(limits);
    let full = Endpoint::bind(full, answering("full")).await.unwrap();
    let other = host(&network, "other").await;
    let identity = Identity::generate().unwrap();
    let caller = Endpoint::bind(config(&network, &identity), NoService).await.unwrap();
    let directory = StaticResolver::new().with_service(hanging(), [provider(&full), provider(&other)]);
    let nothing = BudgetConfig {
        ratio: 0.0,
        per_second: 0.0,
        ..BudgetConfig::default()
    };
    let client = Client::builder(&caller, directory)
        .strategy(Strategy::First)
        .retry_budget(nothing)
        .build();
    let call = tokio::spawn({
        let call = client.request(hanging()).timeout(PATIENCE).attempt_timeout(PATIENCE);
        call.send("")
    });
    pass(millis(100)).await;
    // The same node dials once more.
    let again = Endpoint::bind(config(&network, &identity), NoService).await.unwrap();
    let at = [full.local_addr().try_into().unwrap()];
    let _dialed = again.pool().get(&full.node_id(), &at).await.unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::NotRetried { .. }), "{error}");
    assert_eq!(link(&client, &provider(&full)), Link::Idle);
}
