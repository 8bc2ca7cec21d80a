//! Peers as processes of their own: killed, stopped, started again.
//!
//! The provider is this very test program, started again with one test selected; that test does nothing unless asked to.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use common::{PATIENCE, client, clock::Clock, echoes, service, until};
use futures::future::{BoxFuture, FutureExt as _, join_all};
use macula_transport::{
    CallError, CallRequest, CloseCode, Config, Connection, DialError, Endpoint, Handler, Identity, IncomingCall, Lost,
    Presence, Reply, Timers, Unknown,
};
use macula_wire::NodeId;

const ADDRESS: &str = "MACULA_TEST_LISTEN";
const KEY: &str = "MACULA_TEST_IDENTITY";

/// As the other tests' services; `mark` is counted, and `marks` tells the count.
struct Marks {
    service: common::Service,
    marks: AtomicU64,
}

impl Handler for Marks {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        let marks = match call.service().as_str() {
            "mark" => self.marks.fetch_add(1, SeqCst),
            "marks" => self.marks.load(SeqCst),
            _ => return self.service.call(call),
        };
        std::future::ready(Reply::ok(marks.to_string())).boxed()
    }
}

/// Serves until its standard input ends, when it is started as a provider.
#[test]
fn provider_process() {
    let (Ok(listen), Ok(key)) = (std::env::var(ADDRESS), std::env::var(KEY)) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    let identity = Identity::load(Path::new(&key)).unwrap();
    let (service, _events) = common::Service::new();
    let handler = Marks {
        service,
        marks: AtomicU64::new(0),
    };
    let config = Config::new(identity).with_listen(listen.parse().unwrap());
    let endpoint = runtime.block_on(Endpoint::bind(config, handler)).unwrap();
    println!("\nlistening {}", endpoint.local_addr());
    std::io::stdout().flush().unwrap();
    runtime.block_on(async {
        let end = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
        end.await.unwrap().unwrap();
    });
}

struct Provider {
    child: Child,
    address: SocketAddr,
}

impl Provider {
    fn start(key: &Path, listen: SocketAddr) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["provider_process", "--exact", "--nocapture"])
            .env(ADDRESS, listen.to_string())
            .env(KEY, key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening ")?.parse().ok());
        Self {
            child,
            address: address.expect("the provider starts"),
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Stops the process; a stop takes effect some time after the signal was sent.
    fn stop(&self) {
        self.signal("-STOP");
        let stopped = || {
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
                .unwrap()
                .contains(") T ")
        };
        while !stopped() {
            std::thread::yield_now();
        }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Setup {
    _dir: tempfile::TempDir,
    key: std::path::PathBuf,
    node: NodeId,
    provider: Provider,
    client: Endpoint,
}

impl Setup {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("node.key");
        let node = Identity::load_or_generate(&key).unwrap().node_id();
        let provider = Provider::start(&key, common::loopback());
        Self {
            _dir: dir,
            key,
            node,
            provider,
            client: client().await,
        }
    }

    async fn get(&self) -> Result<Connection, DialError> {
        self.client
            .pool()
            .get(&self.node, &[self.provider.address.try_into().unwrap()])
            .await
    }
}

/// Lets less than 2 s pass on this side's clock, and at each step as much real time as the other process needs.
async fn within_two_seconds<T>(clock: &Clock, done: impl Future<Output = T>) -> T {
    let mut done = std::pin::pin!(done);
    // Start before any time passes, so that the packets leave before the peer has been heard.
    if let Some(done) = done.as_mut().now_or_never() {
        return done;
    }
    for _ in 0..3 {
        clock.pass(Duration::from_millis(600)).await;
        let step = std::time::Instant::now();
        while step.elapsed() < PATIENCE / 4 {
            if let Some(done) = done.as_mut().now_or_never() {
                return done;
            }
            tokio::task::yield_now().await;
        }
    }
    panic!("not done within 1.8 s")
}

/// Y15: when a provider that stood still goes on, it runs no call that its caller has given up, and none that may be as old.
#[tokio::test]
async fn y15_calls_that_waited_while_the_provider_stood_still_do_not_run() {
    let setup = Setup::new().await;
    let connection = setup.get().await.unwrap();
    let (mark, marks) = (service("mark"), service("marks"));
    let first = connection.call(CallRequest::new(&mark, "")).await.unwrap();
    assert_eq!(first.body, "0");
    setup.provider.stop();
    let within = Duration::from_millis(1500);
    let calls = join_all((0..20).map(|_| connection.call(CallRequest::new(&mark, "").with_timeout(within)))).await;
    let gave_up = |call: &_| matches!(call, Err(CallError::Unknown(_)));
    assert!(calls.iter().all(gave_up), "{calls:?}");
    setup.provider.signal("-CONT");
    let connection = setup.get().await.unwrap();
    let count = connection
        .call(CallRequest::new(&marks, "").with_timeout(PATIENCE))
        .await
        .unwrap();
    assert_eq!(count.body, "1", "only the first has run");
}

/// P3: a peer that comes back on its port resets the connections of its former self when it is called, and is reached again, all
/// within 2 s.
#[tokio::test]
async fn p3_a_restarted_peer_is_noticed_by_the_next_call_and_reached_again() {
    let clock = Clock::stop();
    let mut setup = Setup::new().await;
    let connection = setup.get().await.unwrap();
    echoes(&connection, "hello").await;
    setup.provider.kill();
    setup.provider = Provider::start(&setup.key, setup.provider.address);
    let name = service("hang");
    let call = connection.call(CallRequest::new(&name, "").with_timeout(PATIENCE));
    let again = async {
        let error = call.await.unwrap_err();
        assert!(
            matches!(error, CallError::Unknown(Unknown::Lost(Lost::Restarted))),
            "{error}: {error:?}"
        );
        until("the dead connection leaves the pool", || {
            setup.client.pool().stats().open == 0
        })
        .await;
        echoes(&setup.get().await.unwrap(), "hello again").await;
    };
    within_two_seconds(&clock, again).await;
}

/// P3: calls that wait notice the restart of their peer when its silence is looked into, within 2 s.
#[tokio::test]
async fn p3_a_restarted_peer_is_noticed_by_the_calls_that_wait_for_it() {
    let clock = Clock::stop();
    let mut setup = Setup::new().await;
    let connection = setup.get().await.unwrap();
    echoes(&connection, "hello").await;
    let name = service("hang");
    let mut call = Box::pin(connection.call(CallRequest::new(&name, "").with_timeout(PATIENCE)));
    assert!((&mut call).now_or_never().is_none());
    // Answered after the call came, so the provider has it before it dies.
    echoes(&connection, "hello").await;
    setup.provider.kill();
    setup.provider = Provider::start(&setup.key, setup.provider.address);
    let error = within_two_seconds(&clock, call).await.unwrap_err();
    assert!(
        matches!(error, CallError::Unknown(Unknown::Lost(Lost::Restarted))),
        "{error}: {error:?}"
    );
}

#[cfg(target_os = "linux")]
/// A peer that hangs costs a call its attempt timeout, no more.
#[tokio::test]
async fn f7_a_stopped_peer_costs_the_attempt_timeout() {
    let setup = Setup::new().await;
    let connection = setup.get().await.unwrap();
    echoes(&connection, "hello").await;
    setup.provider.stop();
    let name = service("echo");
    let timeout = Duration::from_millis(300);
    let error = connection
        .call(CallRequest::new(&name, "").with_timeout(timeout))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error}");
    setup.provider.signal("-CONT");
    echoes(&setup.get().await.unwrap(), "hello again").await;
}

/// P3: a dead peer is out of the pool when the attempt that waited for it ends.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn p3_a_stopped_peer_leaves_the_pool_with_the_attempt_that_waited() {
    let setup = Setup::new().await;
    let connection = setup.get().await.unwrap();
    echoes(&connection, "hello").await;
    setup.provider.stop();
    let name = service("echo");
    let request = CallRequest::new(&name, "").with_timeout(Duration::from_millis(1000));
    let error = connection.call(request).await.unwrap_err();
    assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error}");
    until("the silent connection is given up", || connection.lost().is_some()).await;
    assert_eq!(connection.lost(), Some(Lost::ClosedHere(CloseCode::Unresponsive)));
    until("it is out of the pool", || setup.client.pool().stats().open == 0).await;
}

