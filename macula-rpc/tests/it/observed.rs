//! The spans, traces and numbers of calls.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex},
};

use futures::stream;
use macula_rpc::{
    Client, Propagate, Provider, Request, Requests, Resolve, ResolveError, ResolveOptions, Resolved, Routers, Server,
    ServiceName, Source, Status, StatusCode, Strategy, TRACEPARENT, TraceContext, W3c,
};
use tracing::{
    Dispatch, Id, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::with_default,
};
use tracing_subscriber::{Layer, layer::Context, prelude::*, registry::LookupSpan};

use crate::mesh::{Peer, caller, directory, name, serving};

/// The spans that were made: name, parent's name, fields.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<BTreeMap<u64, Recorded>>>);

#[derive(Clone, Default, Debug)]
struct Recorded {
    name: &'static str,
    parent: Option<u64>,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for Recorded {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("macula_rpc")
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let mut recorded = Recorded {
            name: span.name(),
            parent: span.parent().map(|parent| parent.id().into_u64()),
            ..Recorded::default()
        };
        attributes.record(&mut recorded);
        self.0.lock().unwrap().insert(id.into_u64(), recorded);
    }

    fn on_record(&self, id: &Id, values: &span::Record<'_>, _: Context<'_, S>) {
        values.record(self.0.lock().unwrap().get_mut(&id.into_u64()).unwrap());
    }
}

impl Spans {
    fn named(&self, name: &str) -> Vec<(u64, Recorded)> {
        let spans = self.0.lock().unwrap();
        let named = spans.iter().filter(|(_, span)| span.name == name);
        named.map(|(id, span)| (*id, span.clone())).collect()
    }
}

/// A second subscriber, which lives as long as the tests. With only one subscriber, `tracing` asks just the thread that first makes a
/// span, and may disable the span for all threads.
static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));

/// Runs a test whose spans are recorded, on this thread alone. Spans are never closed, so that their ids are not used again.
fn recorded<F: Future>(test: impl FnOnce(Spans) -> F) -> F::Output {
    LazyLock::force(&ANOTHER);
    let spans = Spans::default();
    let subscriber = tracing_subscriber::registry().with(spans.clone());
    with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(spans))
    })
}

#[test]
fn a_call_and_each_of_its_attempts_is_a_span() {
    recorded(|spans| async move {
        let peers = [Peer::failing(StatusCode::Internal).await, Peer::echo().await];
        let (_endpoint, builder) = caller(directory(&peers)).await;
        let client = builder.strategy(Strategy::First).build();
        client.request(name()).method("Sum").send("x").await.unwrap();

        let [(call_id, call)] = &spans.named("rpc.call")[..] else {
            panic!("one call")
        };
        for (field, value) in [
            ("otel.kind", "client"),
            ("otel.name", "api.compute/Sum"),
            ("rpc.system", "macula"),
            ("rpc.service", "api.compute"),
            ("rpc.method", "Sum"),
            ("macula.directory", "static"),
            ("macula.attempts", "2"),
        ] {
            assert_eq!(
                call.fields.get(field).map(String::as_str),
                Some(value),
                "{field}: {call:?}"
            );
        }
        assert!(!call.fields.contains_key("error.type"));

        let [(_, first), (_, second)] = &spans.named("rpc.attempt")[..] else {
            panic!("two attempts")
        };
        assert_eq!(first.parent, Some(*call_id));
        assert_eq!(second.parent, Some(*call_id));
        assert_eq!(first.fields["error.type"], "answered");
        assert_eq!(
            first.fields["rpc.response.status_code"],
            StatusCode::Internal.to_string()
        );
        assert_eq!(second.fields["rpc.response.status_code"], "ok");
        assert_eq!(second.fields["server.address"], "127.0.0.1");
        assert_eq!(
            second.fields["server.port"],
            peers[1].endpoint.local_addr().port().to_string()
        );
        assert_eq!(second.fields["macula.node_id"], peers[1].id().to_string());

        let served = spans.named("rpc.serve");
        assert_eq!(served.len(), 2);
        assert!(served.iter().all(|(_, span)| span.fields["otel.kind"] == "server"));
    });
}

