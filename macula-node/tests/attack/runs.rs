//! Calls that must not run twice, whatever becomes of their providers (X1).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use macula_node::{Bytes, Limits, Node, Request, RetryPolicy, Status};
use tokio::task::JoinSet;

use crate::{builder, until, way_to};

/// A reply of many packets, so that the provider leaves while some are under way.
const REPLY_BYTES: usize = 60_000;
const CALLS: u32 = 200;
const CALLERS: u32 = 8;

/// How often each call ran.
type Runs = Arc<Mutex<BTreeMap<Bytes, u32>>>;

async fn provider(network: u8, entry: &Node, runs: &Runs) -> Node {
    let runs = Arc::clone(runs);
    let handler = move |request: Request| {
        *runs.lock().unwrap().entry(request.into_payload()).or_default() += 1;
        std::future::ready(Ok::<_, Status>(Bytes::from(vec![7; REPLY_BYTES])))
    };
    let node = builder(network, Limits::default())
        .bootstrap([way_to(entry)])
        .serve("demo.once", handler);
    let node = node.start().await.unwrap();
    node.join().await.unwrap();
    node
}

/// One of two providers leaves in order while calls run. Every call is answered, and none ran twice.
#[tokio::test(flavor = "multi_thread")]
async fn x1_no_call_runs_twice_when_a_provider_leaves() {
    let entry = builder(0, Limits::default()).start().await.unwrap();
    let runs = Runs::default();
    let leaver = provider(1, &entry, &runs).await;
    let _stayer = provider(2, &entry, &runs).await;
    let caller = builder(200, Limits::default()).client().bootstrap([way_to(&entry)]);
    let caller = caller.start().await.unwrap();
    caller.join().await.unwrap();
    let next = Arc::new(AtomicU32::new(0));
    let mut calls = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, next) = (caller.client().clone(), Arc::clone(&next));
        calls.spawn(async move {
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= CALLS {
                    return;
                }
                let call = client.request("demo.once").retry_policy(RetryPolicy::NeverProcessed);
                let answer = call.send(number.to_be_bytes().to_vec()).await.unwrap();
                assert_eq!(answer.into_response().payload().len(), REPLY_BYTES);
            }
        });
    }
    until("a quarter of the calls ran", || {
        runs.lock().unwrap().len() >= CALLS as usize / 4
    })
    .await;
    leaver.shutdown().await;
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
    let runs = runs.lock().unwrap();
    assert_eq!(runs.len(), CALLS as usize);
    assert!(runs.values().all(|times| *times == 1), "{runs:?}");
}
