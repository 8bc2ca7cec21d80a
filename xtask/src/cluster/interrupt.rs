//! Ctrl-C and SIGTERM: everything that was made is taken away before the program ends.
//!
//! A thread that waits here is woken with an error, and the things that it holds are dropped on the way out.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: Mutex<bool> = Mutex::new(false);
static NEWS: Condvar = Condvar::new();

/// Heeds the signals from now on.
///
/// # Errors
/// The operating system refuses it.
pub(super) fn heed() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("signals cannot be awaited")?;
    let (mut int, mut term) = {
        let _inside = runtime.enter();
        let of = |kind| signal(kind).context("signals cannot be awaited");
        (of(SignalKind::interrupt())?, of(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
        });
        eprintln!("interrupted; taking down what was made");
        *INTERRUPTED.lock().unwrap_or_else(PoisonError::into_inner) = true;
        NEWS.notify_all();
    });
    Ok(())
}

/// Whether a signal has come.
pub(super) fn has_come() -> bool {
    *INTERRUPTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sleeps.
///
/// # Errors
/// A signal came.
pub(super) fn sleep(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    let mut interrupted = INTERRUPTED.lock().unwrap_or_else(PoisonError::into_inner);
    while !*interrupted {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let woken = NEWS.wait_timeout(interrupted, left);
        (interrupted, _) = woken.unwrap_or_else(PoisonError::into_inner);
    }
    bail!("interrupted")
}
