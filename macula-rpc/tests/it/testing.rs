//! The mesh in memory, as its users see it, in paused time.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use macula_rpc::{
    CallError, Cause, Client, NodeId, Request, Requests, ResolveOptions, Server, Status, Strategy,
    testing::{LinkConditions, Mesh},
    typed,
};
use tokio::time::Instant;

use crate::mesh::{name, pass};

/// A mesh whose nodes of these names serve `api.compute`, which answers with the node's name.
fn mesh(seed: u64, names: &[&'static str]) -> Mesh {
    let mesh = Mesh::new(seed);
    for &name in names {
        mesh.node(name)
            .serve("api.compute", move |_: Request| async move { Ok::<_, Status>(name) });
    }
    mesh
}

async fn answers(client: &Client, calls: usize) -> Vec<String> {
    let mut answers = Vec::new();
    for _ in 0..calls {
        let answer = client.call("api.compute", "").await.unwrap();
        answers.push(String::from_utf8(answer.to_vec()).unwrap());
    }
    answers
}

async fn outcomes(client: &Client, calls: usize) -> Vec<String> {
    let mut outcomes = Vec::new();
    for _ in 0..calls {
        let outcome = client.call("api.compute", "").await;
        outcomes.push(outcome.map_or_else(|error| error.to_string(), |node| format!("{node:?}")));
    }
    outcomes
}

#[tokio::test(start_paused = true)]
async fn nodes_find_each_other_and_a_killed_one_costs_a_failover_and_no_call() {
    let mesh = mesh(1, &["a", "b", "c"]);
    let client = mesh.node("caller").client_builder().strategy(Strategy::First).build();
    assert_eq!(answers(&client, 2).await, ["a", "a"]);
    mesh.kill("a");
    // The directory still lists it; its known failures make the next calls skip it.
    assert_eq!(
        client
            .providers(&name(), ResolveOptions::default())
            .await
            .unwrap()
            .len(),
        3
    );
    assert!(answers(&client, 20).await.iter().all(|node| node == "b"));
    mesh.kill("b");
    assert_eq!(answers(&client, 1).await, ["c"]);
    mesh.kill("c");
    let error = client.call("api.compute", "").await.unwrap_err();
    assert!(matches!(error, CallError::AllProvidersFailed { .. }), "{error}");
    for name in ["a", "b", "c"] {
        mesh.restart(name);
    }
    assert_eq!(answers(&client, 1).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn f7_a_timeout_of_an_hour_is_over_at_once() {
    let mesh = Mesh::new(2);
    mesh.node("a").serve("api.compute", async |_: Request| {
        std::future::pending::<Result<String, Status>>().await
    });
    let hour = Duration::from_secs(3600);
    let start = Instant::now();
    let call = mesh.node("caller").client().request("api.compute");
    let error = call.timeout(hour).attempt_timeout(hour).send("").await.unwrap_err();
    assert!(matches!(error.attempts()[0].cause, Cause::TimedOut(_)), "{error}");
    assert!(start.elapsed() >= hour);
}

#[tokio::test(start_paused = true)]
async fn what_is_cut_fails_over_and_what_is_healed_is_called_again() {
    let mesh = mesh(3, &["a", "b"]);
    let client = mesh.node("caller").client_builder().strategy(Strategy::First).build();
    let neighbour = mesh
        .node("neighbour")
        .client_builder()
        .strategy(Strategy::First)
        .build();
    assert_eq!(answers(&client, 1).await, ["a"]);
    for cut in [&(|| mesh.cut("caller", "a")) as &dyn Fn(), &|| {
        mesh.partition(["a", "neighbour"])
    }] {
        cut();
        assert_eq!(answers(&client, 1).await, ["b"]);
        assert_eq!(answers(&neighbour, 1).await, ["a"]);
        mesh.heal();
        // The breaker lets a probe through again after its pause.
        pass(Duration::from_secs(600)).await;
        assert!(answers(&client, 10).await.contains(&"a".to_owned()));
    }
    mesh.cut("caller", "b");
    mesh.restore("caller", "b");
    mesh.kill("a");
    assert_eq!(answers(&client, 1).await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn n4_a_node_that_stops_in_order_finishes_what_it_runs_and_is_listed_no_more() {
    let mesh = Mesh::new(4);
    mesh.node("a").serve("api.compute", async |_: Request| {
        pass(Duration::from_secs(1)).await;
        Ok::<_, Status>("done")
    });
    let client = mesh.node("caller").client();
    let call = client.request("api.compute").attempt_timeout(Duration::from_secs(5));
    let (answer, ()) = tokio::join!(call.send(""), async {
        pass(Duration::from_millis(500)).await;
        mesh.stop("a").await;
    });
    assert_eq!(answer.unwrap().payload(), "done");
    let error = client.call("api.compute", "").await.unwrap_err();
    assert!(matches!(error, CallError::ServiceNotFound { .. }), "{error}");
    mesh.restart("a");
    assert_eq!(client.call("api.compute", "").await.unwrap(), "done");
}

#[tokio::test(start_paused = true)]
async fn without_its_directory_a_client_says_so_until_it_is_back() {
    let mesh = mesh(5, &["a"]);
    let client = mesh.node("caller").client();
    mesh.lose_directory();
    let error = client.call("api.compute", "").await.unwrap_err();
    assert!(matches!(error, CallError::Unresolved { .. }), "{error}");
    mesh.heal();
    assert_eq!(answers(&client, 1).await, ["a"]);
    // A withdrawn service has no provider.
    mesh.node("a").server().withdraw(&name());
    let error = client.call("api.compute", "").await.unwrap_err();
    assert!(matches!(error, CallError::ServiceNotFound { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn typed_calls_and_streams_are_on_it_as_on_any_mesh() {
    let mesh = Mesh::new(6).with_link(LinkConditions::new(Duration::from_millis(20)).with_loss(0.02));
    let shout = typed(async |request: Request<String>| Ok::<_, Status>(request.into_payload().to_uppercase()));
    let echo = async |request: Request<Requests>| {
        let next = async |mut requests: Requests| Some((requests.next().await.transpose()?, requests));
        Ok::<_, Status>(stream::unfold(request.into_payload(), next).boxed())
    };
    mesh.node("a")
        .serve("text.upper", shout)
        .serve_streaming("text.echo", echo);
    let client = mesh.node("caller").client();
    let upper: String = client.call_typed("text.upper", "hello".to_owned()).await.unwrap();
    assert_eq!(upper, "HELLO");
    let words = stream::iter((0..50_u8).map(|n| Bytes::from(vec![n; 5_000])));
    let mut replies = client.request("text.echo").stream(words).await.unwrap();
    for n in 0..50_u8 {
        assert_eq!(replies.next().await.unwrap().unwrap()[..], [n; 5_000]);
    }
    assert_eq!(replies.next().await.unwrap(), None);
}

/// A node's name and the mesh's seed are all that its identity depends on.
#[tokio::test(start_paused = true)]
async fn names_and_seeds_make_identities() {
    let ids = |seed: u64| -> BTreeMap<NodeId, String> {
        let mesh = Mesh::new(seed);
        let names = (0..50)
            .map(|n| format!("node-{n}"))
            .chain(["a".into(), "b".into(), "".into()]);
        names.map(|name| (mesh.node(&name).id(), name)).collect()
    };
    let (once, again, other) = (ids(1), ids(1), ids(2));
    assert_eq!((once.len(), &once), (53, &again));
    assert!(other.keys().all(|id| !once.contains_key(id)));
}

/// Choices, failovers, delays and losses: a mesh under faults does the same each time.
#[test]
fn the_same_seed_gives_the_same_story_and_another_seed_another() {
    let story = async |seed| {
        let link = LinkConditions::new(Duration::from_millis(5))
            .with_jitter(Duration::from_millis(10))
            .with_loss(0.03);
        let mesh = mesh(seed, &["a", "b", "c", "d", "e"]).with_link(link);
        let client = mesh.node("caller").client();
        let mut story = outcomes(&client, 30).await;
        mesh.kill("b");
        mesh.partition(["c", "d"]);
        story.extend(outcomes(&client, 30).await);
        mesh.heal();
        mesh.restart("b");
        story.extend(outcomes(&client, 30).await);
        (story, mesh.network().trace_hash(), mesh.network().traffic())
    };
    let run = |seed| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(story(seed))
    };
    let first = run(1);
    assert!(first.2.lost > 0, "{:?}", first.2);
    assert_eq!(run(1), first);
    assert_eq!(run(1), first);
    assert_ne!(run(2).1, first.1);
}

#[test]
#[should_panic(expected = "the mesh has no node \"a\"")]
fn what_is_done_to_a_node_that_is_not_there_fails_the_test() {
    Mesh::new(1).kill("a");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the node \"a\" does not run")]
async fn a_killed_node_has_no_client() {
    let mesh = mesh(1, &["a"]);
    mesh.kill("a");
    let _ = mesh.node("a").client();
}

#[tokio::test(start_paused = true)]
async fn a_node_serves_its_own_calls_when_its_client_is_told_to_and_does_not_dial_itself() {
    let mesh = mesh(9, &["a"]);
    let node = mesh.node("a");
    let error = node.client().call("api.compute", "").await.unwrap_err();
    assert!(error.to_string().contains("is this node itself"), "{error}");
    let home = node.client_builder().local_first(node.server()).build();
    assert_eq!(answers(&home, 1).await, ["a"]);
    mesh.node("b")
        .serve("api.compute", async |_: Request| Ok::<_, Status>("b"));
    assert!(answers(&node.client(), 5).await.iter().all(|answer| answer == "b"));
}

/// Generated clients and servers: the same failover, in the same paused time.
#[cfg(feature = "tonic")]
#[tokio::test(start_paused = true)]
async fn generated_stubs_are_on_it_as_on_any_mesh() {
    use macula_rpc::Channel;

    use crate::conformance::{
        schema::{Empty, Request, conformance_client::ConformanceClient},
        serve_on_two,
    };

    let mesh = Mesh::new(7);
    let _watched = serve_on_two(&mesh);
    let client = mesh.node("caller").client_builder().strategy(Strategy::First).build();
    let mut stub = ConformanceClient::new(Channel::new(client.clone()).with_attempt_timeout(Duration::from_secs(5)));
    let provider = async |stub: &mut ConformanceClient<Channel>| {
        let reply = stub.unary_call(Request::default()).await.unwrap();
        reply.into_inner().provider
    };
    assert_eq!(provider(&mut stub).await, "a");
    mesh.kill("a");
    assert_eq!(provider(&mut stub).await, "b");
    let mut late = tonic::Request::new(Empty {});
    late.set_timeout(Duration::from_secs(600));
    let error = ConformanceClient::new(Channel::new(client))
        .sleep(late)
        .await
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
}

/// F7: the time that a handler of this process takes to refuse is the call's, and not that of the provider asked next.
#[tokio::test(start_paused = true)]
async fn f7_a_provider_has_its_own_time_after_a_slow_refusal_here() {
    let mesh = mesh(1, &["a"]);
    let here = Server::new();
    let refuse = async |_: Request| {
        pass(Duration::from_secs(4)).await;
        Err::<Bytes, _>(Status::refused("not here"))
    };
    here.serve(name(), refuse).unwrap();
    let client = mesh.node("caller").client_builder().local_first(here).build();
    let answer = client.request(name()).send("").await.unwrap();
    assert_eq!(
        (answer.payload().as_ref(), answer.failed_attempts().len()),
        (&b"a"[..], 0)
    );
}
