//! A call as it is observed: its span, its time and its end.

use std::{sync::Arc, time::Instant};

use macula_wire::ServiceName;
use tracing::Span;

use super::{
    answer::AnswerSource,
    options::Options,
    services::Service,
    shared::{Client, now},
};
use crate::observe::{self, Ended, Method};

/// Observes one call. Dropped before its end, the call was cancelled.
pub(crate) struct CallWatch {
    started: Instant,
    known: Arc<Service>,
    span: Span,
    method: Method,
    ended: Ended,
}

impl CallWatch {
    pub(crate) fn begin(client: &Client, service: &ServiceName, call: &Options) -> Self {
        let known = match call.is_for_peer() {
            false => client.shared.services.of(service),
            true => client.shared.services.for_peers(service),
        };
        known.meters.begin();
        Self {
            started: now(),
            span: observe::call_span(service, &call.method),
            method: known.meters.method(&call.method),
            known,
            ended: Ended::Cancelled,
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn known(&self) -> &Arc<Service> {
        &self.known
    }

    /// A step of the directory's order gave the providers; `None` when no step did.
    pub(crate) fn found(&self, source: Option<AnswerSource>) {
        if let Some(source) = source {
            observe::record_step(&self.span, source.name());
        }
        self.known.meters.lookup(source.map_or("none", AnswerSource::name));
    }

    /// The call ended, after this number of attempts.
    pub(crate) fn end(mut self, attempts: usize, ended: Ended) {
        observe::record_end(&self.span, attempts, ended);
        self.ended = ended;
    }
}

impl Drop for CallWatch {
    fn drop(&mut self) {
        self.known.meters.call(&self.method, self.ended, self.started);
    }
}