/// P3: calls do not hang until QUIC's idle timeout when their peer is killed.
#[tokio::test]
async fn p3_a_killed_peer_ends_the_calls_that_wait_for_it() {
    let clock = Clock::stop();
    let mut setup = Setup::new().await;
    let connection = setup.get().await.unwrap();
    echoes(&connection, "hello").await;
    setup.provider.kill();
    let name = service("hang");
    let began = tokio::time::Instant::now();
    let calls = (0..10).map(|_| connection.call(CallRequest::new(&name, "").with_timeout(PATIENCE)));
    let calls = futures::future::join_all(calls);
    for result in clock.run(Duration::from_millis(50), calls).await {
        let error = result.unwrap_err();
        let dead = Unknown::Lost(Lost::ClosedHere(CloseCode::Unresponsive));
        assert!(
            matches!(&error, CallError::Unknown(unknown) if *unknown == dead),
            "{error:?}"
        );
    }
    let timers = Timers::default();
    // The silence counts from the last that was heard, which may have been under way when the peer was killed.
    let longest = timers.dead_after + 2 * timers.probe_after;
    assert!(began.elapsed() <= longest, "{:?}", began.elapsed());
}

/// L4: the host of a killed process says that nothing listens there, which the peer's silence confirms.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn l4_a_killed_process_is_suspected_by_its_hosts_word() {
    let mut setup = Setup::new().await;
    let connection = setup.get().await.unwrap();
    echoes(&connection, "hello").await;
    let mut watch = connection.watch_presence();
    let name = service("hang");
    let mut call = std::pin::pin!(connection.call(CallRequest::new(&name, "").with_timeout(PATIENCE)));
    assert!(call.as_mut().now_or_never().is_none());
    setup.provider.kill();
    tokio::select! {
        biased;
        result = call => panic!("{result:?}"),
        presence = watch.changed() => assert_eq!(presence, Presence::Suspected),
    }
    assert!(setup.client.stats().unreachable_hints > 0);
}

/// L2, L3: a stopped process is suspected while a call waits, and answers that call when it goes on.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn l3_a_stopped_process_is_suspected_until_it_goes_on() {
    let setup = Setup::new().await;
    let connection = setup.get().await.unwrap();
    echoes(&connection, "hello").await;
    let mut watch = connection.watch_presence();
    setup.provider.stop();
    let presence = async {
        assert_eq!(watch.changed().await, Presence::Suspected);
        setup.provider.signal("-CONT");
        assert_eq!(watch.changed().await, Presence::Up);
    };
    tokio::join!(echoes(&connection, "are you there?"), presence);
    assert_eq!(setup.client.stats().unreachable_hints, 0);
}
