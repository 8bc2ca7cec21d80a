//! What `--serve` offers: echo, and a shell command for each call.

use std::{process::Stdio, str::FromStr, sync::Arc};

use macula_node::{NameError, Request, ServiceName, Status, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    sync::Semaphore,
};

/// The commands one `exec:` service runs at a time; further calls are refused, so their callers go elsewhere.
const MAX_RUNNING_COMMANDS: usize = 64;

/// The most of a command's standard output that is an answer, in bytes: what a message may carry.
const MAX_OUTPUT_BYTES: u64 = 4 * 1024 * 1024;

/// The most of a command's standard error that is kept, from its end, in bytes.
const MAX_ERROR_BYTES: usize = 4096;

/// A service and what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Serve {
    pub(crate) name: ServiceName,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Echo,
    Exec(String),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("write a service as `NAME=echo` or `NAME=exec:COMMAND`")]
    Form,
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for Serve {
    type Err = ServeError;

    fn from_str(text: &str) -> Result<Self, ServeError> {
        let (name, kind) = text.split_once('=').ok_or(ServeError::Form)?;
        let kind = match (kind, kind.strip_prefix("exec:")) {
            ("echo", _) => Kind::Echo,
            (_, Some(command)) if !command.trim().is_empty() => Kind::Exec(command.to_owned()),
            _ => return Err(ServeError::Form),
        };
        Ok(Self {
            name: ServiceName::new(name)?,
            kind,
        })
    }
}

/// Answers with the request.
pub(crate) async fn echo(request: Request) -> Result<macula_node::Bytes, Status> {
    Ok(request.into_payload())
}

/// A service that runs a shell command for each call.
#[derive(Debug, Clone)]
pub(crate) struct Exec {
    command: Arc<str>,
    running: Arc<Semaphore>,
}

impl Exec {
    pub(crate) fn new(command: &str) -> Self {
        Self {
            command: command.into(),
            running: Arc::new(Semaphore::new(MAX_RUNNING_COMMANDS)),
        }
    }

    /// Runs the command with the request on its standard input and answers with its standard output.
    pub(crate) async fn call(self, request: Request) -> Result<Vec<u8>, Status> {
        let _permit = self
            .running
            .try_acquire()
            .map_err(|_| Status::refused(format!("{MAX_RUNNING_COMMANDS} commands are running already")))?;
        let mut group = Group::spawn(&self.command)
            .map_err(|error| Status::internal(format!("the command could not be started: {error}")))?;
        let payload = request.into_payload();
        let (stdin, stdout, stderr) = (
            group.child.stdin.take(),
            group.child.stdout.take(),
            group.child.stderr.take(),
        );
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // A command that does not read all of its input is no error: `head` does the same.
                let _ = stdin.write_all(&payload).await;
            }
            Ok(())
        };
        let ((), output, last_line) = tokio::try_join!(feed, answer(stdout), async { Ok(last_line(stderr).await) })?;
        let exit = group
            .child
            .wait()
            .await
            .map_err(|error| Status::internal(format!("the command was lost: {error}")))?;
        group.ended = true;
        if exit.success() {
            return Ok(output);
        }
        Err(Status::new(
            code(exit.code()),
            if last_line.is_empty() {
                exit.to_string()
            } else {
                last_line
            },
        ))
    }
}

/// What an exit code says to the caller, after BSD's `sysexits.h`: the caller's own faults are final, everything else is
/// tried at another provider (F6).
fn code(exit: Option<i32>) -> StatusCode {
    match exit {
        // EX_USAGE, EX_DATAERR
        Some(64 | 65) => StatusCode::InvalidArgument,
        // EX_NOINPUT, EX_NOUSER, EX_NOHOST
        Some(66..=68) => StatusCode::NotFound,
        // EX_UNAVAILABLE, EX_TEMPFAIL
        Some(69 | 75) => StatusCode::Unavailable,
        // EX_NOPERM
        Some(77) => StatusCode::PermissionDenied,
        Some(_) | None => StatusCode::Unknown,
    }
}

/// A running command and everything it started, killed when dropped: by a deadline or a cancelled call.
struct Group {
    child: Child,
    ended: bool,
}

impl Group {
    fn spawn(command: &str) -> std::io::Result<Self> {
        let child = Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child, ended: false })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // The shell leads a process group of its own; its children would outlive it otherwise.
        let group = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group
            && let Err(error) = rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
        {
            tracing::debug!(%error, "the command's process group was gone already");
        }
    }
}

/// Reads standard output to its end.
async fn answer(stdout: Option<impl tokio::io::AsyncRead + Unpin>) -> Result<Vec<u8>, Status> {
    let mut output = Vec::new();
    if let Some(stdout) = stdout {
        let lost = |error| Status::internal(format!("the command's output was lost: {error}"));
        stdout
            .take(MAX_OUTPUT_BYTES + 1)
            .read_to_end(&mut output)
            .await
            .map_err(lost)?;
    }
    if output.len() as u64 > MAX_OUTPUT_BYTES {
        return Err(Status::new(
            StatusCode::OutOfRange,
            "the command printed more than 4 MiB",
        ));
    }
    Ok(output)
}

/// Reads standard error to its end, keeps the last piece, and answers with its last line that says anything.
async fn last_line(stderr: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let (mut tail, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        tail.extend_from_slice(&buffer[..read]);
        let surplus = tail.len().saturating_sub(MAX_ERROR_BYTES);
        tail.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&tail);
    text.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_with_their_kind() {
        let serve = |text: &str| text.parse::<Serve>();
        assert_eq!(serve("a.b=echo").unwrap().kind, Kind::Echo);
        assert_eq!(
            serve("up=exec:tr a-z A-Z").unwrap().kind,
            Kind::Exec("tr a-z A-Z".into())
        );
        assert_eq!(serve("x=exec:a=b").unwrap().kind, Kind::Exec("a=b".into()));
        for bad in ["echo", "a=", "a=Echo", "a=exec:", "a=exec: "] {
            assert_eq!(serve(bad), Err(ServeError::Form), "{bad} was taken");
        }
        assert!(matches!(serve("a b=echo"), Err(ServeError::Name(_))));
    }

    #[tokio::test]
    async fn the_last_line_of_an_error_is_what_a_person_reads() {
        assert_eq!(last_line(Some(&b"first\nsecond  \n\n"[..])).await, "second");
        assert_eq!(last_line(Some(&b""[..])).await, "");
        let long = [&[b'x'; 10_000][..], b"\nend"].concat();
        assert_eq!(last_line(Some(&long[..])).await, "end");
    }
}
