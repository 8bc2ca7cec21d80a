//! The trace of a call, as a W3C Trace Context (<https://www.w3.org/TR/trace-context/>) in the call's metadata.
//!
//! A provider continues the trace of the call that it answers: its handler's own calls belong to it. A client sends traces with
//! [`ClientBuilder::propagate`](crate::ClientBuilder::propagate).
//!
//! Left out: recording. Spans are `tracing`'s; an exporter implements [`Propagate`] to link the spans of both sides.

use std::{fmt, future::Future, sync::Arc};

use macula_transport::Metadata;
use tracing::Span;

/// The metadata key of the trace, as in HTTP.
pub const TRACEPARENT: &str = "traceparent";

/// The defined flags: sampled, and random of level 2. The standard asks that the others are not passed on.
const KNOWN_FLAGS: u8 = 0x03;

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// A trace, and the parent span in it: a `traceparent`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

impl TraceContext {
    /// A context of these ids; `None` when an id is zero, which the standard forbids.
    #[must_use]
    pub const fn new(trace_id: u128, parent_id: u64, sampled: bool) -> Option<Self> {
        if trace_id == 0 || parent_id == 0 {
            return None;
        }
        Some(Self {
            trace_id,
            parent_id,
            flags: sampled as u8,
        })
    }

    /// Reads a `traceparent`; `None` when the text is not valid, as the standard asks.
    ///
    /// ```
    /// use macula_rpc::TraceContext;
    ///
    /// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    /// assert_eq!(TraceContext::parse(text.as_bytes()).unwrap().to_string(), text);
    /// assert!(TraceContext::parse(b"00-0-0-0").is_none());
    /// ```
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next()?;
            let lower_hex = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            (part.len() == digits && lower_hex).then_some(part)
        };
        let version = u8::from_str_radix(hex(2)?, 16).ok()?;
        let trace_id = u128::from_str_radix(hex(32)?, 16).ok()?;
        let parent_id = u64::from_str_radix(hex(16)?, 16).ok()?;
        let flags = u8::from_str_radix(hex(2)?, 16).ok()?;
        // Only later versions may have more fields after the flags.
        if version == 0xff || (version == 0 && parts.next().is_some()) || trace_id == 0 || parent_id == 0 {
            return None;
        }
        Some(Self {
            trace_id,
            parent_id,
            flags: flags & KNOWN_FLAGS,
        })
    }

    /// The trace of a call's metadata.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Option<Self> {
        metadata.get(TRACEPARENT).and_then(|text| Self::parse(text))
    }

    /// The trace of the call that the current task answers; `None` outside a handler, or when the caller sent no trace.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|context| *context).ok()
    }

    /// The trace's id.
    #[must_use]
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The parent span's id.
    #[must_use]
    pub const fn parent_id(&self) -> u64 {
        self.parent_id
    }

    /// Whether the trace is being recorded.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// Runs a future whose calls belong to this trace. Wrap the tasks that it spawns too: they do not inherit the trace.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }

    /// Runs a function whose calls belong to this trace.
    pub(crate) fn sync_scope<R>(self, work: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(self, work)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.parent_id, self.flags
        )
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceContext({self})")
    }
}

/// How traces cross the wire.
///
/// Implement this for an exporter of spans, such as OpenTelemetry's, so that the sent ids are the exporter's: `outgoing` gives the context
/// of the span, and `incoming` makes the span a child of the context.
pub trait Propagate: Send + Sync + 'static {
    /// The context to send with an attempt whose span is `span`; `current` is the trace of the call being answered, if any.
    fn outgoing(&self, span: &Span, current: Option<TraceContext>) -> Option<TraceContext>;

    /// Links the span of a served call to its caller's trace.
    fn incoming(&self, span: &Span, context: TraceContext) {
        let _ = (span, context);
    }
}

impl<P: Propagate + ?Sized> Propagate for Arc<P> {
    fn outgoing(&self, span: &Span, current: Option<TraceContext>) -> Option<TraceContext> {
        (**self).outgoing(span, current)
    }

    fn incoming(&self, span: &Span, context: TraceContext) {
        (**self).incoming(span, context);
    }
}

/// Traces without an exporter. It continues the trace of the call being answered, or begins a new one, and gives every attempt an id of
/// its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct W3c;

impl Propagate for W3c {
    fn outgoing(&self, _span: &Span, current: Option<TraceContext>) -> Option<TraceContext> {
        let mut fresh = [0; 24];
        // Without randomness the call goes without a trace.
        getrandom::fill(&mut fresh).ok()?;
        let (trace, parent) = fresh.split_at(16);
        let trace_id = u128::from_le_bytes(trace.try_into().ok()?);
        let parent_id = u64::from_le_bytes(parent.try_into().ok()?);
        match current {
            Some(current) => Some(TraceContext {
                parent_id: parent_id.max(1),
                ..current
            }),
            None => TraceContext::new(trace_id, parent_id, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_standard_forbids_is_no_context() {
        for text in [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473+-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(text.as_bytes()), None, "{text}");
        }
        assert!(TraceContext::parse(b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some());
    }

    #[test]
    fn flags_that_mean_nothing_yet_are_not_passed_on() {
        let ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        for (version, flags, known) in [("00", "ff", "03"), ("01", "fd", "01"), ("00", "fc", "00")] {
            let context = TraceContext::parse(format!("{version}-{ids}-{flags}").as_bytes()).unwrap();
            assert_eq!(context.to_string(), format!("00-{ids}-{known}"));
        }
    }

    proptest! {
        #[test]
        fn contexts_survive_their_text(trace in 1_u128.., parent in 1_u64.., sampled: bool) {
            let context = TraceContext::new(trace, parent, sampled).unwrap();
            prop_assert_eq!(TraceContext::parse(context.to_string().as_bytes()), Some(context));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = TraceContext::parse(&bytes);
        }
    }
}
