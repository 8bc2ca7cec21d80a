//! The delay that a dead, silent or slow peer costs, in simulated time (L1 to L6, N8).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, join_all};
use macula_wire::StatusCode;
use tokio::{sync::Semaphore, time::Instant};

use super::{
    LinkConditions, Network,
    tests::{PATIENCE, Service, call, connect, host, identity},
};
use crate::{
    CallRequest, Config, Connection, DialError, Endpoint, FoundConnection, Handler, IncomingCall, NoService, Presence,
    Reply, Timers,
    connection::pulse::{MAX_ACK_DELAY, pto},
};

/// A path's round trip.
fn link(rtt: Duration) -> LinkConditions {
    LinkConditions::new(rtt / 2)
}

/// Answers after as many milliseconds as its request has bytes.
struct Slow;

impl Handler for Slow {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        async move {
            let body = call.into_body();
            tokio::time::sleep(Duration::from_millis(body.len() as u64)).await;
            Reply::ok(body)
        }
        .boxed()
    }
}

async fn caller(network: &Network, hints: bool) -> Endpoint {
    let config = Config::new(identity(1))
        .with_network(network)
        .with_listen(([10, 0, 0, 1], 9443).into())
        .with_unreachable_hints(hints);
    Endpoint::bind(config, NoService).await.unwrap()
}

/// How a peer goes.
#[derive(Debug, Clone, Copy)]
enum End {
    /// `kill -9`, with ICMP heeded or not.
    Killed { hints: bool },
    /// The host is off.
    Vanished,
    /// SIGSTOP.
    Stopped,
}

