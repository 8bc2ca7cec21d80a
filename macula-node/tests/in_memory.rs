//! Whole nodes on a network in memory, in paused time.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::{net::SocketAddr, time::Duration};

use macula_node::{
    AnswerSource, BootstrapAddr, BudgetConfig, Bytes, Client, ClientBuilder, Node, NodeBuilder, Provider, Request,
    Server, SimulatedClock, Status, W3c,
};
use macula_rpc::StaticResolver;
use macula_transport::{
    Config, Endpoint, Identity, Role,
    testing::{LinkConditions, Network},
};
use macula_wire::SecretKey;

const SERVICE: &str = "demo.echo";

fn addr(n: u8) -> SocketAddr {
    ([10, 0, 0, n], 9443).into()
}

/// A node that gets in through the first one.
fn builder(network: &Network, n: u8) -> NodeBuilder {
    let first = BootstrapAddr::from(macula_wire::Address::try_from(addr(1)).unwrap());
    Node::builder()
        .network(network)
        .identity(Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN])))
        .listen(addr(n))
        .bootstrap((n > 1).then_some(first))
}

async fn echo(request: Request) -> Result<Bytes, Status> {
    Ok(request.into_payload())
}

/// A node that serves, and gets in through the first one.
async fn node(network: &Network, n: u8) -> Node {
    let node = builder(network, n).serve(SERVICE, echo).start().await.unwrap();
    node.join().await.unwrap();
    node
}

/// Lets the mesh's time pass, which stands still while no task waits for it.
async fn pass(time: Duration) {
    tokio::time::sleep_until(tokio::time::Instant::now() + time).await;
}

