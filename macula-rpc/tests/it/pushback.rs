//! A provider's pushback on its way to the caller (F9).

use std::time::Duration;

use macula_rpc::{CallError, Client, NodeId, Pushback, Server, Status, StatusCode, StopReason, Strategy};
use macula_transport::Endpoint;

use crate::{
    calls::{Down, Via},
    mesh::{Peer, caller, directory, name},
};

const LATER: Pushback = Pushback::After(Duration::from_secs(20));

/// A caller that reaches no directory, and two routers that know these providers.
struct Routed {
    client: Client,
    routers: Vec<(Peer, Client)>,
    _endpoint: Endpoint,
}

impl Routed {
    async fn to(providers: &[Peer]) -> Self {
        let mut routers = Vec::new();
        for _ in 0..2 {
            let router = Peer::bare(Server::new()).await;
            let onward = Client::builder(&router.endpoint, directory(providers)).build();
            router.server.route_through(&onward);
            routers.push((router, onward));
        }
        let (endpoint, builder) = caller(Down).await;
        let known = routers.iter().map(|(router, _)| router.provider()).collect();
        Self {
            client: builder.routers(Via(known)).strategy(Strategy::First).build(),
            routers,
            _endpoint: endpoint,
        }
    }

    /// The router that calls go to.
    async fn first_choice(&self) -> NodeId {
        let served = self.client.request("who.routes").send("").await.unwrap();
        served.provider().unwrap().node_id
    }
}

/// The pushback of a provider behind a router reaches the caller. No other router is asked, because it would call the provider again at
/// once. The router itself is called as before.
#[tokio::test]
async fn f9_a_providers_pushback_survives_a_router_and_does_not_hold_the_router_back() {
    let asking = |asked, refuses| {
        let status = if refuses {
            Status::refused("full")
        } else {
            Status::unavailable("later")
        };
        let status = status.with_pushback(asked);
        Peer::with(move |_| Err(status.clone()))
    };
    for (asked, refuses) in [
        (LATER, false),
        (Pushback::Never, false),
        (LATER, true),
        (Pushback::Never, true),
    ] {
        let providers = [asking(asked, refuses).await];
        let routed = Routed::to(&providers).await;
        for (router, _) in &routed.routers {
            let here = async |_| Ok::<_, Status>("here");
            router.server.serve("who.routes".parse().unwrap(), here).unwrap();
        }
        let error = routed.client.call(name(), "").await.unwrap_err();
        let pushback = StopReason::Pushback;
        assert!(
            matches!(&error, CallError::NotRetried { reason, .. } if *reason == pushback),
            "{error}"
        );
        let [attempt] = error.attempts() else { panic!("{error}") };
        assert_eq!(attempt.cause.pushback(), Some(asked), "{error}");
        assert_eq!(providers[0].calls(), 1);
        // A router that refuses is skipped for a moment.
        if !refuses {
            assert_eq!(routed.first_choice().await, routed.routers[0].0.id());
        }
    }
}

/// An application sees the pushback, to decide itself about the next call.
#[tokio::test]
async fn f9_a_pushback_stands_in_the_status() {
    let status = Status::new(StatusCode::InvalidArgument, "no").with_pushback(LATER);
    let peers = [Peer::with(move |_| Err(status.clone())).await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let error = builder.build().call(name(), "").await.unwrap_err();
    let CallError::Answered { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status.pushback(), Some(LATER));
}
