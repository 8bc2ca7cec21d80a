//! Options of a call or a client: hedges, pauses, budgets, affinity, zones.

use std::{collections::BTreeSet, time::Duration};

use macula_rpc::{
    BudgetConfig, CallError, Client, NodeId, Pushback, Request, StaticResolver, Status, StatusCode, StopReason,
    Strategy,
};

use crate::mesh::{Peer, caller, directory, name, serving};

async fn echoes(count: usize) -> Vec<Peer> {
    let mut peers = Vec::new();
    for _ in 0..count {
        peers.push(Peer::echo().await);
    }
    peers
}

async fn by_affinity(client: &Client, key: u64) -> NodeId {
    let call = client.request(name()).strategy(Strategy::Affinity).affinity(key);
    call.send("x").await.unwrap().provider().unwrap().node_id
}

/// S4: calls of one key stay with one provider, and when it is gone only its keys move.
#[tokio::test]
async fn s4_a_key_stays_with_its_provider_and_only_the_keys_of_a_lost_one_move() {
    let peers = echoes(4).await;
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.build();
    let mut before = Vec::new();
    for key in 0..40 {
        before.push(by_affinity(&client, key).await);
        assert_eq!(by_affinity(&client, key).await, before[key as usize]);
    }
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 4);

    let lost = peers[0].id();
    let (_endpoint, builder) = caller(directory(&peers[1..])).await;
    let client = builder.build();
    for (key, before) in before.into_iter().enumerate() {
        let now = by_affinity(&client, key as u64).await;
        assert!(now == before || before == lost, "key {key} has moved");
    }
}

/// S4: the providers of the client's zone are called while they are healthy.
#[tokio::test]
async fn s4_the_clients_own_zone_is_preferred() {
    let peers = echoes(4).await;
    let zoned = peers.iter().zip(["east", "west", "east", "west"]);
    let providers = zoned.map(|(peer, zone)| peer.provider().with_zone(Some(zone.to_owned())));
    let (_endpoint, builder) = caller(StaticResolver::new().with_service(name(), providers)).await;
    let client = builder.zone("west").build();
    for _ in 0..40 {
        client.call(name(), "x").await.unwrap();
    }
    let calls: Vec<_> = peers.iter().map(Peer::calls).collect();
    assert_eq!((calls[0], calls[1] + calls[2] + calls[3]), (0, 40));
    assert_eq!(calls[2], 0);
}

