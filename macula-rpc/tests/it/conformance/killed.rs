//! Every case with a provider killed before it: a process, by SIGKILL, which the directory goes on listing first.
//!
//! The providers are this very test program, started again with one test selected; that test does nothing unless asked to.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread::JoinHandle,
};

use futures::{FutureExt as _, future::BoxFuture};
use macula_rpc::{BudgetConfig, Resolve, ResolveError, ResolveOptions, Resolved, ServiceName, Source};

use super::{failing::call_no_such_method, *};

/// The name of the provider that this process is to be.
const NAME: &str = "MACULA_TEST_PROVIDER";
const PROVIDES: &str = "provides ";

/// How long a call waits for a provider. A dead one costs less: its silence is noticed (L2), and no process answers its dials.
const PATIENCE: Duration = Duration::from_secs(30);
/// The timeout of the call whose handler sleeps. The dead provider takes a part of it.
const SLEEPS_FOR: Duration = Duration::from_secs(3);

/// Serves until its standard input ends, when it is started as a provider. What happens in its handlers is told line by line.
#[test]
fn provider_process() {
    let Ok(name) = std::env::var(NAME) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let say = |line: &str| {
            println!("\n{line}");
            std::io::stdout().flush().unwrap();
        };
        let (events, mut happened) = mpsc::unbounded_channel();
        let server = Server::new();
        server.serve_tonic(super::server(Service { name, events })).unwrap();
        let config = Config::new(Identity::generate().unwrap()).with_listen("127.0.0.1:0".parse().unwrap());
        let endpoint = Endpoint::bind(config, server).await.unwrap();
        say(&format!("{PROVIDES}{} {}", endpoint.node_id(), endpoint.local_addr()));
        let end = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
        let tell = async {
            while let Some(event) = happened.recv().await {
                say(event);
            }
        };
        tokio::select! {
            end = end => drop(end.unwrap()),
            () = tell => {}
        }
    });
}

/// What the providers have said.
type Heard = mpsc::UnboundedReceiver<String>;

/// A provider that is a process.
struct Process {
    child: Child,
    reader: Option<JoinHandle<()>>,
    provider: Provider,
}

impl Process {
    /// Starts a provider whose lines are heard through `lines` once it listens.
    async fn start(name: usize, lines: mpsc::UnboundedSender<String>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["conformance::killed::provider_process", "--exact", "--nocapture"])
            .env(NAME, name.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (started, provides) = tokio::sync::oneshot::channel();
        let reader = std::thread::spawn(move || {
            let mut started = Some(started);
            for line in stdout.lines().map_while(Result::ok) {
                match (
                    line.strip_prefix(PROVIDES),
                    started.take_if(|_| line.starts_with(PROVIDES)),
                ) {
                    (Some(what), Some(started)) => drop(started.send(what.to_owned())),
                    _ => drop(lines.send(line)),
                }
            }
        });
        let provides = provides.await.expect("the provider starts");
        let (id, address) = provides.split_once(' ').unwrap();
        let address: std::net::SocketAddr = address.parse().unwrap();
        Self {
            child,
            reader: Some(reader),
            provider: Provider::new(id.parse().unwrap(), [address.try_into().unwrap()]),
        }
    }

    /// Kills it with SIGKILL, and hears the last it has said.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that is told what to list.
#[derive(Clone, Default)]
struct Listed(Arc<Mutex<Arc<[Provider]>>>);

impl Listed {
    fn list<'a>(&self, processes: impl IntoIterator<Item = &'a Process>) {
        let providers = processes.into_iter().map(|process| process.provider.clone()).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = providers;
    }
}

impl Resolve for Listed {
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        _: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        let providers = match service.as_str() {
            "macula.conformance.v1.Conformance" => self.0.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            _ => Arc::default(),
        };
        let source = Source::Static;
        std::future::ready(Ok(Resolved { providers, source })).boxed()
    }
}

async fn hears(heard: &mut Heard, what: &str) {
    while heard.recv().await.expect("a provider lives") != what {}
}

