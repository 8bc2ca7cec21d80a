//! `exec:` services: a shell command for each call (N8).
//!
//! A command reads the request from its standard input. The answer is its standard output up to its exit; a child that it left
//! behind and that still holds the pipe delays nothing. The command ends with its call: when the caller cancels,
//! its connection is lost or the deadline passes, the call's future is dropped and the command's process group is killed.
//!
//! Callers are strangers, so a command gets an environment of its own and not the node's, and its standard error goes to the log.

mod check;
mod group;
mod user;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use macula_node::{Request, Status, StatusCode};

use self::group::{Ended, Group};
pub(crate) use self::{check::check, user::User};
use crate::sparse::Sparse;

/// The longest answer, in bytes: the most that a message carries.
const MAX_OUTPUT_BYTES: usize = 4 * 1024 * 1024;
/// The longest message of a failed command that its caller is sent, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;
/// The variables of the node's own environment that every command gets.
const PASSED_ON: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ"];

/// The environment that commands share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The variables that every command gets, and these further ones: `NAME=VALUE`, or `NAME` for the node's own value.
    pub(crate) fn new(further: &[String]) -> Self {
        let own = |name: &str| Some((name.into(), std::env::var_os(name)?));
        let further = further.iter().filter_map(|text| match text.split_once('=') {
            Some((name, value)) => Some((name.into(), value.into())),
            None => own(text),
        });
        Self(PASSED_ON.into_iter().filter_map(own).chain(further).collect())
    }

    /// This with one more variable: `NAME=VALUE`, or `NAME` for the node's own value.
    pub(crate) fn with(&self, variable: &str) -> Self {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, Some(value.into())),
            None => (variable, std::env::var_os(variable)),
        };
        let mut all = self.0.clone();
        all.extend(value.map(|value| (name.into(), value)));
        Self(all)
    }
}

/// How the process of a command is run.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// It is killed after this time, and its call has failed.
    pub(crate) timeout: Option<Duration>,
    /// The longest answer, in bytes.
    pub(crate) max_output: usize,
    /// The user that it runs as; only root can choose another than its own.
    pub(crate) user: Option<User>,
    /// Its working folder; the node's own without it.
    pub(crate) folder: Option<PathBuf>,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            timeout: None,
            max_output: MAX_OUTPUT_BYTES,
            user: None,
            folder: None,
        }
    }
}

/// A service that runs a shell command for each call.
#[derive(Debug, Clone)]
pub(crate) struct Exec {
    command: Arc<str>,
    environment: Arc<Environment>,
    process: Arc<Process>,
    failures: Arc<Sparse>,
}

impl Exec {
    pub(crate) fn new(command: &str, environment: &Arc<Environment>, process: Process) -> Self {
        Self {
            command: command.into(),
            environment: Arc::clone(environment),
            process: Arc::new(process),
            failures: Arc::default(),
        }
    }

    /// Runs the command with the request on its standard input and answers with its standard output.
    pub(crate) async fn call(self, request: Request) -> Result<Vec<u8>, Status> {
        let service = request.service().to_string();
        let caller = request.peer().map(|peer| peer.node_id.to_string()).unwrap_or_default();
        let call = [
            ("MACULA_SERVICE", service.as_str()),
            ("MACULA_METHOD", request.method()),
            ("MACULA_CALLER", caller.as_str()),
        ];
        // The command has not begun, so the call may go elsewhere even when it must not run twice (F5).
        let group = Group::spawn(&self.command, &self.environment.0, &self.process, call).map_err(|error| {
            tracing::warn!(service, %error, "a command could not be started");
            Status::refused("the command could not be started")
        })?;
        let max_output = self.process.max_output;
        let running = group.run(request.into_payload(), max_output);
        let ended = match self.process.timeout {
            None => running.await,
            // Dropped, the group is killed.
            Some(timeout) => match tokio::time::timeout(timeout, running).await {
                Ok(ended) => ended,
                Err(_) => {
                    self.failures.warn(|more| {
                        tracing::warn!(service, ?timeout, more, "a command ran for too long and was killed");
                    });
                    let message = format!("the command was killed after {timeout:?}");
                    return Err(Status::new(StatusCode::DeadlineExceeded, message));
                }
            },
        };
        let Ended { exit, output, errors } = ended.map_err(|error| {
            tracing::warn!(service, %error, "a command was lost");
            Status::internal("the command was lost")
        })?;
        if output.len() > max_output {
            let message = format!("the command wrote more than {max_output} bytes");
            return Err(Status::new(StatusCode::OutOfRange, message));
        }
        if exit.success() {
            tracing::info!(service, caller, stderr = errors, "a command has answered");
            return Ok(output);
        }
        self.failures
            .warn(|more| tracing::warn!(service, %exit, stderr = errors, more, "a command failed"));
        let message = last_line(&output).unwrap_or_else(|| exit.to_string());
        Err(Status::new(status_code(exit.code()), message))
    }
}

/// The status of an exit code, after BSD's `sysexits.h`: the caller's own faults are final, the others are tried at another provider
/// (F6).
fn status_code(exit: Option<i32>) -> StatusCode {
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

/// The last line with anything in it, shortened to [`MAX_MESSAGE_BYTES`].
fn last_line(output: &[u8]) -> Option<String> {
    let tail = &output[output.len().saturating_sub(MAX_MESSAGE_BYTES)..];
    let text = String::from_utf8_lossy(tail);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_failed_commands_output_is_the_message() {
        assert_eq!(last_line(b"first\nsecond  \n\n").as_deref(), Some("second"));
        assert_eq!(last_line(b""), None);
        let long = [&[b'x'; 10_000][..], b"\nend"].concat();
        assert_eq!(last_line(&long).as_deref(), Some("end"));
        assert_eq!(
            last_line(&[b'x'; 10_000]).map(|line| line.len()),
            Some(MAX_MESSAGE_BYTES)
        );
    }

    #[test]
    fn x12_a_command_gets_the_variables_that_are_named_and_no_others() {
        let environment = Environment::new(&["A=1=2".into(), "PATH".into(), "MACULA_NO_SUCH".into()]);
        assert_eq!(environment.0.get(&OsString::from("A")), Some(&"1=2".into()));
        assert!(environment.0.contains_key(&OsString::from("PATH")));
        let names = environment.0.keys().map(|name| name.to_string_lossy());
        assert!(names.clone().all(|name| name == "A" || PASSED_ON.contains(&&*name)));
    }

    /// Y18: a call that did not begin may go elsewhere, even when it must not run twice.
    #[tokio::test]
    async fn y18_a_command_that_cannot_be_started_is_refused() {
        use macula_node::{Node, RetryPolicy};

        // No process has an argument with a NUL in it.
        let exec = Exec::new("true\0", &Arc::default(), Process::default());
        let node = Node::builder().listen("127.0.0.1:0".parse().unwrap());
        let node = node.serve("a", move |request| exec.clone().call(request));
        let node = node.start().await.unwrap();
        let bootstrap = node.endpoints()[0].clone().into();
        let caller = Node::builder().client().bootstrap([bootstrap]).start().await.unwrap();
        caller.join().await.unwrap();
        let call = caller.client().request("a").retry_policy(RetryPolicy::NeverProcessed);
        let error = call.send("").await.unwrap_err();
        assert!(
            matches!(error, macula_node::CallError::AllProvidersFailed { .. }),
            "{error:?}"
        );
        let refused = |cause: &macula_node::Cause| matches!(cause, macula_node::Cause::Refused(_));
        assert!(
            error.attempts().iter().any(|attempt| refused(&attempt.cause)),
            "{error:?}"
        );
    }
}