#[test]
fn the_step_of_the_directorys_order_is_in_the_span() {
    recorded(|spans| async move {
        let here = Server::new();
        here.serve(name(), async |_: Request| Ok::<_, Status>("here")).unwrap();
        let words = async |_: Request<Requests>| Ok::<_, Status>(stream::iter([Ok::<_, Status>("here")]));
        here.serve_streaming("api.words".parse().unwrap(), words).unwrap();
        let (_endpoint, builder) = caller(macula_rpc::StaticResolver::new()).await;
        let client = builder.local_first(here).build();
        client.call(name(), "").await.unwrap();
        let mut replies = client.request("api.words").stream(stream::empty()).await.unwrap();
        while replies.next().await.unwrap().is_some() {}
        client.call("no.such", "").await.unwrap_err();
        let steps = |span: &(u64, Recorded)| span.1.fields.get("macula.directory").cloned();
        let calls = spans.named("rpc.call");
        assert_eq!(
            calls.iter().filter_map(steps).collect::<Vec<_>>(),
            ["local", "local", "static"]
        );
        assert_eq!(calls[2].1.fields["error.type"], "service_not_found");
        assert_eq!(calls[2].1.fields["otel.status_code"], "ERROR");
    });
}

/// A directory of one provider that has found it in each of these ways in turn; `None` is no answer.
struct Found(Mutex<Vec<Option<Source>>>, Provider);

impl Resolve for Found {
    fn resolve<'a>(
        &'a self,
        _: &'a ServiceName,
        _: ResolveOptions,
    ) -> futures::future::BoxFuture<'a, Result<Resolved, ResolveError>> {
        let source = self.0.lock().unwrap().pop().flatten();
        let providers = [self.1.clone()].into();
        let found = source.map(|source| Resolved { providers, source });
        Box::pin(std::future::ready(found.ok_or(ResolveError::Unreachable)))
    }
}

/// The routers of a node: this one.
struct Via(Provider);

impl Routers for Via {
    fn routers(&self) -> Vec<Provider> {
        vec![self.0.clone()]
    }
}

#[test]
fn every_way_to_a_provider_is_in_the_span() {
    recorded(|spans| async move {
        let peer = Peer::echo().await;
        let ways = [Some(Source::Cache), Some(Source::Dht), Some(Source::Dns), None];
        let found = Found(Mutex::new(ways.into_iter().rev().collect()), peer.provider());
        let (_endpoint, builder) = caller(found).await;
        let client = builder.routers(Via(peer.provider())).build();
        for _ in ways {
            client.call(name(), "").await.unwrap();
        }
        let calls = spans.named("rpc.call");
        let steps: Vec<_> = calls
            .iter()
            .map(|(_, span)| span.fields["macula.directory"].as_str())
            .collect();
        assert_eq!(steps, ["cache", "dht", "dns", "router"]);
    });
}

#[cfg(feature = "testing")]
#[test]
fn a_routed_call_is_a_span_at_the_router_too() {
    recorded(|spans| async move {
        tokio::time::pause();
        let (mesh, client, _kept) = crate::routed::routed().await;
        let echo = async |request: Request| Ok::<_, Status>(request.into_payload());
        mesh.node("a").serve("api.echo", echo);
        client.call("api.echo", "x").await.unwrap();
        // The caller's, the router's own call among them, and each side's serving.
        assert_eq!(spans.named("rpc.serve").len(), 2);
        assert_eq!(spans.named("rpc.call").len(), 2);
    });
}

/// A provider that answers with the `traceparent` it got.
async fn tells_its_trace() -> Peer {
    serving(async |request: Request| Ok::<_, Status>(request.metadata().get(TRACEPARENT).cloned().unwrap_or_default()))
        .await
}

