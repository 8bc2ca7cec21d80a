//! Many clients that come at once, in simulated time.

use futures::future::{FutureExt as _, join_all};
use macula_transport::{
    CallRequest, Config, Endpoint, Handler, Identity, IncomingCall, Limits, NoService, Reply, testing::Network,
};
use macula_wire::{ServiceName, StatusCode};

struct Echo;

impl Handler for Echo {
    fn call(&self, call: IncomingCall) -> futures::future::BoxFuture<'static, Reply> {
        std::future::ready(Reply::ok(call.into_body())).boxed()
    }
}

const CLIENTS: u16 = 500;

/// Y16: more clients of one address than there are handshakes at a time join and are served, each with one dial, also by a node that has
/// as little memory as a default may be.
#[tokio::test(start_paused = true)]
async fn y16_five_hundred_clients_of_one_address_join_at_once() {
    let network = Network::new(16);
    let config = |host: u8, port: u16| {
        Config::new(Identity::generate().unwrap())
            .with_network(&network)
            .with_listen(([10, 0, 0, host], port).into())
    };
    let limits = Limits {
        memory_bytes: 64 << 20,
        ..Limits::default()
    };
    let provider = Endpoint::bind(config(1, 9443).with_limits(limits), Echo).await.unwrap();
    let at = [provider.local_addr().try_into().unwrap()];
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(Endpoint::bind(config(2, 10_000 + n), NoService).await.unwrap());
    }
    let join = async |client: &Endpoint| {
        let connection = client.pool().get(&provider.node_id(), &at).await?;
        let service = ServiceName::new("echo").unwrap();
        let reply = connection.call(CallRequest::new(&service, "hello")).await.unwrap();
        assert_eq!((reply.status, &*reply.body), (StatusCode::Ok, &b"hello"[..]));
        Ok::<_, macula_transport::DialError>(connection)
    };
    let joined = join_all(clients.iter().map(join)).await;
    let failed: Vec<_> = joined.iter().filter_map(|it| it.as_ref().err()).collect();
    assert!(
        failed.is_empty(),
        "{} of {CLIENTS} failed: {:?}",
        failed.len(),
        failed[0]
    );
    assert_eq!(provider.stats().connections, usize::from(CLIENTS));
    let memory = provider.stats().memory;
    assert_eq!((memory.refused, memory.evicted), (0, 0), "{memory:?}");
    assert!(
        provider.stats().rejected_busy + provider.stats().retried > 0,
        "some had to send again"
    );
}
