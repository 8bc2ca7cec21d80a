//! The command line: every command and option.

mod realm;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, builder::Resettable};
use macula_node::{Address, BootstrapAddr, MAX_MESSAGE_BYTES, Realm, ServiceName, Strategy};

pub(crate) use self::realm::{
    AccessArgs, GrantArgs, JoinArgs, MembersArgs, NewRealmArgs, RealmArgs, RealmCommand, RevokeArgs, RightsArgs,
    ShowArgs, TokenArgs,
};
use crate::{
    logging::{self, LogFormat},
    serve::{Serve, Setting},
    target::Target,
    top::Sort,
};

/// A QUIC service mesh: call a service by name, and a provider that dies is not noticed.
#[derive(Debug, Parser)]
#[command(name = "macula", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// A TOML file with options: each under its name, for every command that has it, or in a table named like its command.
    ///
    /// The command line goes before the environment, and the environment before the file.
    #[arg(long, value_name = "FILE", env = "MACULA_CONFIG", global = true)]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a node of the mesh until SIGINT or SIGTERM, which make it drain and leave.
    Node(Box<NodeArgs>),
    /// Starts three providers and a client here, kills one, and shows that no call fails.
    Demo(DemoArgs),
    /// Calls a service and prints the answer.
    ///
    /// Exit codes: 0 answered, 1 the mesh could not be joined, 2 usage, 3 service_not_found, 4 all_providers_failed,
    /// 5 max_attempts_exceeded, 6 deadline passed, 7 the service's own definitive error.
    Call(CallArgs),
    /// Calls a service at a rate, or as fast as it answers, and shows latencies, failures and each provider's share.
    ///
    /// Exit codes: 0 every call was answered, 1 a call failed or the mesh could not be joined, 2 usage.
    Bench(BenchArgs),
    /// Lists the providers of a service.
    Providers(ProvidersArgs),
    /// Asks nodes for their health: every provider of a service, the nodes named, or the node that runs on this host.
    ///
    /// The node that runs here is well when it is in the mesh and serves: for readiness probes.
    ///
    /// Exit codes: 0 all of them serve, 1 one does not or cannot be reached, 2 usage, 3 service_not_found.
    Health(HealthArgs),
    /// Prints the node id of an identity file, and makes it if missing (default: the file of `macula node`).
    Id(IdArgs),
    /// Shows the node that runs on this host: its mesh, peers, records, services, limits.
    Status(StatusArgs),
    /// Lists the services of the realm, with the number of providers in each zone.
    ///
    /// The nodes that are known here are asked for their services, so one that only unknown nodes serve is not listed.
    Services(ServicesArgs),
    /// Measures the way to a node, or to each provider of a service: handshake, round trip, handler.
    ///
    /// Exit codes: 0 all of them answered, 1 one did not, 2 usage, 3 service_not_found.
    Ping(PingArgs),
    /// Shows services, providers, rates and latencies of the node that runs on this host, live.
    ///
    /// On a terminal: r, e, l and n sort by rate, errors, latency and name; / filters, p hides providers, q quits.
    Top(TopArgs),
    /// Shows what happens to the node that runs on this host: connections, publications, ejections.
    Watch(WatchArgs),
    /// Makes the node that runs on this host leave in order and end, and shows its progress.
    ///
    /// It withdraws its services, refuses new calls so that they go elsewhere, and finishes those that run. Exit codes: 0 it has left,
    /// 1 there is no node, or calls had not ended when `--drain-time` was over.
    Drain(DrainArgs),
    /// Checks the configuration, or shows each option's value and where it came from.
    Config(ConfigArgs),
    /// Prints a script that completes commands and options in a shell.
    Completions(CompletionsArgs),
    /// Prints the manual page of the program or a command, or writes all of them to a folder.
    Man(ManArgs),
    /// Prints the version and the facts of this build.
    Version(VersionArgs),
    /// Makes closed realms, and decides which nodes are in them.
    Realm(RealmArgs),
    /// Joins a closed realm with a token: gets a grant, and keeps it beside the identity that `macula node` will use.
    Join(JoinArgs),
}

