//! The first attempt of a call, and of most calls the only one.
//!
//! **Invariant.** Nothing is decided here: the core chooses, and whatever is not a success is the whole call's to judge, which takes
//! the attempt over as if it had made it. What a usual call has no use for is not set up, and nothing is allocated.

use std::{future::Future, sync::Arc};

use futures::FutureExt as _;
use macula_select::{Fate, FirstAttempt};
use macula_transport::Connection;
use tracing::{Instrument as _, Span};

use super::{
    engine::{self, Done, Exchange, Job, Landed, Outcome, Tried},
    services::{Balanced, Member},
};
use crate::{CallError, Provider, observe};

/// Makes a call at `providers`, whose health `balanced` knows.
pub(super) async fn run<X: Exchange>(
    job: &Job<'_, X>,
    balanced: &Balanced,
    providers: &Arc<[Provider]>,
) -> Result<Done<X::Answer>, CallError> {
    let mut underway = Underway {
        job,
        balanced,
        first: None,
    };
    let Some((provider, open)) = underway.start(providers) else {
        let options = job.call_options();
        return engine::run(job, options, balanced, providers, None).boxed().await;
    };
    let span = observe::attempt_span(&provider, 1, false);
    // Made where it is awaited: a future that has a name before is moved.
    let (at, landed) = if span.is_disabled() {
        underway.attempt(&provider, open, &span).await
    } else {
        let work = underway.attempt(&provider, open, &span);
        work.instrument(span.clone()).boxed().await
    };
    match landed {
        Ok(Outcome::Answer(answer)) => {
            underway.end(Fate::Ok);
            observe::record_attempt(&span, None);
            Ok(Done {
                answer,
                provider: Some(provider),
                failed_attempts: Vec::new(),
            })
        }
        landed => {
            let tried = Tried {
                provider,
                cause: None,
                at: None,
                span,
            };
            let first = underway.first.take().map(|first| (first, tried, (at, landed)));
            let options = job.call_options();
            engine::run(job, options, balanced, providers, first).boxed().await
        }
    }
}

/// A first attempt, once it is started. Dropped before its end, it was cancelled (F8).
struct Underway<'a, X: Exchange> {
    job: &'a Job<'a, X>,
    balanced: &'a Balanced,
    first: Option<FirstAttempt<Member>>,
}

impl<X: Exchange> Underway<'_, X> {
    /// Takes over the provider list and chooses from it; `None` when the call is over before any attempt, or is to be hedged.
    fn start(&mut self, providers: &Arc<[Provider]>) -> Option<(Arc<Provider>, Option<Connection>)> {
        let job = self.job;
        if job.options.hedge.is_some() {
            return None;
        }
        let options = job.call_options();
        let mut state = self.balanced.lock();
        state.reconcile(providers, job.found);
        self.first = FirstAttempt::start(job.start, job.found, &mut state.balancer, &options);
        let first = self.first.as_ref()?;
        let chosen = state.provider(first.started(), *first.to(), &job.client.shared.pool);
        if chosen.is_none() {
            unreachable!("the balancer chooses among the list's members");
        }
        chosen
    }

    fn attempt(
        &self,
        provider: &Provider,
        open: Option<Connection>,
        span: &Span,
    ) -> impl Future<Output = Landed<X::Answer>> + Send {
        let now = self.job.found;
        let (start, until) = self
            .first
            .as_ref()
            .map_or((now, now), |first| (first.started(), first.until()));
        self.job.attempt(provider, open, start, until, span)
    }

    fn end(&mut self, fate: Fate) {
        if let Some(first) = self.first.take() {
            let (now, started) = (engine::now(), first.started());
            let mut state = self.balanced.lock();
            match fate {
                Fate::Ok => first.succeed(now, &mut state.balancer),
                _ => first.cancel(now, &mut state.balancer),
            }
            drop(state);
            let meters = &self.job.known.meters;
            meters.attempt(&fate, || now.saturating_duration_since(started));
        }
    }
}

impl<X: Exchange> Drop for Underway<'_, X> {
    fn drop(&mut self) {
        self.end(Fate::Cancelled);
    }
}