/// Its own service is called over the network.
async fn call(node: &Node) -> Result<(), String> {
    let call = node.client().request(SERVICE).remote_only();
    call.send("x").await.map(|_| ()).map_err(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn n2_the_directory_finds_all_and_a_killed_provider_loses_no_call() {
    let network = Network::new(1);
    let mut nodes = Vec::new();
    for n in 1..=5 {
        nodes.push(node(&network, n).await);
    }
    pass(Duration::from_secs(10)).await;
    let found = nodes[0].lookup(&SERVICE.parse().unwrap()).await.unwrap();
    assert_eq!(found.len(), 5);
    network.kill(addr(5));
    nodes.pop();
    for _ in 0..30 {
        call(&nodes[1]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn n3_a_node_that_loses_the_mesh_calls_from_its_cache_and_comes_back_by_itself() {
    let network = Network::new(2);
    let mut nodes = Vec::new();
    for n in 1..=4 {
        nodes.push(node(&network, n).await);
    }
    pass(Duration::from_secs(10)).await;
    for node in &nodes {
        call(node).await.unwrap();
    }
    // The two on the far side cannot reach the first node, and have each other.
    network.partition([addr(3), addr(4)]);
    call(&nodes[2]).await.unwrap();
    pass(Duration::from_secs(120)).await;
    network.heal();
    // Records are renewed within their lifetime, and by then the two sides know each other again.
    pass(Duration::from_secs(300)).await;
    let found = nodes[3].lookup(&SERVICE.parse().unwrap()).await.unwrap();
    assert_eq!(found.len(), 4);
    call(&nodes[3]).await.unwrap();
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let story = async |seed| {
        let link = LinkConditions::new(Duration::from_millis(5))
            .with_jitter(Duration::from_millis(5))
            .with_loss(0.01);
        let network = Network::new(seed).with_link(link);
        let mut nodes = Vec::new();
        for n in 1..=6 {
            nodes.push(node(&network, n).await);
        }
        for _ in 0..10 {
            for node in &nodes {
                let outcome = call(node).await;
                network.note(format_args!("{outcome:?}"));
            }
        }
        network.trace_hash()
    };
    let run = |seed| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(story(seed))
    };
    let first = run(1);
    assert_eq!(run(1), first);
    assert_eq!(run(1), first);
    assert_ne!(run(2), first);
}

/// A second of the network's own time; the answers of the last one may have to arrive first.
const A_MOMENT: Duration = Duration::from_secs(1);

async fn shutdown_takes(network: &Network, node: Node) -> Duration {
    let before = network.elapsed();
    node.shutdown().await;
    network.elapsed() - before
}

#[tokio::test(start_paused = true)]
async fn n4_an_orderly_end_takes_a_moment_though_others_have_left_before() {
    let network = Network::new(3);
    let mut nodes = Vec::new();
    for n in 1..=4 {
        nodes.push(node(&network, n).await);
    }
    for node in &nodes {
        call(node).await.unwrap();
    }
    pass(Duration::from_secs(2)).await;
    while let Some(node) = nodes.pop() {
        let took = shutdown_takes(&network, node).await;
        assert!(took < A_MOMENT, "{} are left after {took:?}", nodes.len());
    }
}

#[tokio::test(start_paused = true)]
async fn n4_an_orderly_end_takes_a_moment_though_others_were_killed() {
    let network = Network::new(4);
    let mut nodes = Vec::new();
    for n in 1..=6 {
        nodes.push(node(&network, n).await);
    }
    pass(Duration::from_secs(2)).await;
    for n in 2..=6 {
        network.kill(addr(n));
    }
    let took = shutdown_takes(&network, nodes.remove(0)).await;
    assert!(took < A_MOMENT, "{took:?}");
}

/// The reply takes seven seconds on its way.
#[tokio::test(start_paused = true)]
async fn x1_n4_an_orderly_end_waits_until_a_large_reply_has_arrived() {
    let network = Network::new(6).with_link(LinkConditions::default().with_bandwidth(600_000));
    let first = node(&network, 1).await;
    let caller = builder(&network, 2).start().await.unwrap();
    caller.join().await.unwrap();
    let large = vec![7; 4_000_000];
    let long = Duration::from_secs(60);
    let request = caller.client().request(SERVICE).timeout(long).attempt_timeout(long);
    let (answer, ()) = tokio::join!(request.send(large.clone()), async {
        // The request takes as long.
        pass(Duration::from_secs(8)).await;
        first.shutdown().await;
    });
    assert!(*answer.unwrap().payload() == large);
}

#[tokio::test(start_paused = true)]
async fn n4_an_orderly_end_takes_no_longer_than_its_drain_time_though_a_call_never_ends() {
    let network = Network::new(7);
    let never = async |_: Request| std::future::pending::<Result<Bytes, Status>>().await;
    let first = builder(&network, 1).serve(SERVICE, never).drain_time(A_MOMENT);
    let first = first.start().await.unwrap();
    first.join().await.unwrap();
    let caller = builder(&network, 2).start().await.unwrap();
    caller.join().await.unwrap();
    let (answer, took) = tokio::join!(caller.call(SERVICE, "x"), async {
        pass(A_MOMENT).await;
        shutdown_takes(&network, first).await
    });
    assert!((A_MOMENT..2 * A_MOMENT).contains(&took), "{took:?}");
    let error = answer.unwrap_err().to_string();
    assert!(error.contains("the node shut down with calls unfinished"), "{error}");
}

/// A client has no calls to finish.
#[tokio::test(start_paused = true)]
async fn a_client_leaves_at_once() {
    let network = Network::new(5);
    let first = node(&network, 1).await;
    let bootstrap = BootstrapAddr::from(first.endpoints()[0].clone());
    let client = Node::builder().network(&network).client().bootstrap([bootstrap]);
    let client = client.start().await.unwrap();
    client.join().await.unwrap();
    client.call(SERVICE, "x").await.unwrap();
    let took = shutdown_takes(&network, client).await;
    assert!(took < A_MOMENT, "{took:?}");
    // The node it called has heard of it.
    pass(A_MOMENT).await;
    assert_eq!(first.transport_stats().connections, 0);
}

/// S3, F7, F9, F5: a node takes the settings of a client and of a server.
#[tokio::test(start_paused = true)]
async fn a_nodes_calls_and_services_are_as_it_was_told() {
    let network = Network::new(9);
    let start = async |n: u8, node: NodeBuilder| {
        let first = BootstrapAddr::from(macula_wire::Address::try_from(addr(1)).unwrap());
        let identity = Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN]));
        let node = node.network(&network).identity(identity).listen(addr(n));
        let node = node.bootstrap((n > 1).then_some(first)).start().await.unwrap();
        node.join().await.unwrap();
        node
    };
    let traced = async |request: Request| {
        let trace = request.metadata().get("traceparent").cloned();
        Ok::<_, Status>(trace.unwrap_or_default())
    };
    let never = async |_: Request| std::future::pending::<Result<String, Status>>().await;
    let _serving = start(
        1,
        Node::builder().serve("demo.trace", traced).serve("demo.never", never),
    )
    .await;
    let full = Node::builder().max_concurrent_calls(0).serve("demo.full", traced);
    let _full = start(2, full).await;
    let nothing = BudgetConfig {
        ratio: 0.0,
        per_second: 0.0,
        ..BudgetConfig::default()
    };
    let calls = move |calls: ClientBuilder| {
        calls
            .timeout(Duration::from_secs(2))
            .attempt_timeout(Duration::from_secs(1))
            .retry_budget(nothing)
    };
    let told = Node::builder().calls(calls).propagate(W3c);
    let (told, plain) = (start(3, told).await, start(4, Node::builder()).await);
    pass(Duration::from_secs(10)).await;

    assert!(told.call("demo.trace", "").await.unwrap().starts_with(b"00-"));
    assert_eq!(plain.call("demo.trace", "").await.unwrap(), "");
    let refused = plain.call("demo.full", "").await.unwrap_err();
    assert!(refused.to_string().contains("runs 0 calls already"), "{refused}");
    for (node, within) in [(&told, 1), (&plain, 3)] {
        let start = tokio::time::Instant::now();
        node.call("demo.never", "").await.unwrap_err();
        let took = start.elapsed().as_secs_f64();
        assert!((took - f64::from(within)).abs() < 0.2, "{took}");
    }
}

/// The call's order, step 4: when no node of the directory answers, the bootstrap node that is connected passes the call on.
#[tokio::test(start_paused = true)]
async fn n3_a_call_goes_through_the_router_when_the_directory_gives_no_answer() {
    let network = Network::new(10);
    let identity = |n: u8| Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN]));
    let endpoint = |n| macula_wire::Address::try_from(addr(n)).unwrap();
    // Neither knows anything of a DHT.
    let bind = async |n: u8, server: Server| {
        let config = Config::new(identity(n)).with_role(Role::Node).with_listen(addr(n));
        Endpoint::bind(config.with_network(&network), server).await.unwrap()
    };
    let (provider, router) = (Server::new(), Server::new());
    provider.serve(SERVICE.parse().unwrap(), echo).unwrap();
    let provides = bind(1, provider).await;
    let routes = bind(2, router.clone()).await;
    let known = Provider::new(provides.node_id(), [endpoint(1)]);
    let directory = StaticResolver::new().with_service(SERVICE.parse().unwrap(), [known]);
    let onward = Client::builder(&routes, directory).build();
    router.route_through(&onward);

    let caller = Node::builder().network(&network).identity(identity(3)).client();
    let caller = caller.bootstrap([endpoint(2).into()]).start().await.unwrap();
    caller.join().await.unwrap_err();
    let answer = caller.client().request(SERVICE).send("x").await.unwrap();
    assert_eq!(
        (answer.source(), &answer.payload()[..]),
        (AnswerSource::Router, &b"x"[..])
    );
}

