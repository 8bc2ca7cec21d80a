//! The promises of the predecessor's documentation as tests: strategies, exclusion, the default number of attempts,
//! both terminal errors, error replies retried, local-first, the cache, forced refresh, the directory down.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use macula_rpc::{
    AnswerSource, CallError, Cause, Provider, Request, Resolve, ResolveError, ResolveOptions, Resolved, RetryPolicy,
    Routers, Server, ServiceName, Source, Status, StatusCode, Strategy,
};

use crate::mesh::{Peer, caller, directory, name};

async fn echoes(count: usize) -> Vec<Peer> {
    let mut peers = Vec::new();
    for _ in 0..count {
        peers.push(Peer::echo().await);
    }
    peers
}

async fn failing(count: usize) -> Vec<Peer> {
    let mut peers = Vec::new();
    for _ in 0..count {
        peers.push(Peer::failing(StatusCode::Internal).await);
    }
    peers
}

/// S1: `first` is the directory's first, every time.
#[tokio::test]
async fn first_always_takes_the_first_provider() {
    let peers = echoes(3).await;
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(Strategy::First).build();
    for _ in 0..10 {
        client.call(name(), "").await.unwrap();
    }
    assert_eq!(peers.iter().map(Peer::calls).collect::<Vec<_>>(), [10, 0, 0]);
}

/// S1: `random` is the default, and reaches every provider.
#[tokio::test]
async fn random_is_the_default_and_spreads_calls() {
    let peers = echoes(3).await;
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.seed(7).build();
    for _ in 0..60 {
        client.call(name(), "").await.unwrap();
    }
    assert!(
        peers.iter().all(|peer| peer.calls() >= 5),
        "{:?}",
        peers.iter().map(Peer::calls).collect::<Vec<_>>()
    );
}

/// S2: `round_robin` takes turns, on a count of its own for each service.
#[tokio::test]
async fn round_robin_takes_turns_for_each_service_by_itself() {
    let peers = echoes(3).await;
    let other: ServiceName = "api.other".parse().unwrap();
    for peer in &peers {
        peer.server
            .serve(other.clone(), async |_: Request| Ok::<_, Status>(""))
            .unwrap();
    }
    let resolver = directory(&peers).with_service(other.clone(), peers.iter().map(Peer::provider));
    let (_endpoint, builder) = caller(resolver).await;
    let client = builder.strategy(Strategy::RoundRobin).build();
    let mut order = Vec::new();
    for _ in 0..6 {
        let answer = client.request(name()).send("").await.unwrap();
        order.push(answer.provider().unwrap().node_id);
        client.call(&other, "").await.unwrap();
    }
    assert_eq!(order[..3], order[3..]);
    assert_eq!(order.iter().collect::<HashSet<_>>().len(), 3);
}

/// S2: with one provider dead, the others share its calls evenly; the predecessor gave one of them three times as many.
#[tokio::test]
async fn round_robin_is_fair_among_the_survivors_of_a_dead_provider() {
    let mut peers = echoes(3).await;
    let resolver = directory(&peers);
    let dead = peers.remove(1);
    dead.endpoint.shutdown(Duration::ZERO).await;
    let (_endpoint, builder) = caller(resolver).await;
    let client = builder
        .strategy(Strategy::RoundRobin)
        .attempt_timeout(Duration::from_millis(300))
        .build();
    for _ in 0..20 {
        client.call(name(), "").await.unwrap();
    }
    let counts: Vec<_> = peers.iter().map(Peer::calls).collect();
    assert!(counts[0].abs_diff(counts[1]) <= 2, "{counts:?}");
}

/// F1, F2: a failed provider is excluded for the rest of the call, and the caller sees the answer of another one only.
#[tokio::test]
async fn failover_excludes_who_failed_and_the_caller_does_not_notice() {
    let mut peers = failing(2).await;
    peers.push(Peer::echo().await);
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.build();
    for _ in 0..3 {
        assert_eq!(client.call(name(), "x").await.unwrap(), "x");
    }
    assert_eq!(peers[2].calls(), 3);
}

/// F3: three attempts, or as many as there are providers.
#[tokio::test]
async fn the_default_is_three_attempts_or_all_if_fewer() {
    for (providers, tried) in [(1, 1), (2, 2), (3, 3), (5, 3)] {
        let peers = failing(providers).await;
        let (_endpoint, builder) = caller(directory(&peers)).await;
        let error = builder.build().call(name(), "").await.unwrap_err();
        assert_eq!(error.attempts().len(), tried, "{error}");
        assert_eq!(peers.iter().map(Peer::calls).sum::<usize>(), tried);
    }
}

/// F4: exhaustion is checked before the limit.
#[tokio::test]
async fn the_two_terminal_errors_are_told_apart() {
    for (providers, limit, expected) in [
        (3, None, "all_providers_failed"),
        (5, None, "max_attempts_exceeded"),
        (2, Some(2), "all_providers_failed"),
        (2, Some(1), "max_attempts_exceeded"),
        (1, Some(1), "all_providers_failed"),
    ] {
        let peers = failing(providers).await;
        let (_endpoint, builder) = caller(directory(&peers)).await;
        let call = builder.build().request(name());
        let call = match limit {
            Some(limit) => call.max_attempts(limit),
            None => call,
        };
        let error = call.send("").await.unwrap_err();
        assert_eq!(
            error.name(),
            expected,
            "{providers} providers, limit {limit:?}: {error}"
        );
        assert!(error.to_string().starts_with(expected), "{error}");
        assert!(!error.to_string().contains('\n'), "one line: {error}");
    }
}