/// F9: a retry that the budget does not allow is not made, and the error says why.
#[tokio::test]
async fn f9_without_a_budget_nothing_is_retried() {
    let peers = [Peer::failing(StatusCode::Internal).await, Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let nothing = BudgetConfig {
        ratio: 0.0,
        per_second: 0.0,
        ..BudgetConfig::default()
    };
    let client = builder.strategy(Strategy::First).retry_budget(nothing).build();
    let error = client.call(name(), "x").await.unwrap_err();
    let exhausted = StopReason::BudgetExhausted;
    assert!(
        matches!(&error, CallError::NotRetried { reason, .. } if *reason == exhausted),
        "{error}"
    );
    assert_eq!(peers[1].calls(), 0);
}

/// F9: a provider that asks for a pause is not called until it is over, and one that asks for no further try ends the call.
#[tokio::test]
async fn f9_a_providers_pushback_is_honoured() {
    let asking = |asked: Pushback| {
        let status = Status::unavailable("later").with_pushback(asked);
        Peer::with(move |_| Err(status.clone()))
    };
    let peers = [
        asking(Pushback::After(Duration::from_secs(20))).await,
        Peer::echo().await,
    ];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(Strategy::First).build();
    for _ in 0..5 {
        client.call(name(), "x").await.unwrap();
    }
    assert_eq!((peers[0].calls(), peers[1].calls()), (1, 5));

    let peers = [asking(Pushback::Never).await, Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let error = builder
        .strategy(Strategy::First)
        .build()
        .call(name(), "x")
        .await
        .unwrap_err();
    let asked = StopReason::Pushback;
    assert!(
        matches!(&error, CallError::NotRetried { reason, .. } if *reason == asked),
        "{error}"
    );
    assert_eq!(peers[1].calls(), 0);
}

/// F7: a handler sees its caller's proved identity and the deadline.
#[tokio::test]
async fn f7_a_handler_sees_its_caller_and_the_deadline() {
    let peer = serving(async |request: Request| {
        let left = request.deadline().saturating_duration_since(std::time::Instant::now());
        let caller = request.peer().map(|peer| peer.node_id.to_string());
        Ok::<_, Status>(format!("{} {}", left.as_secs(), caller.unwrap_or_default()))
    })
    .await;
    let (endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let call = builder.build().request(name()).timeout(Duration::from_secs(3000));
    let answer = call.attempt_timeout(Duration::from_secs(3000)).send("").await.unwrap();
    let said = String::from_utf8(answer.payload().to_vec()).unwrap();
    let (left, id) = said.split_once(' ').unwrap();
    assert!((2_900..=3_000).contains(&left.parse::<u64>().unwrap()), "{said}");
    assert_eq!(id, endpoint.node_id().to_string());
}

#[cfg(feature = "testing")]
mod in_paused_time {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use bytes::Bytes;
    use macula_rpc::{Backoff, Hedge, Server, testing::Mesh};
    use tokio::time::Instant;

    use super::*;
    use crate::mesh::pass;

    /// F10: a slow first attempt gets a second beside it, whose answer wins, and the first is cancelled. A call that is not declared to
    /// allow that is not made, and says so.
    #[tokio::test(start_paused = true)]
    async fn f10_a_hedge_answers_for_a_slow_provider_and_only_when_the_call_may_run_twice() {
        let mesh = Mesh::new(1);
        // The first call after this is set is slow.
        let next_is_slow = Arc::new(AtomicBool::new(false));
        for node in ["a", "b"] {
            let next_is_slow = Arc::clone(&next_is_slow);
            mesh.node(node).serve(name(), move |_: Request| {
                let slow = next_is_slow.swap(false, SeqCst);
                async move {
                    if slow {
                        pass(Duration::from_secs(1)).await;
                    }
                    Ok::<_, Status>(if slow { "slow" } else { "fast" })
                }
            });
        }
        let client = mesh.node("caller").client();
        // Hedges are a twentieth of the calls at most.
        for _ in 0..40 {
            client.call(name(), "").await.unwrap();
        }
        let hedge = Hedge::After(Duration::from_millis(50));
        next_is_slow.store(true, SeqCst);
        let call = || client.request(name()).hedge(hedge);
        for undeclared in [
            call(),
            call()
                .idempotent()
                .retry_policy(macula_rpc::RetryPolicy::NeverProcessed),
        ] {
            let error = undeclared.send("").await.unwrap_err();
            assert!(matches!(error, CallError::NotHedged { .. }), "{error}");
        }
        let start = Instant::now();
        let answer = call().idempotent().send("").await.unwrap();
        assert_eq!(answer.payload(), "fast");
        assert!(start.elapsed() < Duration::from_millis(100));
        // The loser's handler is dropped.
        pass(Duration::from_millis(10)).await;
        let running = ["a", "b"].map(|node| mesh.node(node).server().running());
        assert_eq!(running, [0, 0]);
    }

    /// F7: a deadline is a point in time and not a timeout; of the two the earlier one holds, and a timeout is the default's
    /// only while there is neither.
    #[tokio::test(start_paused = true)]
    async fn f7_a_call_is_over_at_its_deadline_or_after_its_timeout_whichever_is_first() {
        let mesh = Mesh::new(1);
        let never = |_: Request| std::future::pending::<Result<Bytes, Status>>();
        mesh.node("a").serve(name(), never);
        let client = mesh.node("caller").client();
        for (timeout, deadline, lasts) in [
            (None, Some(2), 2),
            (None, Some(20), 20),
            (Some(1), Some(2), 1),
            (Some(2), Some(1), 1),
            (Some(2), None, 2),
        ] {
            let start = Instant::now();
            let mut call = client.request(name()).attempt_timeout(Duration::from_secs(60));
            if let Some(timeout) = timeout {
                call = call.timeout(Duration::from_secs(timeout));
            }
            if let Some(deadline) = deadline {
                call = call.deadline((start + Duration::from_secs(deadline)).into_std());
            }
            let error = call.send("").await.unwrap_err();
            assert!(matches!(error, CallError::DeadlineExceeded { .. }), "{error}");
            let late = start.elapsed().saturating_sub(Duration::from_secs(lasts));
            assert!(
                start.elapsed().as_secs() == lasts && late < Duration::from_millis(100),
                "{late:?}"
            );
        }
    }

    /// F7: no attempt starts at or after the deadline, here or elsewhere, of a call or of a stream.
    #[tokio::test(start_paused = true)]
    async fn f7_a_call_whose_deadline_has_passed_is_not_made() {
        let mesh = Mesh::new(1);
        let calls = Arc::new(AtomicBool::new(false));
        let called = |calls: &Arc<AtomicBool>| {
            let calls = Arc::clone(calls);
            move |_: Request| {
                calls.store(true, SeqCst);
                async { Ok::<_, Status>("") }
            }
        };
        mesh.node("a").serve(name(), called(&calls));
        let here = Server::new();
        here.serve(name(), called(&calls)).unwrap();
        let there = mesh.node("caller").client();
        let here = mesh.node("caller").client_builder().local_first(here).build();
        for client in [there, here] {
            let call = || client.request(name()).deadline(Instant::now().into_std());
            let error = call().send("").await.unwrap_err();
            assert!(matches!(error, CallError::DeadlineExceeded { .. }), "{error}");
            let error = call().stream(futures::stream::empty()).await.unwrap_err();
            assert!(matches!(error, CallError::DeadlineExceeded { .. }), "{error}");
        }
        assert!(!calls.load(SeqCst));
    }

    /// F7: a handler's own call ends with the call that it answers, and the next provider knows that deadline.
    #[tokio::test(start_paused = true)]
    async fn f7_a_handlers_own_call_takes_over_its_deadline() {
        let mesh = Mesh::new(1);
        mesh.node("b").serve("further.on", async |request: Request| {
            let left = request.deadline() - Instant::now().into_std();
            Ok::<_, Status>(left.as_millis().to_string())
        });
        let client = mesh.node("a").client();
        mesh.node("a").serve(name(), move |request: Request| {
            let call = client.request("further.on").attempt_timeout(Duration::from_secs(60));
            async move {
                pass(Duration::from_secs(3)).await;
                let answer = call.deadline(request.deadline()).send("").await;
                answer
                    .map(|answer| answer.into_response())
                    .map_err(|error| Status::internal(error.to_string()))
            }
        });
        let call = mesh.node("caller").client().request(name());
        let answer = call
            .timeout(Duration::from_secs(8))
            .attempt_timeout(Duration::from_secs(8));
        let answer = answer.send("").await.unwrap();
        let left: u32 = std::str::from_utf8(answer.payload()).unwrap().parse().unwrap();
        assert!((4_800..=5_001).contains(&left), "{left} ms are left");
    }

    /// F9: the first failover is immediate, and those after it wait.
    #[tokio::test(start_paused = true)]
    async fn f9_a_backoff_spares_the_first_failover_and_delays_the_next() {
        let mesh = Mesh::new(2);
        for node in ["a", "b", "c", "d"] {
            mesh.node(node).serve(name(), async |_: Request| {
                Err::<Bytes, _>(Status::internal("on purpose"))
            });
        }
        let client = mesh.node("caller").client();
        let minute = Duration::from_secs(60);
        let backoff = Backoff {
            base: minute,
            max: minute,
        };
        let call = client
            .request(name())
            .timeout(10 * minute)
            .max_attempts(4)
            .backoff(backoff);
        let error = call.send("").await.unwrap_err();
        let starts: Vec<_> = error.attempts().iter().map(|attempt| attempt.started).collect();
        assert_eq!(starts.len(), 4);
        let at_once = Duration::from_millis(100);
        assert!(starts[1] - starts[0] < at_once, "{starts:?}");
        // With full jitter each wait is anything up to a minute.
        assert!(starts[3] - starts[1] > at_once, "{starts:?}");
        assert!(starts[3] - starts[1] <= 2 * minute + at_once, "{starts:?}");
    }
}
