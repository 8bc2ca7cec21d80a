//! Calls in an open and in a closed realm, in turns: what access costs a call (A8).

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use futures::future::join_all;
use macula_rpc::{Channel, Client, NodeId, Provider, ServiceName, StaticResolver, TonicServices};
use macula_transport::{Access, Config, Endpoint, Handler, Identity, NoService};
use macula_wire::{Grant, GrantRole, Issue, Patterns, Realm, RealmKey, RealmName, SecretKey, Signer as _};
use serde_json::{Value, json};
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service, http},
};
use tonic_health::pb::HealthCheckRequest as Message;

use crate::{Facade, Failure, ROUNDS, Side, echoing, median, micros, progress, round};

/// A gRPC service that answers with what it was sent.
#[derive(Clone)]
struct Echo;

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl tonic::server::UnaryService<Message> for Echo {
    type Response = Message;
    type Future = BoxFuture<tonic::Response<Message>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<Message>) -> Self::Future {
        Box::pin(std::future::ready(Ok(tonic::Response::new(request.into_inner()))))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let codec = tonic_prost::ProstCodec::<Message, Message>::default();
        Box::pin(async move { Ok(tonic::server::Grpc::new(codec).unary(Self, request).await) })
    }
}

/// A generated client's call.
struct Stub {
    channel: Channel,
    text: String,
}

impl Side for Stub {
    async fn call(&self) -> Result<(), Failure> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|_| "the channel is never busy")?;
        let codec = tonic_prost::ProstCodec::<Message, Message>::default();
        let path = http::uri::PathAndQuery::from_static("/bench.Echo/Call");
        let message = Message {
            service: self.text.clone(),
        };
        client.unary(tonic::Request::new(message), path, codec).await?;
        Ok(())
    }
}

/// Of a member of the open realm, or of a closed one with its own grant and its issuer's.
fn access(closed: bool, node_id: NodeId) -> Result<Access, Failure> {
    if !closed {
        return Ok(Access::new(Realm::default(), node_id));
    }
    let (key, issuer) = (RealmKey::from_bytes(&[9; 32]), SecretKey::from_bytes(&[8; 32]));
    let realm = key.realm(RealmName::default());
    let access = Access::new(realm.clone(), node_id);
    let day = access.now()..=access.now() + 24 * 60 * 60;
    let services = Patterns::from_iter(["bench.*".parse()?, "mail.in".parse()?, "shop.*".parse()?]);
    let issue = Issue::new(GrantRole::Node, services.clone(), services.clone());
    let own = Grant::new(&realm, issuer.node_id(), day.clone()).with_issue(issue);
    let own = own.sign(&key)?.verify(&realm, access.now())?;
    let grant = Grant::new(&realm, node_id, day)
        .with_provide(services.clone())
        .with_call(services);
    access.set_grant(&grant.issue(&own, &issuer)?)?;
    Ok(access)
}

async fn member(closed: bool, handler: impl Handler) -> Result<Endpoint, Failure> {
    let identity = Identity::generate()?;
    let access = access(closed, identity.node_id())?;
    let config = Config::new(identity).with_access(access);
    Ok(Endpoint::bind(config.with_listen("127.0.0.1:0".parse()?), handler).await?)
}

/// Calls of `callers` tasks, each after its last one was answered: calls a second, and the median time of a call in microseconds.
async fn load<S: Side>(side: &Arc<S>, callers: usize, calls: usize) -> Result<[f64; 2], Failure> {
    let done = Arc::new(AtomicUsize::new(0));
    let begin = Instant::now();
    let tasks = (0..callers).map(|_| {
        let (side, done) = (Arc::clone(side), Arc::clone(&done));
        tokio::spawn(async move {
            let mut times = Vec::new();
            while done.fetch_add(1, Relaxed) < calls {
                let start = Instant::now();
                side.call().await?;
                times.push(micros(start.elapsed()));
            }
            Ok::<_, Failure>(times)
        })
    });
    let mut times = Vec::with_capacity(calls);
    for task in join_all(tasks).await {
        times.extend(task??);
    }
    let rate = calls as f64 / begin.elapsed().as_secs_f64();
    Ok([rate, median(times)])
}

/// The rows of one way to call: open, closed, and what the closed realm costs, medians of the rounds.
async fn compare<S: Side>(way: &str, [open, closed]: [Arc<S>; 2]) -> Result<Vec<Value>, Failure> {
    let mut rows = Vec::new();
    for (callers, calls) in [(1, 5_000), (64, 100_000)] {
        let mut all: [Vec<f64>; 6] = Default::default();
        for at in 0..=ROUNDS {
            // Which of them goes first changes, since a machine slows down and recovers.
            let ([open_rate, open_time], [closed_rate, closed_time]) = match at % 2 {
                0 => {
                    let first = load(&open, callers, calls).await?;
                    (first, load(&closed, callers, calls).await?)
                }
                _ => {
                    let first = load(&closed, callers, calls).await?;
                    (load(&open, callers, calls).await?, first)
                }
            };
            // The first round opens connections and warms up.
            if at > 0 {
                let now = [
                    open_rate,
                    closed_rate,
                    (closed_rate / open_rate - 1.0) * 100.0,
                    open_time,
                    closed_time,
                    (closed_time / open_time - 1.0) * 100.0,
                ];
                all.iter_mut().zip(now).for_each(|(all, now)| all.push(now));
            }
        }
        let mut row = vec![json!(way), json!(callers)];
        row.extend(all.map(|values| round(median(values))));
        progress(&format!("realms, {way}, at {callers}: {row:?}"));
        rows.push(Value::from(row));
    }
    Ok(rows)
}

/// A provider and a caller of one realm, and the caller's two ways to call.
struct Pair {
    plain: Arc<Facade>,
    stub: Arc<Stub>,
    _endpoints: [Endpoint; 2],
}

impl Pair {
    async fn new(closed: bool) -> Result<Self, Failure> {
        let (name, stub): (ServiceName, ServiceName) = ("bench.echo".parse()?, "bench.Echo".parse()?);
        let payload = Bytes::from_static(&[b'x'; 64]);
        let server = echoing(&name)?;
        server.serve_tonic(TonicServices::new().with_server(Echo))?;
        let (provider, caller) = (member(closed, server).await?, member(closed, NoService).await?);
        let at = [Provider::new(provider.node_id(), [provider.local_addr().try_into()?])];
        let known = StaticResolver::new()
            .with_service(name.clone(), at.clone())
            .with_service(stub, at);
        let client = Client::builder(&caller, known).build();
        Ok(Self {
            stub: Arc::new(Stub {
                channel: Channel::new(client.clone()),
                text: String::from_utf8(payload.to_vec())?,
            }),
            plain: Arc::new(Facade { client, name, payload }),
            _endpoints: [provider, caller],
        })
    }
}

pub(crate) async fn realms() -> Result<Value, Failure> {
    let (open, closed) = (Pair::new(false).await?, Pair::new(true).await?);
    let mut rows = compare("Client::call", [Arc::clone(&open.plain), Arc::clone(&closed.plain)]).await?;
    let stubs = [Arc::clone(&open.stub), Arc::clone(&closed.stub)];
    rows.extend(compare("a generated client", stubs).await?);
    Ok(json!({
        "name": "64 B in an open and in a closed realm, in turns",
        "columns": [
            "call by", "in flight", "open, calls/s", "closed, calls/s", "more, %", "open, p50 us", "closed, p50 us", "more, %",
        ],
        "rows": rows,
    }))
}
