//! `grpc.health.v1` for the node and for the services of the mesh.
//!
//! The node knows its own health and that of its own services. Any other service is as well as its providers say: one that serves is
//! enough, as it is for a call. A watch asks them again from time to time, and ends with the ingress.

use std::{pin::Pin, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _, future, stream};
use macula_rpc::Channel;
use macula_wire::ServiceName;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
    health_server::Health,
};

use crate::{Node, error_line};

/// The most providers that a question goes to at once.
const MAX_ASKED: usize = 8;
/// How long they are waited for.
const WITHIN: Duration = Duration::from_secs(3);
/// How often a watch asks them again.
const EVERY: Duration = Duration::from_secs(5);

pub(super) struct MeshHealth<H> {
    own: H,
    node: Node,
    /// Whether the ingress closes.
    stopped: watch::Receiver<bool>,
}

impl<H: Health> MeshHealth<H> {
    pub(super) const fn new(own: H, node: Node, stopped: watch::Receiver<bool>) -> Self {
        Self { own, node, stopped }
    }

    /// The health of a service that is not the node's own.
    async fn elsewhere(node: &Node, name: &str) -> Result<ServingStatus, Status> {
        let unknown = || Status::not_found("no provider of the mesh serves it");
        let service = ServiceName::new(name).map_err(|_| unknown())?;
        let found = node.providers(&service).await;
        let providers = found.map_err(|error| Status::unavailable(error_line(&error)))?;
        let asked = providers.iter().take(MAX_ASKED).map(|provider| {
            let channel = Channel::new(node.client().clone()).with_provider(provider.clone());
            let mut provider = HealthClient::new(channel.with_timeout(WITHIN));
            let question = HealthCheckRequest {
                service: name.to_owned(),
            };
            async move {
                let answer = provider.check(question).await?.into_inner();
                match answer.status() {
                    ServingStatus::Serving => Ok(()),
                    _ => Err(Status::unavailable("it does not serve")),
                }
            }
            .boxed()
        });
        let asked: Vec<_> = asked.collect();
        if asked.is_empty() {
            return Err(unknown());
        }
        Ok(match future::select_ok(asked).await {
            Ok(_) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        })
    }
}

#[tonic::async_trait]
impl<H: Health> Health for MeshHealth<H> {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.get_ref().service.clone();
        match self.own.check(request).await {
            Err(status) if status.code() == Code::NotFound => {}
            answered => return answered,
        }
        let status = Self::elsewhere(&self.node, &name).await?;
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut stopped = self.stopped.clone();
        let stopped = async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let is_own = self.own.check(Request::new(request.get_ref().clone())).await.is_ok();
        if is_own {
            let told = self.own.watch(request).await?.into_inner();
            return Ok(Response::new(told.take_until(stopped).boxed()));
        }
        let watched = (self.node.clone(), request.into_inner().service, None);
        let told = stream::unfold(watched, async |(node, service, told)| {
            loop {
                let status = match Self::elsewhere(&node, &service).await {
                    Ok(status) => status,
                    Err(status) if status.code() == Code::NotFound => ServingStatus::ServiceUnknown,
                    Err(_) => ServingStatus::Unknown,
                };
                if told != Some(status) {
                    let news = HealthCheckResponse { status: status.into() };
                    return Some((Ok(news), (node, service, Some(status))));
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Ok(Response::new(told.take_until(stopped).boxed()))
    }
}