#[tokio::test]
async fn a_trace_is_sent_only_when_asked_for_and_never_over_the_calls_own() {
    let peer = tells_its_trace().await;
    let peers = std::slice::from_ref(&peer);
    let (_endpoint, builder) = caller(directory(peers)).await;
    assert_eq!(builder.build().call(name(), "").await.unwrap(), "");

    let (_endpoint, builder) = caller(directory(peers)).await;
    let client = builder.propagate(W3c).build();
    let sent = TraceContext::parse(&client.call(name(), "").await.unwrap()).unwrap();
    assert!(sent.is_sampled());
    let again = TraceContext::parse(&client.call(name(), "").await.unwrap()).unwrap();
    assert_ne!(
        sent.trace_id(),
        again.trace_id(),
        "each call that continues nothing is a trace of its own"
    );

    let own = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let call = client
        .request(name())
        .metadata([(TRACEPARENT, own)].into_iter().collect());
    assert_eq!(call.send("").await.unwrap().payload(), own);
}

#[tokio::test]
async fn a_handlers_calls_continue_the_trace_of_the_call_it_answers() {
    let last = tells_its_trace().await;
    let (_onward, builder) = caller(directory(std::slice::from_ref(&last))).await;
    let onward = builder.propagate(W3c).build();
    let middle = serving(move |_: Request| {
        let onward: Client = onward.clone();
        async move {
            let current = TraceContext::current().unwrap().to_string();
            let next = onward
                .call(name(), "")
                .await
                .map_err(|error| Status::internal(error.to_string()))?;
            Ok::<_, Status>(format!("{current} {}", String::from_utf8_lossy(&next)))
        }
    })
    .await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&middle))).await;
    let answer = builder.propagate(W3c).build().call(name(), "").await.unwrap();
    let text = String::from_utf8(answer.to_vec()).unwrap();
    let (middle, last) = text.split_once(' ').unwrap();
    let (middle, last) = (
        TraceContext::parse(middle.as_bytes()).unwrap(),
        TraceContext::parse(last.as_bytes()).unwrap(),
    );
    assert_eq!(middle.trace_id(), last.trace_id());
    assert_ne!(middle.parent_id(), last.parent_id());
}

#[tokio::test]
async fn an_exporter_gives_its_own_ids_and_hears_of_incoming_ones() {
    #[derive(Clone, Default)]
    struct Exporter(Arc<Mutex<Vec<TraceContext>>>);

    impl Propagate for Exporter {
        fn outgoing(&self, _: &tracing::Span, _: Option<TraceContext>) -> Option<TraceContext> {
            TraceContext::new(7, 9, true)
        }

        fn incoming(&self, _: &tracing::Span, context: TraceContext) {
            self.0.lock().unwrap().push(context);
        }
    }

    let exporter = Exporter::default();
    let peer = Peer::echo().await;
    peer.server.propagate(exporter.clone());
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    builder
        .propagate(exporter.clone())
        .build()
        .call(name(), "")
        .await
        .unwrap();
    assert_eq!(*exporter.0.lock().unwrap(), [TraceContext::new(7, 9, true).unwrap()]);
}

#[cfg(feature = "metrics")]
mod metrics {
    use std::{collections::BTreeMap, time::Duration};

    use macula_rpc::{BudgetConfig, Hedge, Request, Status, StatusCode, Strategy};
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use crate::mesh::{Peer, caller, directory, name, serving};

    /// F9: retries that the budget forbids are counted.
    #[tokio::test]
    async fn f9_calls_that_the_budget_does_not_let_repeat_are_counted() {
        let recorder = DebuggingRecorder::new();
        let snapshots = recorder.snapshotter();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let peers = [Peer::failing(StatusCode::Internal).await, Peer::echo().await];
        let (_endpoint, builder) = caller(directory(&peers)).await;
        let nothing = BudgetConfig {
            ratio: 0.0,
            per_second: 0.0,
            ..BudgetConfig::default()
        };
        let client = builder.strategy(Strategy::First).retry_budget(nothing).build();
        client.call(name(), "x").await.unwrap_err();
        let held_back = snapshots.snapshot().into_vec().into_iter().find(|(key, ..)| {
            let reason = key.key().labels().any(|label| label.value() == "budget_exhausted");
            key.key().name() == "macula.rpc.not_retried" && reason
        });
        assert!(matches!(held_back, Some((.., DebugValue::Counter(1)))), "{held_back:?}");
    }

