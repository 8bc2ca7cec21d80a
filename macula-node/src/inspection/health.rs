//! `grpc.health.v1` as its specification has it: a watch of an unknown service says so, and says when that changes.
//!
//! tonic's own answers such a watch with an error, and the withdrawal of a service with the end of the stream.

use std::{collections::BTreeMap, pin::Pin};

use futures::{Stream, stream};
use macula_wire::ServiceName;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

/// The name of the node as a whole.
const WHOLE: &str = "";

/// The health of the node and of its services. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Statuses(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    /// A service that is not in here is unknown.
    known: BTreeMap<String, ServingStatus>,
    ended: bool,
}

impl State {
    fn of(&self, service: &str) -> ServingStatus {
        self.known
            .get(service)
            .copied()
            .unwrap_or(ServingStatus::ServiceUnknown)
    }
}

impl Statuses {
    /// A node that serves, and none of its services yet.
    pub(super) fn new() -> Self {
        let known = BTreeMap::from([(WHOLE.to_owned(), ServingStatus::Serving)]);
        Self(watch::Sender::new(State { known, ended: false }))
    }

    pub(super) fn serving(&self, service: &ServiceName) {
        self.0.send_modify(|state| {
            state.known.insert(service.to_string(), ServingStatus::Serving);
        });
    }

    pub(super) fn withdrawn(&self, service: &ServiceName) {
        self.0.send_modify(|state| {
            state.known.remove(service.as_str());
        });
    }

    /// The node as a whole and these of its services take nothing new.
    pub(super) fn draining(&self, services: &[ServiceName]) {
        self.0.send_modify(|state| {
            for name in services.iter().map(ServiceName::as_str).chain([WHOLE]) {
                state.known.insert(name.to_owned(), ServingStatus::NotServing);
            }
        });
    }

    /// Ends every watch.
    pub(super) fn ended(&self) {
        self.0.send_modify(|state| state.ended = true);
    }
}

/// A watch of one service: it sends the present health, then each change.
struct Watched {
    service: String,
    states: watch::Receiver<State>,
    told: Option<ServingStatus>,
}

impl Watched {
    async fn next(&mut self) -> Option<HealthCheckResponse> {
        let news = |state: &State| Some(state.of(&self.service)).filter(|status| Some(*status) != self.told);
        let told = {
            let state = self.states.wait_for(|state| state.ended || news(state).is_some()).await;
            // The last change is told before the end.
            news(&*state.ok()?)
        };
        let status = told?;
        self.told = Some(status);
        Some(response(status))
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Statuses {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match self.0.borrow().of(&request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("this node does not serve it")),
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watched = Watched {
            service: request.into_inner().service,
            states: self.0.subscribe(),
            told: None,
        };
        let told = stream::unfold(watched, async |mut watched| {
            let next = watched.next().await?;
            Some((Ok(next), watched))
        });
        Ok(Response::new(Box::pin(told)))
    }
}