/// The command line. An empty environment variable counts as unset: a container's settings often cannot leave a variable out.
pub(crate) fn command() -> clap::Command {
    let heed = |arg: clap::Arg| {
        let is_empty = arg
            .get_env()
            .and_then(std::env::var_os)
            .is_some_and(|value| value.is_empty());
        if is_empty { arg.env(Resettable::Reset) } else { arg }
    };
    Cli::command()
        .mut_args(heed)
        .mut_subcommands(|command| command.mut_args(heed))
}

/// How to get into the mesh.
#[derive(Debug, Args)]
pub(crate) struct MeshArgs {
    /// A node already in the mesh; may be given several times. Without it, a command goes through the node that runs on this host.
    ///
    /// With the node's id in front, no other node is accepted there; without it, the node that answers is trusted, which is said the
    /// first time.
    #[arg(
        long,
        value_name = "[NODEID@]HOST:PORT",
        env = "MACULA_BOOTSTRAP",
        value_delimiter = ','
    )]
    pub(crate) bootstrap: Vec<BootstrapAddr>,
    /// The realm: services of one are invisible in another. `NAME` is an open realm, which every node that reaches it may join; `NAME@KEY`,
    /// as `macula realm show` prints it, is a closed one. A grant or token names its realm itself [default: the
    /// running node's realm, else `default`].
    #[arg(long, value_name = "NAME[@KEY]", env = "MACULA_REALM")]
    pub(crate) realm: Option<Realm>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

/// How a command reaches the mesh: by a bootstrap node, or through the node that runs on this host.
#[derive(Debug, Args)]
pub(crate) struct ReachArgs {
    #[command(flatten)]
    pub(crate) mesh: MeshArgs,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// In a closed realm, the identity file that the grant is of [default: ~/.macula/identity, or a new key for each command with
    /// --token].
    #[arg(long, value_name = "FILE", env = "MACULA_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
}

/// The node that runs on this host.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminArgs {
    /// The socket of the running node, through which it shows its state; `off` for none [default: found by itself, in the folder for
    /// runtime files or the node's data folder].
    #[arg(long, value_name = "PATH", env = "MACULA_ADMIN")]
    pub(crate) admin: Option<PathBuf>,
    /// The node's folder: its key, the records it holds for others, the nodes it knows. `macula node` makes it if it is missing.
    ///
    /// A node that starts again with its folder has its old identity, answers at once from these records, and finds the mesh
    /// without --bootstrap. Each node needs a folder of its own.
    #[arg(long = "data", value_name = "DIR", env = "MACULA_DATA")]
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServicesArgs {
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// A node as NODEID@HOST:PORT, or a service, each of whose providers is pinged.
    #[arg(value_name = "NODEID@HOST:PORT|SERVICE", value_parser = ping_target)]
    pub(crate) target: PingTarget,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// How many pings to send to each.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) count: u32,
    /// The pause between two of them.
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = duration)]
    pub(crate) interval: Duration,
    /// How long an answer is waited for, like `2s` or `500ms`.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Prints one JSON object per node.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The target of `macula ping`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PingTarget {
    Node(BootstrapAddr),
    Service(ServiceName),
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// The time between two frames, at least 100 ms.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(crate) interval: Duration,
    /// The order of services.
    #[arg(long, value_enum, default_value_t = Sort::Rate)]
    pub(crate) sort: Sort,
    /// Shows only services whose names contain this.
    #[arg(long, value_name = "TEXT")]
    pub(crate) filter: Option<String>,
    /// Ends after so many frames.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// Shows only events of this kind, like `ejected`; may be given several times.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub(crate) kind: Vec<String>,
    /// Ends after so many events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Prints one JSON object per event.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// Prints one JSON object per step.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

