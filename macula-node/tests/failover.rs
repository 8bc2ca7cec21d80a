//! N2 of the specification, over real processes: three nodes advertise one service, one client learns all three from the
//! DHT, and one of them is killed, or hangs.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{FutureExt as _, future::join_all};
use macula_node::{Cause, Node, NodeId, ServiceName, Strategy};
use rustix::process::Signal;
use support::{NodeProcess, mesh};

const SERVICE: &str = "demo.echo";

fn service() -> ServiceName {
    SERVICE.parse().unwrap()
}

fn id(node: &NodeProcess) -> NodeId {
    node.id.parse().unwrap()
}

/// A client that knows the first node only.
async fn client(nodes: &[NodeProcess]) -> Node {
    let node = Node::builder()
        .client()
        .bootstrap([nodes[0].pinned().parse().unwrap()])
        .start()
        .await
        .unwrap();
    node.join().await.unwrap();
    node
}

/// Makes `count` calls, all of which must succeed, and counts the answers of each provider and the failed attempts.
async fn calls(
    client: &Node,
    count: usize,
    attempt_timeout: Duration,
) -> (BTreeMap<NodeId, usize>, Vec<(NodeId, Cause)>) {
    let (mut answered, mut failed) = (BTreeMap::new(), Vec::new());
    for number in 0..count {
        let call = client
            .client()
            .request(SERVICE)
            .strategy(Strategy::RoundRobin)
            .attempt_timeout(attempt_timeout);
        let answer = call.send(number.to_string()).await.unwrap();
        assert_eq!(answer.payload(), number.to_string().as_bytes());
        *answered.entry(answer.provider().unwrap().node_id).or_default() += 1;
        failed.extend(
            answer
                .failed_attempts()
                .iter()
                .map(|attempt| (attempt.node_id, attempt.cause.clone())),
        );
    }
    (answered, failed)
}

#[tokio::test]
async fn n2_killing_one_of_three_providers_loses_no_call() {
    let mut nodes = mesh(3, "demo.echo=echo");
    let client = client(&nodes).await;

    // All three come from the DHT, and they listen at three different endpoints.
    let providers = client.lookup(&service()).await.unwrap();
    let endpoints: BTreeSet<_> = providers
        .iter()
        .flat_map(|provider| provider.endpoints.clone())
        .collect();
    assert_eq!(
        endpoints,
        nodes.iter().map(|node| node.endpoint.parse().unwrap()).collect()
    );

    let (answered, failed) = calls(&client, 30, Duration::from_secs(5)).await;
    assert_eq!(
        answered,
        nodes.iter().map(|node| (id(node), 10)).collect(),
        "S2: in turn"
    );
    assert!(failed.is_empty(), "{failed:?}");
    // P1: thirty calls, three connections.
    assert_eq!(client.connection_stats().opened, 3);

    let killed = id(&nodes[2]);
    nodes[2].kill();
    let (answered, failed) = calls(&client, 60, Duration::from_millis(300)).await;
    assert_eq!(answered.get(&killed), None);
    assert_eq!(answered.values().sum::<usize>(), 60);
    assert!(!failed.is_empty(), "the killed provider was never tried");
    assert!(failed.iter().all(|(node, _)| *node == killed), "{failed:?}");

    // H2: it is given up for a while; the calls do not try it one by one.
    assert!(
        failed.len() < 20,
        "{} of 60 calls tried the dead provider",
        failed.len()
    );
    client.shutdown().await;
}

#[tokio::test]
async fn n2_killing_the_bootstrap_node_loses_no_call() {
    let mut nodes = mesh(3, "demo.echo=echo");
    let client = client(&nodes).await;
    calls(&client, 3, Duration::from_secs(5)).await;
    nodes[0].kill();
    let (answered, _) = calls(&client, 30, Duration::from_millis(300)).await;
    assert_eq!(answered.values().sum::<usize>(), 30);
    client.shutdown().await;
}

#[tokio::test]
async fn l2_calls_to_a_hung_provider_are_made_elsewhere_before_their_time_is_up() {
    let nodes = mesh(3, "demo.echo=echo");
    let client = client(&nodes).await;
    calls(&client, 3, Duration::from_secs(5)).await;

    let hung = id(&nodes[1]);
    nodes[1].hang();
    let (answered, failed) = calls(&client, 9, Duration::from_millis(300)).await;
    nodes[1].signal(Signal::CONT);

    assert_eq!(answered.get(&hung), None);
    assert!(failed.iter().all(|(node, _)| *node == hung), "{failed:?}");
    // A silent provider is left waiting beside the one that answers.
    let waited_out = failed.iter().any(|(_, cause)| matches!(cause, Cause::TimedOut(_)));
    assert!(!waited_out, "an attempt waited for the hung provider: {failed:?}");
    client.shutdown().await;
}

#[tokio::test]
async fn a_provider_that_comes_back_on_its_port_is_called_again() {
    let folder = tempfile::tempdir().unwrap();
    let identity = folder.path().join("identity");
    let identity = identity.to_str().unwrap();
    let first = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    let args = [
        "--serve",
        "demo.echo=echo",
        "--identity",
        identity,
        "--bootstrap",
        &first.pinned(),
    ];
    let mut second = NodeProcess::start(&args);
    let address = second.address().to_owned();
    let returning = id(&second);
    let nodes = [first];
    let client = client(&nodes).await;
    assert_eq!(client.lookup(&service()).await.unwrap().len(), 2);

    calls(&client, 2, Duration::from_secs(5)).await;
    second.kill();
    calls(&client, 4, Duration::from_millis(300)).await;
    let second = NodeProcess::start_at(&address, &args);
    assert_eq!(id(&second), returning);

    // No number of calls is promised, but that it comes back is; each call succeeds meanwhile.
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let (answered, _) = calls(&client, 2, Duration::from_millis(300)).await;
        if answered.contains_key(&returning) {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "the provider was not found again");
        tokio::task::yield_now().await;
    }
    client.shutdown().await;
}

