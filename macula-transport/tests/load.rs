//! A busy node reports its load to the peers that call it.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{Service, client, clock::Clock, connect, echoes, node, provider, until};
use futures::future::BoxFuture;
use macula_transport::{Handler, IncomingCall, LoadReport, Reply};

/// Reports the given load, in percent.
struct Busy(Service, Arc<AtomicU32>);

impl Handler for Busy {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        self.0.call(call)
    }

    fn load(&self) -> Option<LoadReport> {
        let running = self.1.load(SeqCst);
        Some(LoadReport { running, capacity: 100 })
    }
}

/// A little more than the time between two looks at the load.
const LOOK: Duration = Duration::from_millis(1050);

#[tokio::test]
async fn a_busy_node_tells_its_callers_alone() {
    let clock = Clock::stop();
    let (service, _events) = Service::new();
    let running = Arc::new(AtomicU32::new(0));
    let provider = node(Busy(service, running.clone())).await;
    let (caller, bystander) = (client().await, client().await);
    let connection = connect(&caller, &provider).await.unwrap();
    let unused = connect(&bystander, &provider).await.unwrap();
    let known = || connection.load().map(|(load, _)| load.running);

    echoes(&connection, "hello").await;
    clock.pass(LOOK).await;
    assert_eq!(connection.load(), None, "an idle node says nothing");
    for load in [40, 90, 0] {
        running.store(load, SeqCst);
        echoes(&connection, "hello").await;
        clock.pass(LOOK).await;
        until("the caller is told", || known() == Some(load)).await;
    }
    assert_eq!(connection.load().unwrap().0.capacity, 100);
    let (_, told_at) = connection.load().unwrap();
    echoes(&connection, "hello").await;
    clock.pass(LOOK).await;
    assert_eq!(connection.load().unwrap().1, told_at, "nothing has changed");
    clock.pass(LOOK * 2).await;
    running.store(70, SeqCst);
    clock.pass(LOOK).await;
    assert_eq!(known(), Some(0), "who has stopped calling is not told");
    assert_eq!(unused.load(), None);
}

#[tokio::test]
async fn a_node_whose_handler_knows_no_load_tells_none() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    for _ in 0..3 {
        echoes(&connection, "hello").await;
        clock.pass(LOOK).await;
    }
    assert_eq!(connection.load(), None);
}
