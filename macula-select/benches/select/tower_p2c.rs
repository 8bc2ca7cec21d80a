//! tower's `Balance` (power of two choices) over services that answer at once.
//!
//! One request is what tower does to select: `poll_ready`, `call`, and the response future run to its end, which is
//! when `PeakEwma` takes its sample. tower reads the clock itself.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tower::Service;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwmaDiscover, PendingRequestsDiscover};

#[derive(Debug, Clone)]
pub(crate) struct Instantly;

impl Service<()> for Instantly {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

pub(crate) fn request<S: Service<()>>(balance: &mut S) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(balance.poll_ready(&mut context).is_ready());
    assert!(pin!(balance.call(())).poll(&mut context).is_ready());
}

/// Lets it discover and measure all its services before the clock starts.
fn warm<S: Service<()>>(balance: &mut S, providers: u32) -> &mut S {
    for _ in 0..providers * 4 {
        request(balance);
    }
    balance
}

pub(crate) fn peak_ewma(providers: u32, run: impl FnOnce(&mut Balance<PeakEwmaDiscover<List>, ()>)) {
    let list = ServiceList::new(vec![Instantly; providers as usize]);
    let load = PeakEwmaDiscover::new(
        list,
        Duration::from_millis(1),
        Duration::from_secs(10),
        CompleteOnResponse::default(),
    );
    run(warm(&mut Balance::new(load), providers));
}

pub(crate) fn pending(providers: u32, run: impl FnOnce(&mut Balance<PendingRequestsDiscover<List>, ()>)) {
    let list = ServiceList::new(vec![Instantly; providers as usize]);
    let load = PendingRequestsDiscover::new(list, CompleteOnResponse::default());
    run(warm(&mut Balance::new(load), providers));
}

type List = ServiceList<Vec<Instantly>>;