/// A provider beside others, with these further arguments.
fn provider(bootstrap: &NodeProcess, args: &[&str]) -> NodeProcess {
    let bootstrap = bootstrap.pinned();
    NodeProcess::start(&[&["--serve", "demo.echo=echo", "--bootstrap", &bootstrap], args].concat())
}

/// Y1: each provider is replaced by one with a new key at a new port, and leaves in order. The client's list is older than all of them.
#[tokio::test]
async fn y1_providers_that_are_replaced_one_by_one_fail_no_call() {
    let bootstrap = [NodeProcess::start(&[])];
    let mut providers: Vec<_> = (0..3).map(|_| provider(&bootstrap[0], &[])).collect();
    let client = client(&bootstrap).await;
    calls(&client, 9, Duration::from_secs(5)).await;
    let mut leaving = Vec::new();
    for old in &mut providers {
        let new = provider(&bootstrap[0], &[]);
        let mut old = std::mem::replace(old, new);
        old.signal(Signal::TERM);
        let left = tokio::task::spawn_blocking(move || old.wait());
        calls(&client, 30, Duration::from_secs(5)).await;
        leaving.push(left);
    }
    for left in leaving {
        assert_eq!(left.await.unwrap(), Some(0));
    }
    let (answered, _) = calls(&client, 30, Duration::from_secs(5)).await;
    let new: BTreeSet<_> = providers.iter().map(id).collect();
    assert!(answered.keys().all(|id| new.contains(id)), "{answered:?} of {new:?}");
    client.shutdown().await;
}

/// Y2: the only provider is killed and starts again with its key at another port. The client has found it dead, and still has its old
/// address.
#[tokio::test]
async fn y2_a_provider_that_comes_back_at_another_port_is_called_there_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let identity = folder.path().join("identity");
    let identity = ["--identity", identity.to_str().unwrap()];
    let bootstrap = [NodeProcess::start(&[])];
    let mut first = provider(&bootstrap[0], &identity);
    let client = client(&bootstrap).await;
    calls(&client, 3, Duration::from_secs(5)).await;
    first.kill();
    client.client().request(SERVICE).send("x").await.unwrap_err();
    let again = provider(&bootstrap[0], &identity);
    assert_eq!(id(&again), id(&first));
    assert_ne!(again.endpoint, first.endpoint);
    let (answered, _) = calls(&client, 20, Duration::from_secs(5)).await;
    assert_eq!(answered.get(&id(&again)), Some(&20));
    client.shutdown().await;
}

/// Y14: most providers die at once under load; the budget and the attempts are left for the one that lives.
#[tokio::test]
async fn y14_two_of_three_providers_that_are_killed_at_once_fail_no_call() {
    let bootstrap = [NodeProcess::start(&[])];
    let mut providers: Vec<_> = (0..3).map(|_| provider(&bootstrap[0], &[])).collect();
    let client = client(&bootstrap).await;
    calls(&client, 9, Duration::from_secs(5)).await;
    let load = || join_all((0..100).map(|n| client.client().request(SERVICE).send(n.to_string())));
    let mut under_way = load();
    assert!((&mut under_way).now_or_never().is_none());
    providers[0].kill();
    providers[1].kill();
    for answer in under_way.await.into_iter().chain(load().await) {
        assert_eq!(answer.unwrap().provider().unwrap().node_id, id(&providers[2]));
    }
    client.shutdown().await;
}

/// N3: a restarted node has forgotten all other nodes; those that knew it find it again, and hand it its records.
#[tokio::test]
async fn n3_a_restarted_bootstrap_node_learns_of_its_mesh_again() {
    let folder = tempfile::tempdir().unwrap();
    let identity = folder.path().join("identity");
    let args = ["--identity", identity.to_str().unwrap()];
    let mut bootstrap = NodeProcess::start(&args);
    let address = bootstrap.address().to_owned();
    let provider = NodeProcess::start(&["--serve", "demo.echo=echo", "--bootstrap", &bootstrap.pinned()]);

    bootstrap.kill();
    let bootstrap = NodeProcess::start_at(&address, &args);
    let client = client(std::slice::from_ref(&bootstrap)).await;
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    while client
        .lookup(&service())
        .await
        .map_or(true, |providers| providers.is_empty())
    {
        assert!(
            tokio::time::Instant::now() < until,
            "the restarted node does not know the provider"
        );
    }
    let answer = client.client().request(SERVICE).send("x").await.unwrap();
    assert_eq!(answer.provider().unwrap().node_id, id(&provider));
    client.shutdown().await;
}

/// N3: a node alone answers what it can itself.
#[tokio::test]
async fn n3_a_node_without_its_mesh_still_calls_what_it_knows() {
    let mut nodes = mesh(2, "demo.echo=echo");
    let client = client(&nodes).await;
    calls(&client, 2, Duration::from_secs(5)).await;
    // The only node of the DHT that the client could ask is gone; the other provider is in the cache.
    nodes[0].kill();
    let (answered, _) = calls(&client, 4, Duration::from_millis(300)).await;
    assert_eq!(answered.keys().copied().collect::<Vec<_>>(), [id(&nodes[1])]);
    client.shutdown().await;
}
