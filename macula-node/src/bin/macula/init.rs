//! The first process of a container (N7).
//!
//! The kernel hands every orphan to process 1, which has to reap it. So a node that is process 1 starts itself once more as a child
//! and does only this here: it reaps processes, passes signals on to the child, and ends with the child's exit code.

use std::{
    io::{self, IsTerminal},
    process::{Command, ExitCode, Stdio},
};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

/// Set for the child, which is the node itself.
const UNDER_INIT: &str = "MACULA_UNDER_INIT";

/// The signals that the child is passed.
const PASSED_ON: [(SignalKind, Signal); 4] = [
    (SignalKind::terminate(), Signal::TERM),
    (SignalKind::hangup(), Signal::HUP),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::user_defined1(), Signal::USR1),
];

/// Whether this process acts as a container's first one, and not as the node itself.
pub(crate) fn is_wanted(asked: bool) -> bool {
    std::env::var_os(UNDER_INIT).is_none() && (asked || getpid().is_init())
}

/// Runs this program again as a child, and looks after it until it ends.
pub(crate) fn run() -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(look_after())
}

async fn look_after() -> io::Result<ExitCode> {
    // First: none that comes while the child starts is lost.
    let mut ended = signal(SignalKind::child())?;
    let (passed_on, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    // A terminal sends SIGINT to the child by itself, and twice means at once.
    let interrupt = (!io::stdin().is_terminal()).then_some((SignalKind::interrupt(), Signal::INT));
    for (kind, number) in PASSED_ON.into_iter().chain(interrupt) {
        let (mut stream, passed_on) = (signal(kind)?, passed_on.clone());
        tokio::spawn(async move { while stream.recv().await.is_some() && passed_on.send(number).is_ok() {} });
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if !getpid().is_init() {
        rustix::process::set_child_subreaper(Some(getpid()))?;
    }
    let child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(UNDER_INIT, "1")
        .stdin(Stdio::inherit())
        .spawn()?;
    let child = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    loop {
        tokio::select! {
            _ = ended.recv() => {
                if let Some(code) = reap(child)? {
                    return Ok(code);
                }
            }
            Some(number) = arrived.recv() => {
                if let Some(child) = child {
                    // It may just have ended, which SIGCHLD tells.
                    let _ = kill_process(child, number);
                }
            }
        }
    }
}

/// Reaps every process that has ended; gives the exit code of `child` when it is among them.
fn reap(child: Option<Pid>) -> io::Result<Option<ExitCode>> {
    let mut code = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((ended, status))) if Some(ended) == child => code = Some(exit_code(status)),
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(code),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The exit code as a shell gives it: 128 and the number of the signal that ended the process.
fn exit_code(status: WaitStatus) -> ExitCode {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