/// It withdraws before it ends, so callers ask for a list without it and keep that.
#[tokio::test(start_paused = true)]
async fn n4_a_provider_that_restarts_in_order_is_called_again_within_5_s() {
    let network = Network::new(13);
    let caller = builder(&network, 1).start().await.unwrap();
    let (_stays, leaves) = (node(&network, 2).await, node(&network, 3).await);
    let id = leaves.id();
    let calls_it = async || {
        let answer = caller.client().request(SERVICE).send("x").await.unwrap();
        answer.provider().is_some_and(|provider| provider.node_id == id)
    };
    while !calls_it().await {
        pass(A_MOMENT / 10).await;
    }
    leaves.shutdown().await;
    drop(leaves);
    for _ in 0..30 {
        assert!(!calls_it().await);
        pass(A_MOMENT / 10).await;
    }
    let _again = node(&network, 3).await;
    let back = network.elapsed();
    while !calls_it().await {
        let waited = network.elapsed() - back;
        assert!(waited < Duration::from_secs(5), "{waited:?}");
        pass(A_MOMENT / 10).await;
    }
}

/// How long a node may take to be found after its clock is right again.
const SOON: Duration = Duration::from_secs(5);

/// Y6: a mesh of three and a node whose clock is slow by `by`. `correct` sets it right, and both sides find each other's services.
async fn found_once_correct(seed: u64, by: Duration, correct: impl FnOnce(&SimulatedClock)) {
    let network = Network::new(seed);
    let mut mesh = Vec::new();
    for n in 1..=3 {
        mesh.push(node(&network, n).await);
    }
    let clock = SimulatedClock::new();
    clock.step(-i64::try_from(by.as_millis()).unwrap());
    let slow = builder(&network, 4).clock(&clock).serve("demo.slow", echo);
    let slow = slow.start().await.unwrap();
    slow.join().await.unwrap();
    pass(Duration::from_secs(10)).await;
    // A lookup by a clock that is wrong says so.
    let find = async |node: &Node, service: &str| {
        let found = node.lookup(&service.parse().unwrap()).await;
        found.map_or(0, |providers| providers.len())
    };
    assert_eq!((find(&mesh[1], "demo.slow").await, find(&slow, SERVICE).await), (0, 0));

    correct(&clock);
    pass(SOON).await;
    assert_eq!((find(&mesh[1], "demo.slow").await, find(&slow, SERVICE).await), (1, 3));
    mesh[2].call("demo.slow", "x").await.unwrap();
    slow.call(SERVICE, "x").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn d14_a_node_is_found_and_finds_once_its_wall_clock_is_set_right() {
    let hour = Duration::from_secs(3600);
    found_once_correct(11, hour, |clock| clock.step(3_600_000)).await;
}

#[tokio::test(start_paused = true)]
async fn d14_a_node_is_found_and_finds_once_its_machine_is_awake() {
    let slept = Duration::from_secs(600);
    found_once_correct(12, slept, |clock| clock.suspend(slept)).await;
}

/// Y6: its records have ended meanwhile, and those who come later have never heard of it.
#[tokio::test(start_paused = true)]
async fn y6_a_provider_that_stood_still_for_600_s_is_found_by_a_newcomer_within_5_s() {
    let network = Network::new(14);
    let first = builder(&network, 1).start().await.unwrap();
    let _provider = node(&network, 2).await;
    pass(Duration::from_secs(10)).await;
    network.pause(addr(2));
    pass(Duration::from_secs(600)).await;
    let service = SERVICE.parse().unwrap();
    // Of the only other node that it knows it hears nothing.
    assert!(first.lookup(&service).await.map_or(true, |found| found.is_empty()));
    let newcomer = builder(&network, 3).client().start().await.unwrap();
    newcomer.join().await.unwrap();

    network.resume(addr(2));
    pass(SOON).await;
    assert_eq!(newcomer.lookup(&service).await.unwrap().len(), 1);
    call(&newcomer).await.unwrap();
}

/// Y6: it has asked for the service before, and knows that there is none.
#[tokio::test(start_paused = true)]
async fn y6_a_caller_that_stood_still_for_90_s_calls_what_was_published_meanwhile_within_5_s() {
    let network = Network::new(15);
    let _first = builder(&network, 1).start().await.unwrap();
    let caller = builder(&network, 2).client().start().await.unwrap();
    caller.join().await.unwrap();
    call(&caller).await.unwrap_err();
    network.pause(addr(2));
    let _provider = node(&network, 3).await;
    pass(Duration::from_secs(90)).await;

    network.resume(addr(2));
    let awake = network.elapsed();
    call(&caller).await.unwrap();
    let took = network.elapsed() - awake;
    assert!(took < SOON, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn d14_a_clock_that_is_set_forth_and_back_loses_no_provider() {
    let network = Network::new(13);
    let clock = SimulatedClock::new();
    let mut mesh = vec![node(&network, 1).await, node(&network, 2).await];
    let moved = builder(&network, 3)
        .clock(&clock)
        .serve(SERVICE, echo)
        .start()
        .await
        .unwrap();
    moved.join().await.unwrap();
    mesh.push(moved);
    pass(Duration::from_secs(10)).await;
    for by in [7_200_000, -7_200_000, -86_400_000, 86_400_000] {
        clock.step(by);
        pass(SOON).await;
        clock.step(-by);
        pass(SOON).await;
        for node in &mesh {
            let found = node.lookup(&SERVICE.parse().unwrap()).await.unwrap();
            assert_eq!(found.len(), 3, "after a step of {by} ms and back");
        }
    }
}
