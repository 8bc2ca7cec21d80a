//! The services at the socket.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tonic::{Request, Response, Status, transport::Server};
use tonic_health::pb::health_server::HealthServer;

use super::{
    answer,
    schema::{
        Build, DrainProgress, DrainRequest, Event, FILE_DESCRIPTOR_SET, State, StateRequest, WatchRequest, admin_server,
    },
};
use crate::{Node, NodeEvent, Phase, events::NodeEvents, life::Ending};

/// Requests at a time for one connection to the socket; more wait.
const MAX_REQUESTS: usize = 64;
/// How often the progress of a drain is told while it changes.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// The admin service of a node.
struct Service {
    node: Node,
    build: Build,
    orders: Arc<watch::Sender<bool>>,
    stopped: watch::Receiver<bool>,
}

/// Serves until it is stopped and the clients have read their streams.
pub(super) async fn serve(
    node: Node,
    build: Build,
    orders: Arc<watch::Sender<bool>>,
    listener: UnixListener,
    mut stopped: watch::Receiver<bool>,
) {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = match reflection {
        Ok(reflection) => reflection,
        Err(error) => {
            tracing::error!(%error, "the schema of the admin interface cannot be shown, so it is not served");
            return;
        }
    };
    let health = HealthServer::new(node.inner.inspection.health());
    let service = Service {
        node,
        build,
        orders,
        stopped: stopped.clone(),
    };
    let server = Server::builder()
        .concurrency_limit_per_connection(MAX_REQUESTS)
        .add_service(admin_server::AdminServer::new(service))
        .add_service(health)
        .add_service(reflection);
    let until = async move {
        // The sender is gone when the interface is dropped.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    if let Err(error) = server.serve_with_incoming_shutdown(accepted(listener), until).await {
        tracing::warn!(%error, "the admin interface has ended");
    }
}

/// The connections to the socket.
fn accepted(listener: UnixListener) -> impl Stream<Item = Result<UnixStream, Infallible>> {
    stream::unfold(listener, async |listener| {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(stream), listener)),
                Err(error) => {
                    // No file descriptor is left, most likely: the next one may be.
                    tracing::warn!(%error, "a client of the admin interface was not taken");
                    tokio::time::sleep(PROGRESS_EVERY).await;
                }
            }
        }
    })
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl admin_server::Admin for Service {
    async fn get_state(&self, _: Request<StateRequest>) -> Result<Response<State>, Status> {
        let state = self.node.state().await;
        Ok(Response::new(answer::state(&state, self.build.clone())))
    }

    type WatchStream = Streamed<Event>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let told = stream::unfold(
            (self.node.events(), self.stopped.clone()),
            async |(mut events, mut stopped)| {
                let event = next(&mut events, &mut stopped).await?;
                Some((Ok(answer::event(&event)), (events, stopped)))
            },
        );
        Ok(Response::new(told.boxed()))
    }

    type DrainStream = Streamed<DrainProgress>;

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        tracing::info!("the admin interface was asked to drain the node");
        self.orders.send_replace(true);
        let progress = Progress {
            node: self.node.clone(),
            ending: self.node.inner.life.ending(),
            stopped: self.stopped.clone(),
            began: Instant::now(),
            told: None,
        };
        let told = stream::unfold(progress, async |mut progress| {
            let next = progress.next().await?;
            Some((Ok(next), progress))
        });
        Ok(Response::new(told.boxed()))
    }
}

/// The next event; `None` at the node's end, and when the interface is closed.
async fn next(events: &mut NodeEvents, stopped: &mut watch::Receiver<bool>) -> Option<NodeEvent> {
    tokio::select! {
        biased;
        event = events.next() => event,
        _ = stopped.wait_for(|stopped| *stopped) => None,
    }
}

/// The progress of a drain.
struct Progress {
    node: Node,
    ending: watch::Receiver<Ending>,
    stopped: watch::Receiver<bool>,
    began: Instant,
    told: Option<(Ending, usize)>,
}

impl Progress {
    async fn next(&mut self) -> Option<DrainProgress> {
        loop {
            let now = (*self.ending.borrow_and_update(), self.node.running_calls());
            match (self.told, now) {
                (Some((Ending::Left, _)), _) => return None,
                (told, now) if told != Some(now) => {
                    self.told = Some(now);
                    let phase = match now.0 {
                        Ending::NotYet | Ending::Draining => Phase::Draining,
                        Ending::Left => Phase::Left,
                    };
                    return Some(DrainProgress {
                        phase: phase.name().to_owned(),
                        running_calls: now.1 as u64,
                        elapsed_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
                    });
                }
                _ => {}
            }
            tokio::select! {
                biased;
                _ = self.ending.changed() => {}
                _ = self.stopped.wait_for(|stopped| *stopped) => return None,
                () = tokio::time::sleep(PROGRESS_EVERY) => {}
            }
        }
    }
}