async fn unimplemented_service(channel: Channel, _: &mut Heard) {
    let mut nowhere = NowhereClient::new(channel);
    assert_eq!(nowhere.call(Empty {}).await.unwrap_err().code(), Code::Unimplemented);
}

async fn unknown_method(channel: Channel, _: &mut Heard) {
    let error = call_no_such_method(channel, "/macula.conformance.v1.Conformance/NoSuch").await;
    assert_eq!(error.code(), Code::Unimplemented);
}

async fn timeout_on_sleeping_server(channel: Channel, heard: &mut Heard) {
    let mut request = Request::new(Empty {});
    request.set_timeout(SLEEPS_FOR);
    let error = ConformanceClient::new(channel).sleep(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    hears(heard, "started").await;
    hears(heard, "dropped").await;
}

async fn cancel_after_begin(channel: Channel, heard: &mut Heard) {
    let mut stub = ConformanceClient::new(channel);
    let call = tokio::spawn(async move { stub.sleep(Empty {}).await });
    hears(heard, "started").await;
    call.abort();
    hears(heard, "dropped").await;
}

async fn cancel_after_first_response(channel: Channel, heard: &mut Heard) {
    let mut stub = ConformanceClient::new(channel);
    let requests = stream::iter([wants(&[31_415])]).chain(stream::pending());
    let mut replies = stub.full_duplex(requests).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 31_415);
    drop(replies);
    hears(heard, "dropped").await;
}

#[tokio::test]
async fn every_case_passes_with_a_provider_killed_between_each_two() {
    every_case(false).await;
}

/// As the others, with a stream beside them, so that small calls go over the lane.
#[tokio::test]
async fn every_case_passes_on_a_lane_with_a_provider_killed_between_each_two() {
    every_case(true).await;
}

async fn every_case(beside: bool) {
    let (lines, mut heard) = mpsc::unbounded_channel();
    let directory = Listed::default();
    // Every call fails over here, and what that costs a mesh is another test's matter.
    let budget = BudgetConfig {
        per_second: 1_000.0,
        ..BudgetConfig::default()
    };
    let (endpoint, builder) = caller(directory.clone()).await;
    let client = builder.strategy(Strategy::First).retry_budget(budget).build();
    let channel = Channel::new(client).with_attempt_timeout(PATIENCE);

    // With `first` the front one is in use, and dies before the next case.
    let mut processes = std::collections::VecDeque::new();
    let mut started = 0;
    let mut cases = 0;
    macro_rules! case {
        ($case:expr) => {
            while processes.len() < 3 {
                processes.push_back(Process::start(started, lines.clone()).await);
                started += 1;
            }
            directory.list(&processes);
            // What was heard of one that is dead is over.
            while heard.try_recv().is_ok() {}
            let mut stub = ConformanceClient::new(channel.clone());
            let held = match beside {
                true => Some(super::lane::beside(&mut stub).await),
                false => None,
            };
            $case.await;
            cases += 1;
            drop(held);
            // The one in use is killed, and the one that was dead is forgotten.
            let dead = usize::from(cases > 1);
            processes[dead].kill();
            processes.drain(..dead);
        };
    }
    macro_rules! stub_cases {
        ($($case:ident),* $(,)?) => {$( case!($case(&mut ConformanceClient::new(channel.clone()))); )*};
    }
    macro_rules! channel_cases {
        ($($case:ident),* $(,)?) => {$( case!($case(channel.clone(), &mut heard)); )*};
    }
    stub_cases!(
        empty_unary,
        large_unary,
        client_streaming,
        server_streaming,
        ping_pong,
        empty_stream,
        custom_metadata,
        status_code_and_message,
        special_status_message,
        unimplemented_method,
        compressed_unary,
    );
    channel_cases!(
        unknown_method,
        timeout_on_sleeping_server,
        cancel_after_begin,
        cancel_after_first_response,
        unimplemented_service,
    );
    assert_eq!(cases, 16);
    // Every case but the last, whose service no provider has, was answered by another provider than the case before.
    assert!(endpoint.pool().stats().opened >= cases - 1);
}