/// F6: every error reply is retried under `AnyError`, the caller's own faults too.
#[tokio::test]
async fn every_error_reply_is_retried_under_any_error() {
    for code in StatusCode::ALL.into_iter().filter(|code| *code != StatusCode::Ok) {
        let peers = [Peer::failing(code).await, Peer::echo().await];
        let (_endpoint, builder) = caller(directory(&peers)).await;
        let client = builder.strategy(Strategy::First).build();
        let call = client.request(name()).retry_policy(RetryPolicy::AnyError);
        let answer = call.send("x").await.unwrap();
        let failed = answer.failed_attempts();
        assert!(
            matches!(&failed[0].cause, Cause::Answered(status) if status.code() == code),
            "{code}"
        );
    }
}

/// A directory with a cache: it counts how often the network was asked, and can be cut off.
struct Cached {
    providers: Arc<[Provider]>,
    asked: Arc<AtomicUsize>,
    fresh: bool,
    down: bool,
}

impl Resolve for Cached {
    fn resolve<'a>(
        &'a self,
        _service: &'a ServiceName,
        options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        let cached = self.fresh && !options.force_refresh;
        let answer = match (cached, self.down) {
            (true, _) => Ok(Source::Cache),
            (false, true) => Err(ResolveError::Unreachable),
            (false, false) => {
                self.asked.fetch_add(1, SeqCst);
                Ok(Source::Dht)
            }
        };
        let providers = Arc::clone(&self.providers);
        Box::pin(std::future::ready(answer.map(|source| Resolved { providers, source })))
    }
}

fn cached(peers: &[Peer], fresh: bool, down: bool) -> (Cached, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let directory = Cached {
        providers: peers.iter().map(Peer::provider).collect(),
        asked: Arc::clone(&asked),
        fresh,
        down,
    };
    (directory, asked)
}

/// Step 1: a call of a service of this process needs no network and no directory.
#[tokio::test]
async fn a_local_handler_goes_before_everything() {
    let peers = echoes(1).await;
    let (resolver, asked) = cached(&peers, false, false);
    let here = Server::new();
    here.serve(name(), async |_: Request| Ok::<_, Status>("here")).unwrap();
    let (endpoint, builder) = caller(resolver).await;
    let answer = builder
        .local_first(here)
        .build()
        .request(name())
        .send("")
        .await
        .unwrap();
    assert_eq!(
        (answer.payload().as_ref(), answer.source()),
        (&b"here"[..], AnswerSource::Local)
    );
    assert_eq!((asked.load(SeqCst), endpoint.pool().stats().opened), (0, 0));
}

/// Steps 2 and 3, D7: a fresh entry of the cache is used, and `force_refresh` skips it.
#[tokio::test]
async fn the_cache_is_used_until_a_refresh_is_forced() {
    let peers = echoes(1).await;
    let (resolver, asked) = cached(&peers, true, false);
    let (_endpoint, builder) = caller(resolver).await;
    let client = builder.build();
    let answer = client.request(name()).send("").await.unwrap();
    assert_eq!(
        (answer.source(), asked.load(SeqCst)),
        (AnswerSource::Directory(Source::Cache), 0)
    );
    let answer = client.request(name()).force_refresh().send("").await.unwrap();
    assert_eq!(
        (answer.source(), asked.load(SeqCst)),
        (AnswerSource::Directory(Source::Dht), 1)
    );
}

struct Via(Provider);

impl Routers for Via {
    fn routers(&self) -> Vec<Provider> {
        vec![self.0.clone()]
    }
}

/// Step 4: with the directory down, cached services are still called, and calls of others go to the router.
#[tokio::test]
async fn with_the_directory_down_the_cache_serves_and_then_the_router() {
    let peers = echoes(1).await;
    let (resolver, _) = cached(&peers, true, true);
    let (_endpoint, builder) = caller(resolver).await;
    let answer = builder.build().request(name()).send("").await.unwrap();
    assert_eq!(answer.source(), AnswerSource::Directory(Source::Cache));

    let (resolver, _) = cached(&peers, false, true);
    let (_endpoint, builder) = caller(resolver).await;
    let answer = builder
        .routers(Via(peers[0].provider()))
        .build()
        .request(name())
        .send("")
        .await
        .unwrap();
    assert_eq!(answer.source(), AnswerSource::Router);
}

/// S5: no provider is an error before anything is selected.
#[tokio::test]
async fn a_service_without_a_provider_is_service_not_found() {
    let (resolver, _) = cached(&[], true, false);
    let (_endpoint, builder) = caller(resolver).await;
    let error = builder.build().call(name(), "").await.unwrap_err();
    assert!(matches!(error, CallError::ServiceNotFound { .. }), "{error}");
}
