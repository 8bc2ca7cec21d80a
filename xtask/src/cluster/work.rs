//! The kinds of calls that callers make.

/// The service whose handler takes its time for each message.
pub(super) const SLOW_SERVICE: &str = "demo.slow";
/// That time, in milliseconds.
pub(super) const SLOW_MS: u64 = 500;
/// The messages of a stream.
pub(super) const STREAM_MESSAGES: u64 = 4;

/// What a caller's calls are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// An echo, answered at once.
    #[default]
    Echo,
    /// An echo after [`SLOW_MS`].
    Slow,
    /// A stream of [`STREAM_MESSAGES`], each given back after [`SLOW_MS`].
    Stream,
}

impl Work {
    /// What such a call is called in a sentence.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Echo => "a call",
            Self::Slow => "a slow call",
            Self::Stream => "a stream",
        }
    }

    /// The time that the handler takes, in microseconds.
    pub(crate) const fn handler_us(self) -> u64 {
        match self {
            Self::Echo => 0,
            Self::Slow => SLOW_MS * 1_000,
            Self::Stream => STREAM_MESSAGES * SLOW_MS * 1_000,
        }
    }
}