    /// F10: an attempt beside another one is no failover.
    #[tokio::test]
    async fn f10_a_hedge_is_not_counted_as_a_failover() {
        let recorder = DebuggingRecorder::new();
        let snapshots = recorder.snapshotter();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let slow = serving(async |request: Request| {
            if request.payload() == "slow" {
                std::future::pending::<()>().await;
            }
            Ok::<_, Status>("quick")
        });
        let peers = [slow.await, Peer::echo().await];
        let (_endpoint, builder) = caller(directory(&peers)).await;
        let client = builder.strategy(Strategy::First).build();
        // Hedges are a twentieth of the calls at most.
        for _ in 0..40 {
            client.call(name(), "quick").await.unwrap();
        }
        let hedged = client.request(name()).idempotent();
        let answer = hedged.hedge(Hedge::After(Duration::from_millis(5))).send("slow").await;
        assert_eq!(answer.unwrap().provider().unwrap().node_id, peers[1].id());
        let names = snapshots.snapshot().into_vec().into_iter();
        let failovers = names.filter(|(key, ..)| key.key().name() == "macula.rpc.failovers");
        assert_eq!(failovers.count(), 0);
    }

    #[tokio::test]
    async fn calls_attempts_fates_failovers_lookups_and_the_pool_are_counted() {
        let recorder = DebuggingRecorder::new();
        let snapshots = recorder.snapshotter();
        let _guard = metrics::set_default_local_recorder(&recorder);

        let peers = [Peer::failing(StatusCode::Internal).await, Peer::echo().await];
        let (_endpoint, builder) = caller(directory(&peers)).await;
        let client = builder.strategy(Strategy::First).build();
        macula_rpc::describe_metrics();
        client.call(name(), "x").await.unwrap();
        client.call("no.such", "x").await.unwrap_err();

        let mut counters = BTreeMap::new();
        let mut durations = BTreeMap::new();
        let readme = include_str!("../../README.md");
        for (key, _, meaning, value) in snapshots.snapshot().into_vec() {
            let name = key.key().name();
            assert!(meaning.is_some(), "describe_metrics leaves {name} out");
            let is_listed = readme.contains(&format!("`{name}`")) || name.starts_with("macula.pool.");
            assert!(is_listed, "the readme's table lacks {name}");
            let labels: Vec<_> = key.key().labels().map(|label| label.value().to_owned()).collect();
            let name = format!("{} {}", key.key().name(), labels.join(" "));
            match value {
                DebugValue::Counter(count) => drop(counters.insert(name, count)),
                DebugValue::Gauge(value) => drop(counters.insert(name, value.into_inner() as u64)),
                DebugValue::Histogram(samples) => drop(durations.insert(name, samples.len())),
            }
        }
        for (counter, count) in [
            ("macula.rpc.calls api.compute ok", 1),
            ("macula.rpc.calls no.such service_not_found", 1),
            ("macula.rpc.attempts api.compute answered", 1),
            ("macula.rpc.attempts api.compute ok", 1),
            ("macula.rpc.failovers api.compute", 1),
            ("macula.rpc.lookups api.compute static", 1),
            ("macula.rpc.served api.compute ok", 1),
            ("macula.rpc.served api.compute error", 1),
            ("macula.pool.opened ", 2),
            ("macula.pool.connections ", 2),
        ] {
            assert_eq!(counters.get(counter), Some(&count), "{counter} of {counters:#?}");
        }
        assert_eq!(durations["rpc.client.call.duration api.compute"], 1);
        assert_eq!(durations["macula.rpc.attempt.duration api.compute"], 2);
        assert_eq!(durations["rpc.server.call.duration api.compute"], 2);
    }