/// An action of `macula config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Reads the file and the environment as a command would, and says what is wrong in them.
    Check {
        /// The command that they are for.
        #[arg(default_value = "node")]
        command: String,
    },
    /// Lists each option of a command with its value and its origin: flag, environment, file with its line, default.
    Show {
        /// The command.
        #[arg(default_value = "node")]
        command: String,
        /// Prints one JSON list.
        #[arg(long)]
        json: bool,
        /// Words of the command line to be read as well, after `--`.
        #[arg(last = true)]
        args: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The command whose page is printed; the program's own without it.
    pub(crate) command: Option<String>,
    /// Writes every page to this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The options of `macula node`. Its fields are one option or one group of them each.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) mesh: MeshArgs,
    /// Where to listen for QUIC: an IP address and a port; port 0 takes a free one. `[::]` is every address of both families.
    #[arg(long, value_name = "ADDR", value_parser = address, default_value = "[::]:9443", env = "MACULA_LISTEN")]
    pub(crate) listen: SocketAddr,
    /// An address that others dial; may be given several times [default: the addresses of the interfaces listened on].
    #[arg(long, value_name = "HOST:PORT", env = "MACULA_ADVERTISE", value_delimiter = ',')]
    pub(crate) advertise: Vec<Address>,
    /// The file that holds the node's secret key, made if missing [default: the data folder's, or ~/.macula/identity if `macula id`
    /// has made it, or else a new key at every start].
    #[arg(long, value_name = "FILE", env = "MACULA_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// A service to provide: `NAME=echo`, `NAME=echo:TIME` to give each message back after a time, `NAME=exec:COMMAND` to run a shell command for each call, `NAME=http://HOST:PORT/PATH` or
    /// `NAME=grpc://HOST:PORT` for a server beside the node; may be given several times.
    ///
    /// `grpc://HOST:PORT` alone provides every service that the server's reflection names. The server's own grpc.health.v1 decides when a
    /// service is published. For `http://` a call is a POST of the request, its metadata are headers, and its method is the last part of
    /// the path.
    ///
    /// A command reads the request from standard input. Its answer is its standard output up to its exit. Its process group is killed
    /// then, and also when the caller cancels or the deadline passes. Standard error goes to the node's log. MACULA_CALLER holds the
    /// caller's node id; MACULA_SERVICE and MACULA_METHOD name the service and the method.
    ///
    /// When it exits with an error, the caller gets the last line of its standard output: as the caller's own fault, which is not tried
    /// elsewhere, for the exit codes 64 and 65 (invalid_argument), 66 to 68 (not_found) and 77 (permission_denied); as a failure that
    /// another provider may not have, for the others.
    #[arg(long, value_name = "[NAME=]echo[:TIME]|exec:COMMAND|URL")]
    pub(crate) serve: Vec<Serve>,
    /// A setting of one service; may be given several times. In a file: a table `[node.service."NAME"]` with a line `KEY = VALUE` each.
    ///
    /// `timeout=TIME`, at most 1 h: a call that takes longer has failed, whatever its caller asks for, and its command is killed.
    /// `concurrency=N`: calls at a time; more are refused and go elsewhere; not for `grpc://`. For `exec:` also `output=BYTES`, the longest
    /// answer; `user=NAME`, `folder=DIR` and `env=NAME[=VALUE]` for its process.
    #[arg(long, value_name = "NAME:KEY=VALUE")]
    pub(crate) service: Vec<Setting>,
    /// The levels of the log, like `info` or `warn,macula_dht=debug`; RUST_LOG goes before it.
    #[arg(long, value_name = "LEVELS", default_value = "warn", value_parser = logging::check, env = "MACULA_LOG")]
    pub(crate) log: String,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "MACULA_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
    /// A variable for the environment of `exec:` commands, with the node's own value or another; may be given several times.
    ///
    /// Of the node's own environment they get only PATH, HOME, LANG, LC_ALL, TMPDIR and TZ otherwise.
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) exec_env: Vec<String>,
    #[command(flatten)]
    pub(crate) ingress: IngressArgs,
    #[command(flatten)]
    pub(crate) ops: OpsArgs,
    /// Where the node runs, such as a data centre: callers of the same zone prefer it.
    #[arg(long, value_name = "NAME", env = "MACULA_ZONE")]
    pub(crate) zone: Option<String>,
    /// The node's capacity in relation to others', for the weighted strategies.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), env = "MACULA_WEIGHT")]
    pub(crate) weight: u32,
    /// Mebibytes that all peers together may make the node keep [default: a quarter of the memory of the machine or of its control
    /// group, at least 64]. When they are full, the peer that has most loses its largest message.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 30), env = "MACULA_MEMORY")]
    pub(crate) memory: Option<u64>,
    /// How long the node's provider records are valid without being renewed, 20 to 3600.
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(20..=3600), env = "MACULA_TTL")]
    pub(crate) ttl: u64,
    /// How long the node waits for running calls when it leaves, and for their callers to have the replies, like `30s` or `5m`.
    ///
    /// Calls that are not finished by then are given up. The process ends within 6 seconds after that.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration, env = "MACULA_DRAIN_TIME")]
    pub(crate) drain_time: Duration,
    /// How long the grants last that this node signs as an issuer, from `15m` to `400d` [default: 24h].
    ///
    /// Members renew them by themselves when two thirds are over. It is how long a revoked member stays with nodes that no revocation
    /// reaches, and how long the issuers may be away.
    #[arg(long, value_name = "TIME", value_parser = realm::grant_life, env = "MACULA_GRANT_LIFE")]
    pub(crate) grant_life: Option<u64>,
    /// Prints the line that says the node is ready as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Reaps orphans and passes signals on, as a container's first process has to; process 1 does so unasked.
    #[arg(long)]
    pub(crate) init: bool,
    /// Leaves when standard input is closed, so that the node does not outlive the program that started it.
    #[arg(long)]
    pub(crate) until_stdin_closes: bool,
}

