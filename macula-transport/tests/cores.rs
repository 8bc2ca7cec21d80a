//! A runtime for each core: endpoints of one identity, each in a current-thread runtime of its own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::mpsc,
    thread,
};

use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{CallRequest, Config, Endpoint, Handler, Identity, IncomingCall, NoService, Reply};
use tokio::{runtime::Builder, sync::oneshot};

/// Answers with the number of its core.
struct Core(u8);

impl Handler for Core {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
        std::future::ready(Reply::ok(vec![self.0])).boxed()
    }
}

fn config(identity: &Identity) -> Config {
    Config::new(identity.clone()).with_listen((Ipv4Addr::LOCALHOST, 0).into())
}

#[tokio::test]
async fn each_core_serves_under_the_same_identity_on_a_port_of_its_own() {
    let identity = Identity::generate().unwrap();
    let (bound, ports) = mpsc::channel::<(u8, SocketAddr)>();
    let mut cores = Vec::new();
    for core in 0..2_u8 {
        let (identity, bound) = (identity.clone(), bound.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let endpoint = Endpoint::bind(config(&identity), Core(core)).await.unwrap();
                bound.send((core, endpoint.local_addr())).unwrap();
                // The sender is dropped: stop.
                let _ = stopped.await;
            });
        });
        cores.push((stop, thread));
    }
    drop(bound);
    let ports: Vec<_> = ports.iter().take(2).collect();
    let service = "core".parse().unwrap();
    for (core, at) in ports {
        let client = Endpoint::bind(config(&Identity::generate().unwrap()), NoService)
            .await
            .unwrap();
        let connection = client
            .pool()
            .get(&identity.node_id(), &[at.try_into().unwrap()])
            .await
            .unwrap();
        let reply = connection.call(CallRequest::new(&service, "")).await.unwrap();
        assert_eq!(reply.body[..], [core]);
    }
    for (stop, thread) in cores {
        drop(stop);
        thread.join().unwrap();
    }
}
