//! The shell against a core whose look is stale.

use std::{net::Ipv4Addr, time::Duration};

use futures::future::{BoxFuture, FutureExt as _};

use super::*;
use crate::{
    CallRequest, Config, Endpoint, Handler, Identity, IncomingCall, NoService, PoolConfig, Reply,
    connection::link::Direction,
};

struct Hang;

impl Handler for Hang {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
        std::future::pending().boxed()
    }
}

fn config() -> Config {
    Config::new(Identity::generate().unwrap()).with_listen((Ipv4Addr::LOCALHOST, 0).into())
}

/// Between the core's look at a connection and its closing, a call may come. Its connection stays open for it, and known.
#[tokio::test]
async fn n4_a_drain_waits_for_a_call_that_came_while_its_connection_was_being_closed() {
    let provider = Endpoint::bind(config(), Hang).await.unwrap();
    let client = Endpoint::bind(config(), NoService).await.unwrap();
    let at = [provider.local_addr().try_into().unwrap()];
    let connection = client.pool().get(&provider.node_id(), &at).await.unwrap();
    let service = "hang".parse().unwrap();
    let mut call = Box::pin(connection.call(CallRequest::new(&service, "").with_timeout(Duration::from_secs(3600))));
    assert!((&mut call).now_or_never().is_none());
    let pool = provider.pool();
    let shell = &pool.shell;
    let link = loop {
        tokio::task::yield_now().await;
        let links = shell.links();
        match links.first() {
            Some(link) if link.running(Direction::Inbound) == 1 => break link.clone(),
            Some(_) | None => {}
        }
    };

    let now = now();
    let later = now + Duration::from_secs(3600);
    {
        let mut table = shell.lock();
        table.state.handle_timeout(later, |_| Activity::IdleSince(now));
        shell.perform(table);
    }

    assert_eq!((pool.stats().open, link.quic.close_reason()), (0, None));
    assert!(provider.drain().now_or_never().is_none(), "the call is running");
    drop(call);
    provider.drain().await;
    drop(connection);
    link.quic.closed().await;
    while !shell.links().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn p2_a_connection_that_is_only_observed_makes_room_for_another() {
    let pool = PoolConfig {
        max_connections: 1,
        ..PoolConfig::default()
    };
    let client = Endpoint::bind(config().with_pool(pool), NoService).await.unwrap();
    let mut ends = Vec::new();
    for _ in 0..3 {
        let provider = Endpoint::bind(config(), NoService).await.unwrap();
        let at = [provider.local_addr().try_into().unwrap()];
        let connection = client.pool().get(&provider.node_id(), &at).await.unwrap();
        ends.push((connection.end(), provider));
    }
    let lost = ends.iter().map(|(end, _)| end.lost());
    let retired = Some(Lost::ClosedHere(CloseCode::Retired));
    assert_eq!(lost.collect::<Vec<_>>(), [retired.clone(), retired, None]);
}