/// The door for programs that know nothing of Macula.
#[derive(Debug, Args)]
pub(crate) struct IngressArgs {
    /// A TCP address for programs in any language: gRPC for every gRPC service of the mesh, and `POST /v1/call/SERVICE`.
    ///
    /// Beyond loopback it needs a certificate, its key and tokens.
    #[arg(long, value_name = "ADDR", value_parser = address, env = "MACULA_INGRESS")]
    pub(crate) ingress: Option<SocketAddr>,
    /// The certificate chain of the ingress, a PEM file.
    #[arg(long, value_name = "FILE", requires_all = ["ingress", "ingress_key"], env = "MACULA_INGRESS_CERT")]
    pub(crate) ingress_cert: Option<PathBuf>,
    /// The private key of its certificate, a PEM file.
    #[arg(long, value_name = "FILE", requires = "ingress_cert", env = "MACULA_INGRESS_KEY")]
    pub(crate) ingress_key: Option<PathBuf>,
    /// A file with a token in each line; a request brings one as `Authorization: Bearer TOKEN`.
    #[arg(long, value_name = "FILE", requires = "ingress", env = "MACULA_INGRESS_TOKENS")]
    pub(crate) ingress_tokens: Option<PathBuf>,
}

/// Where orchestrators, Prometheus and collectors get what they ask for.
#[derive(Debug, Args)]
pub(crate) struct OpsArgs {
    /// A TCP address for probes, Prometheus and a browser: `/livez`, `/readyz`, `/metrics`, and a live page at `/`.
    ///
    /// Beyond loopback every host that reaches it learns the names of this node's services and how busy they are. The page is for this
    /// host only, unless there are tokens.
    #[arg(long, value_name = "ADDR", value_parser = address, env = "MACULA_OPS")]
    pub(crate) ops: Option<SocketAddr>,
    /// A file with a token in each line: other hosts that bring one get the page, as the password of any user.
    #[arg(long, value_name = "FILE", requires = "ops", env = "MACULA_OPS_TOKENS")]
    pub(crate) ops_tokens: Option<PathBuf>,
    /// A collector that gets traces and numbers of calls as OTLP over gRPC, like `http://127.0.0.1:4317`.
    ///
    /// `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER` and OpenTelemetry's other variables hold. The program has to be built with the
    /// feature `otlp`.
    #[arg(long, value_name = "URL", env = "MACULA_OTLP")]
    pub(crate) otlp: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The service's name, and its method where it has several.
    #[arg(value_name = "SERVICE[/METHOD]")]
    pub(crate) target: Target,
    /// The request; `-` reads it from standard input.
    #[arg(default_value = "")]
    pub(crate) data: String,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Calls a gRPC service: the request is one protobuf message in its encoded form, and so is each reply.
    #[arg(long)]
    pub(crate) grpc: bool,
    /// How a provider is chosen: `first`, `random`, `round_robin`, `weighted_round_robin`, `weighted_random`, `p2c`,
    /// `least_loaded` or `affinity`.
    #[arg(long, value_name = "STRATEGY", default_value = "random", value_parser = strategy, env = "MACULA_STRATEGY")]
    pub(crate) strategy: Strategy,
    /// With `--strategy affinity`: calls with the same key go to the same provider.
    #[arg(long, value_name = "KEY")]
    pub(crate) affinity_key: Option<String>,
    /// How long each call may take, like `2s` or `500ms`; and joining the mesh before the first one.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// How long one provider is waited for before another is tried; the last one, too [default: a third of --timeout, at least 3s].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) attempt_timeout: Option<Duration>,
    /// How many providers are tried at most [default: 3, or all if there are fewer].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_attempts: Option<u32>,
    /// How many calls to make, one after another; with --lines, for each line.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
    /// Makes a call for each line of standard input, until its end.
    #[arg(long, conflicts_with = "data")]
    pub(crate) lines: bool,
    /// Starts at most so many calls a second.
    #[arg(long, value_name = "CALLS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: Option<u32>,
    /// Prints one JSON object per call.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The service's name.
    pub(crate) service: ServiceName,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Starts so many calls a second, whether or not earlier ones have ended; without it, --concurrency calls are always in flight.
    #[arg(long, value_name = "CALLS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: Option<u32>,
    /// How many calls are in flight: always, or at most when there is a --rate [default: 64, or 65536 with --rate].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) concurrency: Option<u32>,
    /// How many client nodes make the calls in turn; each has a key and connections of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(crate) clients: u32,
    /// How long calls are started.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// The size of each request message, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=MAX_MESSAGE_BYTES as i64))]
    pub(crate) payload: u32,
    /// Makes each call a stream of so many messages, and reads its replies to their end.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) messages: Option<u32>,
    /// How a provider is chosen, as for `macula call`.
    #[arg(long, value_name = "STRATEGY", default_value = "random", env = "MACULA_STRATEGY")]
    pub(crate) strategy: Strategy,
    /// How long a whole call may take, like `2s` or `500ms`.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Asks the directory so many times for the service's providers before the load, one after another, past every cache.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) lookups: u32,
    /// Writes a JSON object for each call to this file: when it started, how it ended, and what was tried.
    #[arg(long, value_name = "FILE")]
    pub(crate) calls: Option<PathBuf>,
    /// Prints the summary as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ProvidersArgs {
    /// The service's name.
    pub(crate) service: ServiceName,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// The service whose health is asked for; without it, each node named is asked for its own health and that of its services, and
    /// without --on the node that runs on this host.
    pub(crate) service: Option<ServiceName>,
    /// With neither a service nor --on: a node that answers is well, even if it is not in the mesh or leaves. For liveness probes.
    #[arg(long)]
    pub(crate) live: bool,
    /// A node to ask, as `macula providers` and a node's own first line name it; may be given several times. Without it every
    /// provider of the service is asked.
    #[arg(long, value_name = "NODEID@HOST:PORT", value_parser = pinned)]
    pub(crate) on: Vec<BootstrapAddr>,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// How long a node is waited for, like `2s` or `500ms`.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Prints one JSON object per node.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// The action; without it, the file is made if missing, and its id is printed.
    #[arg(value_enum)]
    pub(crate) action: Option<IdAction>,
    /// The identity file [default: the data folder's, or ~/.macula/identity].
    #[arg(long, value_name = "FILE", env = "MACULA_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
    /// The data folder of a node, whose identity is meant.
    #[arg(long, value_name = "DIR", env = "MACULA_DATA")]
    pub(crate) data: Option<PathBuf>,
}

