//! Many large messages at once beside small calls (P5), in simulated time, so that each run has the same waits.

use std::{cell::Cell, time::Duration};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, join, join_all};
use tokio::time::{Instant, sleep};

use super::{
    Network,
    tests::{PATIENCE, call, connect, identity},
};
use crate::{
    Config, Connection, Endpoint, Handler, IncomingCall, Limits, NoService, Reply, Stats, connection::link::Direction,
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Answers `now` and, a little later, `later` with as many bytes as the request says; everything else with the request.
struct Large;

impl Handler for Large {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        let wait = match call.service().as_str() {
            "now" => Duration::ZERO,
            "later" => Duration::from_millis(5),
            _ => return std::future::ready(Reply::ok(call.into_body())).boxed(),
        };
        let bytes = std::str::from_utf8(call.body()).unwrap().parse().unwrap();
        let reply = Reply::ok(vec![7; bytes]);
        if wait.is_zero() {
            return std::future::ready(reply).boxed();
        }
        sleep(wait).map(|()| reply).boxed()
    }
}

async fn host(network: &Network, n: u8, limits: Limits, handler: impl Handler) -> Endpoint {
    let config = Config::new(identity(n))
        .with_network(network)
        .with_limits(limits)
        .with_listen(([10, 0, 0, n], 9443).into());
    Endpoint::bind(config, handler).await.unwrap()
}

/// Room for a few large messages at a time.
fn narrow(connection_window: usize) -> Limits {
    Limits {
        stream_window: (connection_window / 8) as u32,
        connection_window: connection_window as u32,
        ..Limits::default()
    }
}

/// The results of the small calls beside bulk.
#[derive(Debug)]
struct Small {
    /// The fewest calls that one of the callers made.
    fewest: usize,
    longest: Duration,
    /// How long the bulk took.
    bulk: Duration,
}

/// Small calls of every connection, one after another, from before the bulk until its end.
async fn beside<T>(bulk: impl Future<Output = T>, connections: &[Connection]) -> Small {
    let start = Instant::now();
    let over = Cell::new(None);
    let bulk = async {
        // The small calls come first.
        sleep(Duration::from_millis(10)).await;
        bulk.await;
        over.set(Some(start.elapsed()));
    };
    let small = connections
        .iter()
        .flat_map(|connection| std::iter::repeat_n(connection, 8));
    let small = small.map(async |connection| {
        let (mut made, mut longest) = (0, Duration::ZERO);
        while over.get().is_none() {
            let before = Instant::now();
            call(connection, "echo", Bytes::from_static(&[1; 64]), PATIENCE)
                .await
                .unwrap();
            longest = longest.max(before.elapsed());
            made += 1;
        }
        (made, longest)
    });
    let ((), small) = join(bulk, join_all(small)).await;
    Small {
        fewest: small.iter().map(|(made, _)| *made).min().unwrap(),
        longest: small.iter().map(|(_, longest)| *longest).max().unwrap(),
        bulk: over.get().unwrap(),
    }
}

async fn echo_all(connection: &Connection, transfers: usize, bytes: usize) {
    let body = Bytes::from(vec![7; bytes]);
    let transfers = (0..transfers).map(|_| call(connection, "echo", body.clone(), PATIENCE));
    for reply in join_all(transfers).await {
        assert!(reply.unwrap() == body);
    }
}

async fn fetch_all(connection: &Connection, service: &str, transfers: usize, bytes: usize) {
    let transfers = (0..transfers).map(|_| call(connection, service, bytes.to_string().into(), PATIENCE));
    for reply in join_all(transfers).await {
        assert_eq!(reply.unwrap().len(), bytes);
    }
}

/// Everything that was taken was given back, nothing was refused, dropped or given up, and the network was never full.
async fn nothing_is_left(network: &Network, endpoints: &[&Endpoint]) {
    sleep(Duration::from_secs(1)).await;
    assert_eq!(network.traffic().overflowed, 0);
    for endpoint in endpoints {
        let Stats {
            connections,
            calls_taken,
            calls_on_lanes,
            memory,
            places,
            ..
        } = endpoint.stats();
        assert_eq!((memory.refused, memory.evicted), (0, 0));
        let expected = Stats {
            connections,
            calls_taken,
            calls_on_lanes,
            memory,
            places,
            ..Stats::default()
        };
        assert_eq!(endpoint.stats(), expected);
        let others = endpoints
            .iter()
            .filter_map(|other| endpoint.pool().open(&other.node_id()));
        for connection in others {
            let link = connection.downgrade().upgrade().unwrap().link.clone();
            assert_eq!(
                (link.running(Direction::Outbound), link.running(Direction::Inbound)),
                (0, 0)
            );
        }
    }
}

/// P5: 64 transfers at once, of 1 MiB each way and four callers, take their turns beside 64-byte calls.
#[tokio::test(start_paused = true)]
async fn p5_many_transfers_of_several_callers_do_not_starve_their_small_calls() {
    let network = Network::new(1);
    let provider = host(&network, 9, Limits::default(), Large).await;
    let mut callers = Vec::new();
    for n in 1..=4 {
        callers.push(host(&network, n, Limits::default(), NoService).await);
    }
    let connections = join_all(callers.iter().map(|caller| connect(caller, &provider))).await;
    let bulk = join_all(connections.iter().map(|connection| echo_all(connection, 16, MIB)));
    let small = beside(bulk, &connections).await;
    assert!(small.longest < small.bulk / 10, "{small:?}");
    drop(connections);
    let all: Vec<_> = callers.iter().chain([&provider]).collect();
    nothing_is_left(&network, &all).await;
}

/// P5: replies that turn out large do not keep the small calls of their lane waiting.
#[tokio::test(start_paused = true)]
async fn p5_large_replies_let_the_small_calls_behind_them_pass() {
    for service in ["now", "later"] {
        let network = Network::new(1);
        let provider = host(&network, 2, Limits::default(), Large).await;
        let caller = host(&network, 1, Limits::default(), NoService).await;
        let connection = [connect(&caller, &provider).await];
        let small = beside(fetch_all(&connection[0], service, 48, MIB), &connection).await;
        assert!(small.longest < small.bulk / 8, "{small:?}");
        drop(connection);
        nothing_is_left(&network, &[&caller, &provider]).await;
    }
}

/// P5: requests that are not read yet leave those that are room to end.
#[tokio::test(start_paused = true)]
async fn p5_more_large_requests_than_a_connection_carries_all_arrive() {
    for window in [512 * KIB, MIB] {
        let network = Network::new(1);
        let provider = host(&network, 2, narrow(window), Large).await;
        let caller = host(&network, 1, Limits::default(), NoService).await;
        let connection = [connect(&caller, &provider).await];
        let small = beside(echo_all(&connection[0], 64, MIB), &connection).await;
        assert!(small.fewest >= 20, "{small:?}");
        drop(connection);
        nothing_is_left(&network, &[&caller, &provider]).await;
    }
}

/// P5: replies that are not read yet leave those that are room to end.
#[tokio::test(start_paused = true)]
async fn p5_more_large_replies_than_a_connection_carries_all_arrive() {
    for service in ["now", "later"] {
        let network = Network::new(1);
        let provider = host(&network, 2, Limits::default(), Large).await;
        let caller = host(&network, 1, narrow(512 * KIB), NoService).await;
        let connection = [connect(&caller, &provider).await];
        let small = beside(fetch_all(&connection[0], service, 64, MIB), &connection).await;
        assert!(small.fewest >= 20, "{small:?}");
        drop(connection);
        nothing_is_left(&network, &[&caller, &provider]).await;
    }
}