    /// A recorder keeps every label for ever, and peers choose the names of services.
    #[cfg(feature = "testing")]
    #[tokio::test(start_paused = true)]
    async fn names_that_peers_make_up_are_no_labels() {
        let recorder = DebuggingRecorder::new();
        let snapshots = recorder.snapshotter();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let (mesh, client, _kept) = crate::routed::routed().await;
        mesh.node("a")
            .serve("api.real", async |_: Request| Ok::<_, Status>("real"));
        assert_eq!(client.call("api.real", "").await.unwrap(), "real");
        let mut attempts = BTreeMap::new();
        for (key, _, _, value) in snapshots.snapshot().into_vec() {
            let service = key.key().labels().find(|label| label.key() == "rpc.service");
            if let ("macula.rpc.attempts", Some(service), DebugValue::Counter(count)) =
                (key.key().name(), service, value)
            {
                *attempts.entry(service.value().to_owned()).or_insert(0) += count;
            }
        }
        // The caller's own, and the router's.
        let both = [("_OTHER".to_owned(), 1), ("api.real".to_owned(), 1)];
        assert_eq!(attempts, BTreeMap::from(both));
    }

    /// A recorder keeps every label for ever, and callers choose the names of methods.
    #[tokio::test]
    async fn methods_are_labels_when_this_process_names_them() {
        let recorder = DebuggingRecorder::new();
        let snapshots = recorder.snapshotter();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let peers = [Peer::echo().await];
        peers[0].server.name_methods(&name(), ["Sum"]).unwrap();
        let (_endpoint, builder) = caller(directory(&peers)).await;
        let client = builder.build();
        for method in ["Sum", "Made.Up", "Another", ""] {
            client.request(name()).method(method).send("x").await.unwrap();
        }
        let mut counted = BTreeMap::new();
        for (key, _, _, value) in snapshots.snapshot().into_vec() {
            let method = key.key().labels().find(|label| label.key() == "rpc.method");
            let method = method.map_or("", |label| label.value());
            if let DebugValue::Counter(count) = value {
                counted.insert(format!("{} {method}", key.key().name()), count);
            }
        }
        for (served, count) in [("Sum", 1), ("_OTHER", 2), ("", 1)] {
            assert_eq!(
                counted.get(&format!("macula.rpc.served {served}")),
                Some(&count),
                "{counted:?}"
            );
        }
        // The caller's own names are its own code's.
        for called in ["Sum", "Made.Up", "Another", ""] {
            assert_eq!(
                counted.get(&format!("macula.rpc.calls {called}")),
                Some(&1),
                "{counted:?}"
            );
        }
        assert!(!counted.contains_key("macula.rpc.served Made.Up"));
    }

    /// A stream is over with its last reply, and not with its first.
    #[cfg(feature = "testing")]
    #[tokio::test(start_paused = true)]
    async fn a_stream_is_counted_when_it_ends_and_as_what_it_ended() {
        use futures::{StreamExt as _, stream};
        use macula_rpc::{Requests, testing::Mesh};

        use crate::mesh::pass;

        let recorder = DebuggingRecorder::new();
        let snapshots = recorder.snapshotter();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let mesh = Mesh::new(17);
        mesh.node("a")
            .serve_streaming("text.stream", async |request: Request<Requests>| {
                let method = request.method().to_owned();
                let later = stream::once(async move {
                    pass(Duration::from_secs(5)).await;
                    match method.as_str() {
                        "fail" => Err(Status::invalid_argument("on purpose")),
                        _ => Ok("second"),
                    }
                });
                Ok::<_, Status>(stream::iter([Ok("first")]).chain(later))
            })
            .serve("text.once", async |_: Request| Ok::<_, Status>("only"));
        let client = mesh.node("caller").client();
        let calls = || {
            let (mut calls, mut longest) = (BTreeMap::new(), 0.0_f64);
            for (key, _, _, value) in snapshots.snapshot().into_vec() {
                match (key.key().name(), value) {
                    ("macula.rpc.calls", DebugValue::Counter(count)) => {
                        let outcome = key.key().labels().find(|label| label.key() == "outcome");
                        *calls.entry(outcome.unwrap().value().to_owned()).or_insert(0) += count;
                    }
                    ("rpc.client.call.duration", DebugValue::Histogram(samples)) => {
                        longest = samples.iter().map(|it| it.into_inner()).fold(longest, f64::max);
                    }
                    _ => {}
                }
            }
            calls.retain(|_, count| *count > 0);
            (calls.into_iter().collect::<Vec<_>>(), longest)
        };
        for (method, outcome) in [("", "ok"), ("fail", "answered"), ("drop", "cancelled")] {
            let call = client.request("text.stream").method(method);
            let mut replies = call.stream(stream::empty()).await.unwrap();
            replies.next().await.unwrap();
            assert_eq!(calls().0, [], "it goes on");
            while method != "drop" && replies.next().await.is_ok_and(|next| next.is_some()) {}
            drop(replies);
            let (counted, longest) = calls();
            assert_eq!(counted, [(outcome.to_owned(), 1)]);
            assert_eq!(longest >= 5.0, method != "drop", "{longest}");
        }
        // One reply, taken: the call was not cancelled.
        let mut once = client.request("text.once").stream(stream::empty()).await.unwrap();
        assert_eq!(once.next().await.unwrap().unwrap(), "only");
        drop(once);
        assert_eq!(calls().0, [("ok".to_owned(), 1)]);
    }

