//! The ingress beside a plain tonic server: the same service, called by the same generated-like clients over HTTP/2.
//!
//! All of it runs in one process on loopback, so a way with more stations has to do more on the same cores.

use std::{
    convert::Infallible,
    net::SocketAddr,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::future::{join_all, try_join_all};
use macula_node::{
    Node, NodeBuilder, TonicServices,
    ingress::{Ingress, IngressConfig},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service, http},
    transport::{
        Channel,
        server::{Server, TcpIncoming},
    },
};
use tonic_health::pb::HealthCheckRequest as Text;

use crate::{Failure, IN_FLIGHT, PAYLOAD_BYTES, SLICE, TURNS, median};

/// HTTP/2 connections of the clients to each server.
const CONNECTIONS: usize = 4;

type Codec = tonic_prost::ProstCodec<Text, Text>;

/// Answers with the request.
#[derive(Clone)]
struct Echo;

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl tonic::server::UnaryService<Text> for Echo {
    type Response = Text;
    type Future = BoxFuture<tonic::Response<Text>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<Text>) -> Self::Future {
        Box::pin(std::future::ready(Ok(tonic::Response::new(request.into_inner()))))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move { Ok(tonic::server::Grpc::new(Codec::default()).unary(Self, request).await) })
    }
}

fn node() -> NodeBuilder {
    Node::builder().listen(([127, 0, 0, 1], 0).into())
}

fn echo() -> TonicServices {
    TonicServices::new().with_server(Echo)
}

/// One of the ways to the service.
struct Way {
    name: &'static str,
    channels: Vec<Channel>,
    rates: Vec<f64>,
    times: Vec<Duration>,
}

impl Way {
    async fn to(name: &'static str, at: SocketAddr) -> Result<Self, Failure> {
        let endpoint = Channel::from_shared(format!("http://{at}"))?;
        Ok(Self {
            name,
            channels: try_join_all((0..CONNECTIONS).map(|_| endpoint.connect())).await?,
            rates: Vec::new(),
            times: Vec::new(),
        })
    }

    /// Calls for one slice.
    async fn take_turn(&mut self) -> Result<(), Failure> {
        let start = Instant::now();
        let callers = (0..IN_FLIGHT).map(async |at| {
            let mut client = tonic::client::Grpc::new(self.channels[at % CONNECTIONS].clone());
            let mut times = Vec::new();
            while start.elapsed() < SLICE {
                let began = Instant::now();
                client.ready().await?;
                let request = tonic::Request::new(Text {
                    service: "x".repeat(PAYLOAD_BYTES),
                });
                let path = http::uri::PathAndQuery::from_static("/bench.Echo/Echo");
                client.unary(request, path, Codec::default()).await?;
                times.push(began.elapsed());
            }
            Ok::<_, Failure>(times)
        });
        let times: Result<Vec<_>, _> = join_all(callers).await.into_iter().collect();
        let times = times?.concat();
        self.rates.push(times.len() as f64 / start.elapsed().as_secs_f64());
        self.times.extend(times);
        Ok(())
    }

    /// Milliseconds at a part of the times.
    fn quantile(&mut self, part: f64) -> f64 {
        self.times.sort();
        let at = (self.times.len() as f64 * part) as usize;
        let time = self.times.get(at).copied().unwrap_or_default();
        (time.as_secs_f64() * 1e5).round() / 100.0
    }
}

pub(crate) async fn table() -> Result<Value, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let plain = listener.local_addr()?;
    tokio::spawn(
        Server::builder()
            .add_service(Echo)
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))),
    );
    let provider = node().serve_tonic(echo()).start().await?;
    provider.join().await?;
    let near = Ingress::bind(&provider, IngressConfig::new(([127, 0, 0, 1], 0).into())).await?;
    let entry = node()
        .bootstrap([provider.endpoints()[0].clone().into()])
        .start()
        .await?;
    entry.join().await?;
    let far = Ingress::bind(&entry, IngressConfig::new(([127, 0, 0, 1], 0).into())).await?;
    let mut ways = [
        Way::to("a tonic server", plain).await?,
        Way::to("the ingress of the service's own node", near.local_addr()).await?,
        Way::to("the ingress of another node", far.local_addr()).await?,
    ];
    for turn in 0..=TURNS {
        for way in &mut ways {
            way.take_turn().await?;
            if turn == 0 {
                // The first turn warms up.
                (way.rates, way.times) = Default::default();
            }
        }
    }
    let rows = ways.iter_mut().map(|way| {
        let rate = median(std::mem::take(&mut way.rates)).round();
        json!([way.name, rate, way.quantile(0.5), way.quantile(0.99)])
    });
    Ok(json!({
        "name": "gRPC clients, by where they call, times in ms",
        "columns": ["called at", "calls/s", "p50", "p99"],
        "rows": rows.collect::<Vec<_>>(),
    }))
}
