//! Time that passes when the test says so, while sockets work as ever.
//!
//! Tokio's paused clock runs ahead whenever nothing is ready, also while a packet is under way. It does not while a blocking task
//! runs, so one does until the clock is dropped.

use std::{pin::pin, sync::mpsc, time::Duration};

/// A stopped clock. For a current-thread runtime.
pub(crate) struct Clock {
    _held: mpsc::Sender<()>,
}

/// How often others run between two steps of the clock: enough for packets to go to and fro.
const TURNS: usize = 50;

impl Clock {
    pub(crate) fn stop() -> Self {
        let (held, hold) = mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || {
            // Ends with the clock.
            let _ = hold.recv();
        });
        tokio::time::pause();
        Self { _held: held }
    }

    /// Lets everything run that needs no time.
    pub(crate) async fn settle(&self) {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }

    /// Lets time pass, all at once.
    pub(crate) async fn pass(&self, time: Duration) {
        self.settle().await;
        tokio::time::advance(time).await;
        self.settle().await;
    }

    /// Lets time pass in steps, each of which leaves peers the time to answer, until `done` is.
    pub(crate) async fn run<T>(&self, step: Duration, done: impl Future<Output = T>) -> T {
        let mut done = pin!(done);
        loop {
            tokio::select! {
                biased;
                result = &mut done => return result,
                () = self.pass(step) => {}
            }
        }
    }
}
