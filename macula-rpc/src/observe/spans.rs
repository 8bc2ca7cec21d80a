//! The spans of a call: `rpc.call` at the caller, `rpc.attempt` within it for each provider tried, `rpc.serve` at the provider.

use std::net::SocketAddr;

use macula_transport::IncomingCall;
use macula_wire::{ServiceName, StatusCode};
use tracing::{Span, field::Empty, info_span};

use super::{Ended, Method};
use crate::{Cause, Provider};

/// The span of a call, from its start to its result.
pub(crate) fn call_span(service: &ServiceName, method: &str) -> Span {
    info_span!(
        "rpc.call",
        otel.kind = "client",
        otel.name = %Name(service, method),
        otel.status_code = Empty,
        rpc.system = "macula",
        rpc.service = %service,
        rpc.method = method,
        macula.directory = Empty,
        macula.attempts = Empty,
        error.type = Empty,
    )
}

/// Records the step of the directory's order that gave the providers.
pub(crate) fn record_step(span: &Span, step: &'static str) {
    span.record("macula.directory", step);
}

/// Records how a call ended.
pub(crate) fn record_end(span: &Span, attempts: usize, ended: Ended) {
    if span.is_disabled() {
        return;
    }
    span.record("macula.attempts", attempts);
    if ended != Ended::Ok {
        span.record("error.type", ended.name());
        span.record("otel.status_code", "ERROR");
    }
}

/// The span of one attempt, within its call's.
pub(crate) fn attempt_span(provider: &Provider, number: usize, hedge: bool) -> Span {
    let span = info_span!(
        "rpc.attempt",
        otel.kind = "client",
        otel.status_code = Empty,
        rpc.system = "macula",
        network.transport = "quic",
        server.address = Empty,
        server.port = Empty,
        network.peer.address = Empty,
        network.peer.port = Empty,
        macula.node_id = %provider.node_id,
        macula.attempt = number,
        macula.hedge = hedge,
        rpc.response.status_code = Empty,
        error.type = Empty,
    );
    if let Some(endpoint) = provider.endpoints.first().filter(|_| !span.is_disabled()) {
        span.record("server.address", endpoint.host());
        span.record("server.port", endpoint.port());
    }
    span
}

/// Records the address of an attempt.
pub(crate) fn record_peer(span: &Span, at: SocketAddr) {
    if !span.is_disabled() {
        span.record("network.peer.address", tracing::field::display(at.ip()));
        span.record("network.peer.port", at.port());
    }
}

/// Records how an attempt ended.
pub(crate) fn record_attempt(span: &Span, cause: Option<&Cause>) {
    if span.is_disabled() {
        return;
    }
    let Some(cause) = cause else {
        span.record("rpc.response.status_code", "ok");
        return;
    };
    span.record("error.type", cause.name());
    span.record("otel.status_code", "ERROR");
    if let Cause::Answered(status) | Cause::Refused(status) = cause {
        span.record("rpc.response.status_code", tracing::field::display(status.code()));
    }
}

/// The span of a call at its provider, around the handler. The peer chooses the method's name, so the span has its label.
pub(crate) fn serve_span(call: &IncomingCall, method: &Method) -> Span {
    info_span!(
        "rpc.serve",
        otel.kind = "server",
        otel.name = %Name(call.service(), method.as_str()),
        otel.status_code = Empty,
        rpc.system = "macula",
        rpc.service = %call.service(),
        rpc.method = method.as_str(),
        network.transport = "quic",
        client.address = %call.peer().remote_addr.ip(),
        macula.peer = %call.peer().node_id,
        rpc.response.status_code = Empty,
        error.type = Empty,
    )
}

/// Records that a served call failed.
pub(crate) fn record_served(span: &Span, code: StatusCode) {
    span.record("rpc.response.status_code", tracing::field::display(code));
    span.record("error.type", tracing::field::display(code));
    span.record("otel.status_code", "ERROR");
}

/// `service/method`, or the service alone when it has only one method.
struct Name<'a>(&'a ServiceName, &'a str);

impl std::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            "" => self.0.fmt(f),
            method => write!(f, "{}/{method}", self.0),
        }
    }
}
