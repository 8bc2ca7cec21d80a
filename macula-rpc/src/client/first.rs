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
    let Some((mut underway, open)) = Underway::start(job, balanced, providers) else {
        let options = job.call_options();
        return engine::run(job, options, balanced, providers, None).boxed().await;
    };
    // Made where it is awaited: a future that has a name before is moved.
    let (at, landed) = if underway.span.is_disabled() {
        underway.attempt(open).await
    } else {
        let span = underway.span.clone();
        underway.attempt(open).instrument(span).boxed().await
    };
    match landed {
        Ok(Outcome::Answer(answer)) => {
            underway.end(Fate::Ok);
            observe::record_attempt(&underway.span, None);
            Ok(Done {
                answer,
                provider: Some(Arc::clone(&underway.provider)),
                failed_attempts: Vec::new(),
            })
        }
        landed => {
            let first = underway
                .first
                .take()
                .map(|first| (first, underway.tried(), (at, landed)));
            let options = job.call_options();
            engine::run(job, options, balanced, providers, first).boxed().await
        }
    }
}

/// A first attempt under way. Dropped before its end, it was cancelled (F8).
struct Underway<'a, X: Exchange> {
    job: &'a Job<'a, X>,
    balanced: &'a Balanced,
    first: Option<FirstAttempt<Member>>,
    provider: Arc<Provider>,
    span: Span,
}

impl<'a, X: Exchange> Underway<'a, X> {
    /// Takes over the provider list and chooses from it; `None` when the call is over before any attempt, or is to be hedged.
    fn start(
        job: &'a Job<'a, X>,
        balanced: &'a Balanced,
        providers: &Arc<[Provider]>,
    ) -> Option<(Self, Option<Connection>)> {
        if job.options.hedge.is_some() {
            return None;
        }
        let options = job.call_options();
        let mut state = balanced.lock();
        state.reconcile(providers, job.found);
        let first = FirstAttempt::start(job.start, job.found, &mut state.balancer, &options)?;
        let Some((provider, open)) = state.provider(first.started(), *first.to(), &job.client.shared.pool) else {
            unreachable!("the balancer chooses among the list's members");
        };
        drop(state);
        let underway = Self {
            job,
            balanced,
            first: Some(first),
            span: observe::attempt_span(&provider, 1, false),
            provider,
        };
        Some((underway, open))
    }

    fn attempt(&self, open: Option<Connection>) -> impl Future<Output = Landed<X::Answer>> + Send {
        let now = self.job.found;
        let (start, until) = self
            .first
            .as_ref()
            .map_or((now, now), |first| (first.started(), first.until()));
        self.job.attempt(&self.provider, open, start, until, &self.span)
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
            self.job
                .known
                .meters
                .attempt(&fate, || now.saturating_duration_since(started));
        }
    }

    /// The attempt as a call remembers it.
    fn tried(&mut self) -> Tried {
        Tried {
            provider: Arc::clone(&self.provider),
            cause: None,
            at: None,
            // It ends with the attempt, not with the call.
            span: std::mem::replace(&mut self.span, Span::none()),
        }
    }
}

impl<X: Exchange> Drop for Underway<'_, X> {
    fn drop(&mut self) {
        self.end(Fate::Cancelled);
    }
}
