//! A limit on the running calls of one service.
//!
//! **Invariants.** A call over the limit has not reached the handler, so it is *refused* and safe to make elsewhere (F5). It never waits
//! here, because its caller can use that time at another provider. The places are shared: when all are taken, the caller that has most
//! loses its oldest call to one that has fewer (X5).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt as _, future::BoxFuture, stream};
use macula_transport::PeerInfo;
use macula_wire::{Admission, Holder, Network, NodeId, ServiceName, Shares, StatusCode};
use tokio::sync::oneshot;

use crate::{Handler, ReplyStream, Request, Requests, Response, Status, StreamHandler};

/// A handler that runs a limited number of calls at a time, and refuses the rest.
///
/// [`Server::with_max_concurrent_calls`](crate::Server::with_max_concurrent_calls) limits the whole process.
///
/// ```
/// use macula_rpc::{Limited, Request, Server, Status};
///
/// let resize = async |image: Request| Ok::<_, Status>(image.into_payload());
/// Server::new().serve("image.resize".parse()?, Limited::new(8, resize))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Limited<H> {
    handler: H,
    running: Arc<Mutex<Running>>,
}

/// The calls that run.
struct Running {
    shares: Shares<NodeId>,
    /// By caller, and of each caller the oldest first. Dropping the sender ends the call.
    calls: BTreeMap<(Holder<NodeId>, u64), oneshot::Sender<()>>,
    begun: u64,
}

impl Running {
    /// A place for a call of `caller`, and the signal that the place is taken back; `None` when there is none.
    fn take(&mut self, caller: Holder<NodeId>) -> Option<(u64, oneshot::Receiver<()>)> {
        self.begun += 1;
        loop {
            match self.shares.admit(&caller, 1, self.begun) {
                Admission::Granted => break,
                Admission::Evict(most) => {
                    let (&oldest, _) = self.calls.range((most, 0)..).next()?;
                    self.end(&oldest);
                }
                Admission::Refused => return None,
            }
        }
        let (keep, taken_back) = oneshot::channel();
        self.calls.insert((caller, self.begun), keep);
        Some((self.begun, taken_back))
    }

    fn end(&mut self, call: &(Holder<NodeId>, u64)) {
        if self.calls.remove(call).is_some() {
            self.shares.release(&call.0, 1);
        }
    }
}

/// The caller, in whose name the connection that a call came over is held. Calls of this process are one caller.
fn holder(peer: Option<&PeerInfo>) -> Holder<NodeId> {
    let Some(peer) = peer else {
        return Holder::new(Network::Unknown, NodeId::from_bytes([0; NodeId::LEN]));
    };
    Holder::new(Network::of(peer.remote_addr.ip()), peer.node_id)
}

impl<H> Limited<H> {
    /// Runs at most `max` calls of `handler`, a [`Handler`] or a [`StreamHandler`], at a time.
    pub fn new(max: usize, handler: H) -> Self {
        let running = Running {
            shares: Shares::new(max as u64),
            calls: BTreeMap::new(),
            begun: 0,
        };
        Self {
            handler,
            running: Arc::new(Mutex::new(running)),
        }
    }

    fn place(&self, peer: Option<&PeerInfo>, service: &ServiceName) -> Result<Place, Status> {
        let caller = holder(peer);
        let mut running = lock(&self.running);
        let Some((number, taken_back)) = running.take(caller) else {
            let words = format!(
                "{service} runs {} calls already, which is its limit",
                running.shares.capacity()
            );
            return Err(Status::refused(words));
        };
        Ok(Place {
            running: Arc::clone(&self.running),
            call: (caller, number),
            taken_back,
        })
    }

    /// How many calls are running.
    #[must_use]
    pub fn running(&self) -> usize {
        lock(&self.running).calls.len()
    }
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end of a call that has lost its place.
fn gave_way() -> Status {
    Status::new(
        StatusCode::ResourceExhausted,
        "the service gave the call up: all its places are taken, and the caller has more of them than others",
    )
}

impl<H: Handler> Handler for Limited<H> {
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Response, Status>> {
        let mut place = match self.place(request.peer(), request.service()) {
            Ok(place) => place,
            Err(full) => return Box::pin(std::future::ready(Err(full))),
        };
        let answer = self.handler.handle(request);
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                _ = &mut place.taken_back => Err(gave_way()),
            }
        })
    }
}

/// A stream runs until its last reply.
impl<H: StreamHandler> StreamHandler for Limited<H> {
    fn handle(&self, request: Request<Requests>) -> BoxFuture<'static, Result<Response<ReplyStream>, Status>> {
        let mut place = match self.place(request.peer(), request.service()) {
            Ok(place) => place,
            Err(full) => return Box::pin(std::future::ready(Err(full))),
        };
        let answer = self.handler.handle(request);
        Box::pin(async move {
            let answer = tokio::select! {
                biased;
                answer = answer => answer?,
                _ = &mut place.taken_back => return Err(gave_way()),
            };
            let (replies, metadata) = answer.into_parts();
            // The last reply gives the place back, though the stream may live longer.
            let replies = stream::unfold(Some((replies, place)), async |running| {
                let (mut replies, mut place) = running?;
                tokio::select! {
                    biased;
                    next = replies.next() => Some((next?, Some((replies, place)))),
                    _ = &mut place.taken_back => Some((Err(gave_way()), None)),
                }
            });
            Ok(Response::new(replies.fuse().boxed()).with_metadata(metadata))
        })
    }
}

impl<H> fmt::Debug for Limited<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited")
            .field("running", &self.running())
            .finish_non_exhaustive()
    }
}

/// One running call. A call that is cancelled or panics gives its place back too.
struct Place {
    running: Arc<Mutex<Running>>,
    call: (Holder<NodeId>, u64),
    taken_back: oneshot::Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.running).end(&self.call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(network: u8) -> Holder<NodeId> {
        Holder::new(
            Network::V4([10, 0, network]),
            NodeId::from_bytes([network; NodeId::LEN]),
        )
    }

    #[test]
    fn x5_a_caller_with_few_calls_takes_the_oldest_of_the_caller_that_has_most() {
        let mut running = Limited::new(3, ()).running;
        let running = Arc::get_mut(&mut running).unwrap().get_mut().unwrap();
        let mut held: Vec<_> = (0..3).map(|_| running.take(caller(1)).unwrap()).collect();
        assert!(running.take(caller(1)).is_none(), "it has all of them");
        let (number, mut kept) = running.take(caller(2)).unwrap();
        assert!(
            held[0]
                .1
                .try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Closed)
        );
        assert!(
            held[1]
                .1
                .try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
        );
        assert!(running.take(caller(2)).is_none(), "the other has no more than it would");
        assert!(
            kept.try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
        );
        running.end(&(caller(2), number));
        assert!(running.take(caller(1)).is_some());
        assert_eq!(running.calls.len(), 3);
    }
}