/// An action of `macula id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IdAction {
    /// Makes the file; an error when there is one.
    New,
    /// Prints the id; an error when there is no file.
    Show,
    /// Makes a new key in place of the old one, which is kept beside it with the ending `.old`; prints the new id. The node has to be
    /// started again, and those that name its old id have to be told the new one.
    Rotate,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How many providers to start.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(crate) providers: u16,
    /// How many calls to make.
    #[arg(long, value_name = "N", default_value_t = 3000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) calls: u32,
    /// How a provider is chosen, as for `macula call`.
    #[arg(long, value_name = "STRATEGY", default_value = "round_robin", value_parser = strategy)]
    pub(crate) strategy: Strategy,
    /// The size of each request, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=MAX_MESSAGE_BYTES as i64))]
    pub(crate) payload: u32,
    /// Leaves every provider alive.
    #[arg(long)]
    pub(crate) no_kill: bool,
    /// Prints exactly one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Parses an address to listen on.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address of this machine and a port, like `0.0.0.0:9443` or `[::]:9443`".into())
}

/// Parses the address of a node whose id is known.
fn pinned(text: &str) -> Result<BootstrapAddr, String> {
    match text.parse::<BootstrapAddr>() {
        Ok(address) if address.node_id.is_some() => Ok(address),
        Ok(_) => Err(
            "put the node's id in front, like `NODEID@host:9443`: the answer is believed only from that node".into(),
        ),
        Err(error) => Err(error.to_string()),
    }
}

