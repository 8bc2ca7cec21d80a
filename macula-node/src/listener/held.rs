//! The places of a port's connections, and the requests that are counted with them.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http_body::{Frame, SizeHint};
use rustix::process::{Resource, getrlimit};
use tokio::sync::{Notify, oneshot};

use super::places::Places;

/// The places of a port. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    places: Places<oneshot::Sender<()>>,
    /// The connections that were closed because there was no place.
    refused: u64,
}

/// Ends when the connection has to give way.
#[derive(Debug)]
pub(super) struct GivesWay(oneshot::Receiver<()>);

impl GivesWay {
    pub(super) async fn asked(self) {
        if self.0.await.is_err() {
            // Its place is given back, so nothing asks for it any more.
            std::future::pending().await
        }
    }
}

/// The place of a connection, given back when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Held(Arc<Own>);

#[derive(Debug)]
struct Own {
    room: Room,
    number: u64,
    /// Woken by the first request.
    asked: Notify,
}

impl Room {
    /// Room for so many connections, or for half as many as the process may have files open: the node needs the others.
    pub(super) fn new(places: usize) -> Self {
        let places = Places::new(places.min(descriptors() / 2).max(1));
        Self(Arc::new(Mutex::new(Shared { places, refused: 0 })))
    }

    /// Takes a place for a connection to the port `name`. `None` when all are taken: close the connection.
    pub(super) fn take(&self, name: &'static str, from: IpAddr) -> Option<(Held, GivesWay)> {
        let (give_way, asked) = oneshot::channel();
        let mut shared = self.lock();
        let Some((number, displaced)) = shared.places.take(Instant::now(), from, give_way) else {
            shared.refused += 1;
            // Ever more rarely, so that a flood fills no log.
            if shared.refused.is_power_of_two() {
                let refused = shared.refused;
                tracing::warn!(port = name, %from, refused, "a connection was closed: each place has a request, and its network has its share");
            }
            return None;
        };
        for give_way in displaced {
            // It may have ended meanwhile.
            let _ = give_way.send(());
        }
        let own = Own {
            room: self.clone(),
            number,
            asked: Notify::new(),
        };
        Some((Held(Arc::new(own)), GivesWay(asked)))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many files and sockets this process may have open.
fn descriptors() -> usize {
    let most = getrlimit(Resource::Nofile).current;
    most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX)
}

impl Held {
    /// Ends when the connection has brought no request in this time.
    pub(super) async fn says_nothing(&self, within: Duration) {
        if tokio::time::timeout(within, self.0.asked.notified()).await.is_ok() {
            std::future::pending().await
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.room.lock().places.leave(self.number);
    }
}

/// Counts a request from its head to the end of its answer.
pub(super) async fn count(State(held): State<Held>, request: Request, next: Next) -> Response {
    let running = Running::begin(held);
    let answer = next.run(request).await;
    answer.map(|body| {
        Body::new(Counted {
            body,
            _running: running,
        })
    })
}

/// A request that runs.
#[derive(Debug)]
struct Running(Held);

impl Running {
    fn begin(held: Held) -> Self {
        held.0.room.lock().places.begin(held.0.number);
        held.0.asked.notify_one();
        Self(held)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Own { room, number, .. } = &*self.0.0;
        room.lock().places.end(Instant::now(), *number);
    }
}

/// The body of an answer, whose request runs until it is sent.
struct Counted {
    body: Body,
    _running: Running,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
