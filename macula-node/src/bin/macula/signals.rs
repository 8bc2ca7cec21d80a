//! SIGINT and SIGTERM, which end the program in order.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// The signals that end a command.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Receives both from now on: neither ends the process by itself any more.
    pub(crate) fn new() -> Result<Self, Failure> {
        let watch = |kind| signal(kind).map_err(|error| Failure::other(format!("signals cannot be received: {error}")));
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
        })
    }

    /// The next signal, as the exit code of the command that it ends: 130 or 143.
    pub(crate) async fn next(&mut self) -> Failure {
        tokio::select! {
            _ = self.interrupt.recv() => Failure::shown(130),
            _ = self.terminate.recv() => Failure::shown(143),
        }
    }
}
