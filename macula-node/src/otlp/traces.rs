//! The ids of OpenTelemetry's spans, over the network.

use macula_rpc::{Propagate, TraceContext};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

pub(super) struct Traces;

impl Propagate for Traces {
    fn outgoing(&self, span: &Span, current: Option<TraceContext>) -> Option<TraceContext> {
        let context = span.context();
        let sent = context.span().span_context().clone();
        let trace = u128::from_be_bytes(sent.trace_id().to_bytes());
        let parent = u64::from_be_bytes(sent.span_id().to_bytes());
        // Without a span of its own the process passes its caller's trace on.
        TraceContext::new(trace, parent, sent.is_sampled()).or(current)
    }

    fn incoming(&self, span: &Span, context: TraceContext) {
        let flags = TraceFlags::default().with_sampled(context.is_sampled());
        let (trace, parent) = (TraceId::from(context.trace_id()), SpanId::from(context.parent_id()));
        let parent = SpanContext::new(trace, parent, flags, true, TraceState::default());
        // Fails for a span that is not recorded.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}