    /// A handler's refusal counts as refused in its own numbers too, for streams as for other calls.
    #[cfg(feature = "testing")]
    #[tokio::test(start_paused = true)]
    async fn a_peers_stream_that_is_refused_is_counted_as_refused() {
        use futures::stream;
        use macula_rpc::{Requests, testing::Mesh};

        let recorder = DebuggingRecorder::new();
        let snapshots = recorder.snapshotter();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let mesh = Mesh::new(18);
        mesh.node("a")
            .serve_streaming("text.full", async |_: Request<Requests>| {
                Err::<stream::Empty<Result<&str, Status>>, _>(Status::refused("full"))
            });
        let client = mesh.node("caller").client();
        let call = client.request("text.full").stream(stream::empty());
        call.await.unwrap_err();
        assert_eq!(served(&snapshots), [("refused".to_owned(), 1)]);
    }

    /// The served calls by outcome.
    #[cfg(any(feature = "testing", feature = "tonic"))]
    fn served(snapshots: &metrics_util::debugging::Snapshotter) -> Vec<(String, u64)> {
        let all = snapshots.snapshot().into_vec().into_iter();
        let served = all.filter_map(|(key, _, _, value)| match value {
            DebugValue::Counter(count) if count > 0 && key.key().name() == "macula.rpc.served" => {
                let outcome = key.key().labels().find(|label| label.key() == "outcome")?;
                Some((outcome.value().to_owned(), count))
            }
            _ => None,
        });
        served.collect()
    }

    /// As over the network: a gRPC service that ends without a status has failed, and was not cancelled.
    #[cfg(feature = "tonic")]
    #[tokio::test]
    async fn a_stubs_call_of_this_process_without_a_status_is_counted_as_failed() {
        use std::convert::Infallible;

        use macula_rpc::{Channel, Server, StaticResolver, TonicServices};
        use tonic::{
            body::Body,
            codegen::{Service as _, http},
        };

        use crate::mesh::caller;

        for (status, words) in [(http::StatusCode::OK, "words"), (http::StatusCode::UNAUTHORIZED, "")] {
            let recorder = DebuggingRecorder::new();
            let snapshots = recorder.snapshotter();
            let _guard = metrics::set_default_local_recorder(&recorder);
            let answer = move |_: http::Request<Body>| async move {
                let response = http::Response::builder().status(status);
                Ok::<_, Infallible>(response.body(words.to_owned()).unwrap())
            };
            let server = Server::new();
            let services = TonicServices::new().with_routes(["text.Plain"], tower::service_fn(answer));
            server.serve_tonic(services).unwrap();
            let (_endpoint, builder) = caller(StaticResolver::new()).await;
            let mut channel = Channel::new(builder.local_first(server).build());
            let request = http::Request::post("/text.Plain/Say").body(Body::empty()).unwrap();
            let code = match channel.call(request).await {
                Ok(response) => {
                    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
                    let status = tonic::Status::from_header_map(body.trailers().unwrap()).unwrap();
                    assert_eq!(body.to_bytes(), words);
                    status.code()
                }
                Err(status) => status.code(),
            };
            let expected = match status {
                http::StatusCode::OK => tonic::Code::Unknown,
                _ => tonic::Code::Unauthenticated,
            };
            assert_eq!(code, expected);
            assert_eq!(served(&snapshots), [("error".to_owned(), 1)], "{status}");
        }
    }
}