/// Parses a node with its id, or the name of a service.
fn ping_target(text: &str) -> Result<PingTarget, String> {
    if text.contains('@') || text.contains(':') {
        return pinned(text).map(PingTarget::Node);
    }
    let name = text.parse().map_err(|error: macula_node::NameError| error.to_string());
    name.map(PingTarget::Service)
}

/// Parses the name of a strategy, written with underscores or hyphens.
fn strategy(text: &str) -> Result<Strategy, String> {
    let name = text.replace('-', "_");
    name.parse()
        .map_err(|error: <Strategy as std::str::FromStr>::Err| error.to_string())
}

/// Parses `2s`, `500ms`, `1m` or a plain number of seconds; more than nothing and at most a day.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const HELP: &str = "write a time like `2s`, `500ms` or `1m`, more than 0 and at most 24h";
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(HELP.into()),
    };
    let seconds = number.parse::<f64>().map_err(|_| HELP)? * scale;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() && time <= Duration::from_secs(86_400) => Ok(time),
        _ => Err(HELP.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any words are taken or refused, and never a panic.
        #[test]
        fn arbitrary_words_are_taken_or_refused(
            command in prop::sample::select(vec!["node", "call", "providers", "demo", "id", "x"]),
            words in prop::collection::vec("(--[a-z-]{1,12})|[ -~]{0,12}|\\PC{0,4}", 0..5),
        ) {
            let _ = Cli::try_parse_from(["macula".to_owned(), command.to_owned()].into_iter().chain(words));
        }

        #[test]
        fn times_are_read_as_they_are_written(ms in 1..86_400_000_u64) {
            prop_assert_eq!(duration(&format!("{ms}ms")), Ok(Duration::from_millis(ms)));
        }

        #[test]
        fn arbitrary_text_is_no_panic(text in "\\PC{0,20}") {
            let _ = (duration(&text), address(&text), text.parse::<Serve>());
        }
    }

    #[test]
    fn z10_a_strategy_may_be_written_with_hyphens() {
        assert_eq!(strategy("round-robin"), Ok(macula_node::Strategy::RoundRobin));
        assert_eq!(strategy("round_robin"), Ok(macula_node::Strategy::RoundRobin));
        assert!(strategy("best").is_err_and(|error| error.contains("round_robin")));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("1m"), Ok(Duration::from_secs(60)));
        for bad in ["", "s", "0s", "-1s", "2 s", "2d", "1e9", "25h", "1.2.3s", "inf"] {
            assert!(duration(bad).is_err(), "{bad} was taken");
        }
    }
}
