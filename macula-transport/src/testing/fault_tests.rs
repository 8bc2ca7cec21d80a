//! The network's faults, seen by real endpoints.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    LinkConditions, Network,
    tests::{PATIENCE, Service, call, connect, host},
};
use crate::{Connection, Endpoint, NoService};

const AWHILE: Duration = Duration::from_secs(2);

/// A caller, a provider, and the connection between them.
async fn pair(network: &Network) -> (Endpoint, Endpoint, Connection) {
    let (caller, provider) = (host(network, 1, NoService).await, host(network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    (caller, provider, connection)
}

async fn echo(connection: &Connection, timeout: Duration) -> bool {
    call(connection, "echo", "hello".into(), timeout).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_cut_one_way_keeps_replies_and_lets_requests_through() {
    let network = Network::new(1);
    let (caller, provider, connection) = pair(&network).await;
    let (here, there) = (caller.local_addr(), provider.local_addr());
    network.cut_one_way(there, here);
    let (start, before) = (Instant::now(), network.traffic());
    let call = echo(&connection, PATIENCE);
    let restore = async {
        tokio::time::sleep(AWHILE).await;
        let after = network.traffic();
        assert!(after.delivered > before.delivered, "requests arrive");
        assert!(after.cut > before.cut, "replies do not");
        network.restore_one_way(there, here);
    };
    let (answered, ()) = tokio::join!(call, restore);
    assert!(answered);
    assert!(start.elapsed() >= AWHILE, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_paused_host_answers_when_it_goes_on() {
    let network = Network::new(1);
    let (_caller, provider, connection) = pair(&network).await;
    network.pause(provider.local_addr());
    let start = Instant::now();
    let call = echo(&connection, PATIENCE);
    let resume = async {
        tokio::time::sleep(AWHILE).await;
        network.resume(provider.local_addr());
    };
    let (answered, ()) = tokio::join!(call, resume);
    assert!(answered);
    assert!(start.elapsed() >= AWHILE, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_host_that_moved_is_at_its_new_address_only() {
    let network = Network::new(1);
    let (caller, provider, connection) = pair(&network).await;
    let (old, new): (SocketAddr, SocketAddr) = (provider.local_addr(), ([10, 0, 0, 9], 9443).into());
    network.move_host(old, new);
    assert!(!echo(&connection, AWHILE).await);
    assert!(network.traffic().no_host > 0);
    let other = host(&network, 3, NoService).await;
    let found = other
        .pool()
        .get(&provider.node_id(), &[new.try_into().unwrap()])
        .await
        .unwrap();
    assert!(echo(&found, PATIENCE).await);
    // An address that another host has is not given.
    network.move_host(new, caller.local_addr());
    assert!(echo(&found, PATIENCE).await);
}

/// A router that forgets its translations gives each caller behind it another address.
#[tokio::test(start_paused = true)]
async fn a_caller_whose_address_changes_keeps_its_connection() {
    let network = Network::new(1);
    let (caller, provider, connection) = pair(&network).await;
    network.move_host(caller.local_addr(), ([10, 0, 0, 9], 9443).into());
    assert!(echo(&connection, AWHILE).await);
    assert_eq!(provider.stats().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn corrupted_datagrams_are_lost_ones() {
    let network = Network::new(5);
    let (_caller, _provider, connection) = pair(&network).await;
    network.set_usual_link(LinkConditions::default().with_corruption(0.2));
    for _ in 0..50 {
        let answer = call(&connection, "echo", Bytes::from_static(b"hello"), PATIENCE).await;
        assert_eq!(answer.unwrap(), "hello");
    }
    assert!(network.traffic().corrupted > 10);
}

#[tokio::test(start_paused = true)]
async fn bandwidth_bounds_what_a_transfer_takes() {
    let network = Network::new(1);
    let (_caller, _provider, connection) = pair(&network).await;
    network.set_usual_link(LinkConditions::default().with_bandwidth(100_000));
    let start = Instant::now();
    call(&connection, "echo", Bytes::from(vec![7; 200_000]), 4 * PATIENCE)
        .await
        .unwrap();
    // Two seconds there and two back, and what is lost at full queues beside.
    assert!(start.elapsed() > Duration::from_secs(4), "{:?}", start.elapsed());
}