/// How long after the peer's end the calls in flight learn that it is suspected.
async fn noticed_after(end: End, rtt: Duration, waited: Duration) -> Duration {
    let network = Network::new(31).with_link(link(rtt));
    let hints = !matches!(end, End::Killed { hints: false });
    let (caller, provider) = (caller(&network, hints).await, host(&network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    for _ in 0..20 {
        call(&connection, "echo", "hello".into(), PATIENCE).await.unwrap();
    }
    let waiting = call(&connection, "hang", Bytes::new(), PATIENCE);
    let at_the_end = async {
        tokio::time::sleep(waited).await;
        match end {
            End::Killed { .. } => network.kill_process(provider.local_addr()),
            End::Vanished => network.kill(provider.local_addr()),
            End::Stopped => network.pause(provider.local_addr()),
        }
        let ended = Instant::now();
        let mut watch = connection.watch_presence();
        assert_eq!(watch.changed().await, Presence::Suspected);
        ended.elapsed()
    };
    tokio::select! {
        biased;
        result = waiting => panic!("{result:?}"),
        noticed = at_the_end => noticed,
    }
}

#[tokio::test(start_paused = true)]
async fn l6_calls_in_flight_to_a_peer_that_is_gone_learn_it_in_a_few_round_trips() {
    for millis in [0, 2, 30] {
        let rtt = Duration::from_millis(millis);
        // The least variance, so that no delay hides in it.
        let bound = 5 * pto(rtt, Duration::ZERO) + Duration::from_millis(100);
        for waited in [0, 1, 20, 45, 50, 77, 200, 1_000, 2_900].map(Duration::from_millis) {
            for end in [End::Killed { hints: false }, End::Vanished, End::Stopped] {
                let took = noticed_after(end, rtt, waited).await;
                assert!(took < bound, "{end:?}, {rtt:?}, {waited:?}: {took:?}");
            }
            let took = noticed_after(End::Killed { hints: true }, rtt, waited).await;
            // The next ping draws the report, and two more are asked of the peer.
            let quiet = Timers::default()
                .ping_after
                .max(pto(rtt, Duration::ZERO))
                .max(waited / 64);
            let bound = quiet + 3 * rtt + Duration::from_millis(25);
            assert!(took < bound, "killed, with a hint, {rtt:?}, {waited:?}: {took:?}");
        }
    }
}

/// The longer a call waits, the rarer the pings: finding the peer gone adds at most a 64th of the wait, and half a second.
#[tokio::test(start_paused = true)]
async fn l6_a_call_that_has_waited_for_long_learns_it_in_proportion() {
    let waited = Duration::from_secs(20);
    let took = noticed_after(End::Vanished, Duration::from_millis(2), waited).await;
    assert!(took < waited / 64 + Duration::from_millis(250), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn l1_a_handler_that_takes_minutes_is_not_suspected_and_costs_few_packets() {
    let network = Network::new(32);
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    let minutes = Duration::from_secs(300);
    call(&connection, "hang", Bytes::new(), minutes).await.unwrap_err();
    assert_eq!((caller.stats().suspicions, connection.presence()), (0, Presence::Up));
    assert_eq!(connection.lost(), None);
    // Two pings a second at the end, each with its answer and what acknowledges that.
    let delivered = network.traffic().delivered;
    assert!(delivered < 300 * 12, "{delivered}");
}

#[tokio::test(start_paused = true)]
async fn l3_a_suspected_peer_that_is_heard_again_is_up_and_its_call_goes_on() {
    let network = Network::new(33);
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Slow).await);
    let connection = connect(&caller, &provider).await;
    let body = Bytes::from(vec![0; 1_000]);
    let slow = call(&connection, "slow", body, PATIENCE);
    let cut = async {
        let mut watch = connection.watch_presence();
        network.cut(caller.local_addr(), provider.local_addr());
        assert_eq!(watch.changed().await, Presence::Suspected);
        assert_eq!(
            (watch.now(), connection.presence()),
            (Presence::Suspected, Presence::Suspected)
        );
        network.heal();
        let healed = Instant::now();
        assert_eq!(watch.changed().await, Presence::Up);
        // A ping goes at least each half a second.
        assert!(
            healed.elapsed() < Timers::default().probe_after + MAX_ACK_DELAY,
            "{:?}",
            healed.elapsed()
        );
    };
    let (answer, ()) = tokio::join!(slow, cut);
    assert_eq!(answer.unwrap().len(), 1_000);
    assert_eq!(connection.presence(), Presence::Up);
}

/// The call that waited goes elsewhere; the peer is found dead all the same, and leaves the pool.
#[tokio::test(start_paused = true)]
async fn p3_a_suspected_peer_that_stays_silent_is_given_up_without_a_call_that_waits() {
    let network = Network::new(34);
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    network.kill(provider.local_addr());
    let mut watch = connection.watch_presence();
    tokio::select! {
        biased;
        result = call(&connection, "hang", Bytes::new(), PATIENCE) => panic!("{result:?}"),
        presence = watch.changed() => assert_eq!(presence, Presence::Suspected),
    }
    let suspected = Instant::now();
    while connection.lost().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        suspected.elapsed() <= Timers::default().dead_after,
        "{:?}",
        suspected.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn l4_an_idle_connection_to_a_killed_process_is_suspected_before_a_call_needs_it() {
    let network = Network::new(35);
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    call(&connection, "echo", Bytes::new(), PATIENCE).await.unwrap();
    network.kill_process(provider.local_addr());
    let mut watch = connection.watch_presence();
    // The next packet of its keep-alive is answered with a report.
    let next = 2 * Timers::default().keep_alive;
    assert_eq!(
        tokio::time::timeout(next, watch.changed()).await,
        Ok(Presence::Suspected)
    );
}

#[tokio::test(start_paused = true)]
async fn l4_forged_reports_cost_a_bounded_number_of_pings_and_suspect_nothing() {
    let network = Network::new(36);
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    let shared = connection.downgrade().upgrade().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = network.traffic().delivered;
    let flood = async {
        for _ in 0..5_000 {
            shared.link.watch.hint();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    flood.await;
    assert_eq!((caller.stats().suspicions, connection.lost()), (0, None));
    // Two pings each 250 ms, with their answers and what acknowledges those.
    let packets = network.traffic().delivered - before;
    assert!(packets <= 20 * 10, "{packets}");
}

/// Some of everything: calls alone and together, answered at once and late.
async fn attempts(seed: u64, rtt: Duration, rounds: usize) -> (u64, u64) {
    let network = Network::new(seed).with_link(link(rtt).with_loss(0.05));
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Slow).await);
    let at = [provider.local_addr().try_into().unwrap()];
    let mut attempts = 0;
    let slow = "slow".parse().unwrap();
    let mut connection: Option<Connection> = None;
    for round in 0..rounds {
        let connection = match &mut connection {
            Some(connection) if connection.lost().is_none() => connection,
            gone => match caller.pool().get(&provider.node_id(), &at).await {
                Ok(open) => gone.insert(open),
                Err(_) => continue,
            },
        };
        let together = if round % 4 == 0 { 8 } else { 1 };
        let calls = (0..together).map(|n| {
            let millis = match (round + n) % 10 {
                0 => 150,
                1 => 40,
                _ => 0,
            };
            let request = CallRequest::new(&slow, vec![0; millis]).with_timeout(PATIENCE);
            connection.call(request)
        });
        for reply in join_all(calls).await {
            assert_eq!(reply.unwrap().status, StatusCode::Ok);
            attempts += 1;
        }
    }
    (attempts, caller.stats().suspicions)
}

#[test]
fn l6_under_five_percent_loss_fewer_than_one_attempt_in_10_000_is_suspected() {
    let (mut all, mut suspected) = (0, 0);
    for seed in 0..6 {
        for rtt in [2, 30].map(Duration::from_millis) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let (attempts, suspicions) = runtime.block_on(attempts(seed, rtt, 800));
            all += attempts;
            suspected += suspicions;
        }
    }
    assert!(all >= 20_000, "{all}");
    assert!(suspected * 10_000 < all, "{suspected} of {all}");
}

/// Tells when a call's handler is dropped.
struct Dropped(Arc<Semaphore>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

struct Hanging {
    began: Arc<Semaphore>,
    dropped: Arc<Semaphore>,
}

impl Handler for Hanging {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
        let guard = Dropped(self.dropped.clone());
        self.began.add_permits(1);
        async move {
            let _guard = guard;
            std::future::pending().await
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn n8_a_provider_drops_the_handlers_of_a_caller_that_is_gone_within_seconds() {
    for calls in [1, 20] {
        let network = Network::new(38);
        let (began, dropped) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let handler = Hanging {
            began: began.clone(),
            dropped: dropped.clone(),
        };
        let (caller, provider) = (caller(&network, true).await, host(&network, 2, handler).await);
        let connection = connect(&caller, &provider).await;
        let waiting = tokio::spawn(async move {
            join_all((0..calls).map(|_| call(&connection, "hang", Bytes::new(), 4 * PATIENCE))).await
        });
        let killed = async {
            // While the caller is there, they run.
            began.acquire_many(calls).await.unwrap().forget();
            tokio::time::sleep(PATIENCE).await;
            assert!(!waiting.is_finished());
            network.kill(caller.local_addr());
            let killed = Instant::now();
            dropped.acquire_many(calls).await.unwrap().forget();
            killed.elapsed()
        };
        let took = tokio::time::timeout(3 * PATIENCE, killed).await.unwrap();
        let timers = Timers::default();
        assert!(took <= timers.dead_after + timers.serving_probe_after, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn l4_a_dial_to_a_port_where_nothing_listens_ends_after_a_probe_timeout() {
    let network = Network::new(39);
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Service).await);
    let (node, at) = (provider.node_id(), [provider.local_addr().try_into().unwrap()]);
    network.kill_process(provider.local_addr());
    let started = Instant::now();
    let error = caller.pool().get(&node, &at).await.unwrap_err();
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
    assert!(
        started.elapsed() < Duration::from_millis(350),
        "{:?}",
        started.elapsed()
    );
}

/// A report is no proof: the handshake is begun again, and what answers it is taken.
#[tokio::test(start_paused = true)]
async fn l4_a_dial_that_a_report_speaks_against_reaches_a_process_that_has_started_meanwhile() {
    // On a long path the report answers a packet of long ago.
    for (millis, restarts_after) in [(1, 60), (150, 60), (400, 250)] {
        let network = Network::new(40).with_link(link(Duration::from_millis(millis)));
        let (caller, provider) = (caller(&network, true).await, host(&network, 2, Service).await);
        let (node, at) = (provider.node_id(), [provider.local_addr().try_into().unwrap()]);
        network.kill_process(provider.local_addr());
        let again = async {
            tokio::time::sleep(Duration::from_millis(restarts_after)).await;
            host(&network, 2, Service).await
        };
        let pool = caller.pool();
        let (dialed, _provider) = tokio::join!(pool.get(&node, &at), again);
        dialed.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn d13_a_silent_peer_that_has_moved_is_dialed_at_its_new_address() {
    let network = Network::new(41);
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Service).await);
    let (before, after) = (provider.local_addr(), ([10, 0, 0, 9], 9443).into());
    let connection = connect(&caller, &provider).await;
    let at = [SocketAddr::try_into(after).unwrap()];
    caller.pool().moved(&provider.node_id(), &at);
    assert!(
        caller.pool().open(&provider.node_id()).is_some(),
        "while it is heard, its connection is good"
    );
    network.move_host(before, after);
    assert_eq!(provider.local_addr(), after);
    let mut watch = connection.watch_presence();
    tokio::select! {
        biased;
        result = call(&connection, "hang", Bytes::new(), PATIENCE) => panic!("{result:?}"),
        presence = watch.changed() => assert_eq!(presence, Presence::Suspected),
    }
    let new = caller.pool().get(&provider.node_id(), &at).await.unwrap();
    assert_eq!(new.peer().remote_addr, after);
    call(&new, "echo", Bytes::new(), PATIENCE).await.unwrap();
    // The one that moved cannot be heard over what it had, and lets it go.
    provider.check_connections();
    tokio::time::sleep(Timers::default().probe_grace * 2).await;
    assert_eq!(provider.pool().stats().open, 1);
}

/// Y2: nothing answers at the old address, and the dial there lasts for seconds.
#[tokio::test(start_paused = true)]
async fn d12_a_peer_that_has_a_new_address_is_reached_while_the_old_one_is_still_dialed() {
    let network = Network::new(43);
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Service).await);
    let (pool, node) = (caller.pool(), provider.node_id());
    let [old, new] =
        [([10, 0, 0, 77], 9443).into(), provider.local_addr()].map(|at: SocketAddr| [at.try_into().unwrap()]);
    let mut at_the_old = std::pin::pin!(pool.get(&node, &old));
    assert!(at_the_old.as_mut().now_or_never().is_none());
    let began = Instant::now();
    let connection = pool.get(&node, &new).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    call(&connection, "echo", Bytes::new(), PATIENCE).await.unwrap();
    at_the_old.await.unwrap_err();
}

/// A provider that was killed has started elsewhere and dials a node that still has the old connection.
#[tokio::test(start_paused = true)]
async fn l3_a_silent_peer_is_called_over_the_connection_on_which_it_is_heard() {
    let network = Network::new(42);
    let (caller, provider) = (caller(&network, true).await, host(&network, 2, Service).await);
    let (node, before) = (provider.node_id(), provider.local_addr());
    let connection = connect(&caller, &provider).await;
    network.kill(before);
    let mut watch = connection.watch_presence();
    let mut waiting = Box::pin(call(&connection, "hang", Bytes::new(), PATIENCE));
    tokio::select! {
        biased;
        result = &mut waiting => panic!("{result:?}"),
        presence = watch.changed() => assert_eq!(presence, Presence::Suspected),
    }
    let config = Config::new(identity(2))
        .with_network(&network)
        .with_listen(([10, 0, 0, 9], 9443).into());
    let again = Endpoint::bind(config, Service).await.unwrap();
    let _dialed = connect(&again, &caller).await;
    let pool = caller.pool();
    let mut found = FoundConnection::default();
    for open in [
        pool.open(&node).unwrap(),
        pool.open_again(&node, &mut found).unwrap(),
        pool.get(&node, &[before.try_into().unwrap()]).await.unwrap(),
    ] {
        assert_eq!(open.peer().remote_addr, again.local_addr());
        call(&open, "echo", Bytes::new(), PATIENCE).await.unwrap();
    }
    // The call that waits is not ended by that.
    assert!((&mut waiting).now_or_never().is_none() && connection.lost().is_none());
}
