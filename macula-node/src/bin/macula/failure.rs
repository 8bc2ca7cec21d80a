//! How a command fails: one line on standard error, and an exit code that a script can tell apart.

use std::{fmt::Display, io::Write, path::Path, process::ExitCode};

use clap::error::{ContextKind, ContextValue};
pub(crate) use macula_node::error_line;
use macula_node::{CallError, StartError};

/// A command's failure.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// `None` when the command has said it already.
    line: Option<String>,
}

impl Failure {
    /// Something that has no exit code of its own.
    pub(crate) fn other(line: impl Display) -> Self {
        Self {
            code: 1,
            line: Some(line.to_string()),
        }
    }

    /// The command was used wrongly.
    pub(crate) fn usage(line: impl Display) -> Self {
        Self {
            code: 2,
            line: Some(line.to_string()),
        }
    }

    /// A failure that the command has shown itself.
    pub(crate) fn shown(code: u8) -> Self {
        Self { code, line: None }
    }

    pub(crate) fn report(self) -> ExitCode {
        if let Some(line) = self.line {
            say(&line);
        }
        ExitCode::from(self.code)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self {
            code: call_code(&error),
            line: Some(error.to_string()),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::other(error_line(&error))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::other(format!("{error:#}"))
    }
}

/// The exit code of a failed call.
pub(crate) fn call_code(error: &CallError) -> u8 {
    match error {
        CallError::InvalidName(_) | CallError::RequestTooLarge { .. } => 2,
        CallError::ServiceNotFound { .. } => 3,
        // The call ended before every provider was tried, because it may have run or too many are retried.
        CallError::AllProvidersFailed { .. } | CallError::NotRetried { .. } => 4,
        CallError::MaxAttemptsExceeded { .. } => 5,
        CallError::DeadlineExceeded { .. } => 6,
        CallError::Answered { .. } => 7,
        _ => 1,
    }
}

/// An error in one line, its first cause before the rest of the chain.
pub(crate) fn cause_first(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Transparent errors repeat their source.
        if texts.last().is_none_or(|last| !last.ends_with(&text)) {
            texts.push(text);
        }
        source = cause.source();
    }
    match texts.pop() {
        Some(cause) if texts.is_empty() => cause,
        Some(cause) => format!("{cause} ({})", texts.join(": ")),
        None => String::new(),
    }
}

/// Reports an error in the command line; help and version are no failures.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let shown = error.print();
        return if shown.is_ok() && !error.use_stderr() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(2)
        };
    }
    let what = what(error);
    let help = help_of(std::env::args().skip(1));
    match variable_of(error) {
        Some(variable) => Failure::usage(format!("{what} (the value is that of {variable}); see `{help}`")),
        None => Failure::usage(format!("{what}; see `{help}`")),
    }
    .report()
}

/// The command that shows the help of the subcommand typed, or the general help.
fn help_of(mut typed: impl Iterator<Item = String>) -> String {
    let commands = crate::args::command();
    match typed.find(|word| commands.find_subcommand(word).is_some()) {
        Some(command) => format!("macula {command} --help"),
        None => "macula --help".to_owned(),
    }
}

/// Reports an error in a configuration file.
pub(crate) fn usage_in(file: &Path, error: &clap::Error) -> ExitCode {
    Failure::usage(format!("{}: {}", file.display(), what(error))).report()
}

/// The error with clap's suggestions and without its usage.
pub(crate) fn what(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let is_usage = |part: &&str| part.starts_with("Usage:") || part.starts_with("For more information");
    let parts = text.split("\n\n").map(str::trim).take_while(|part| !is_usage(part));
    let parts: Vec<_> = parts
        .map(|part| {
            part.strip_prefix("error: ")
                .or(part.strip_prefix("tip: "))
                .unwrap_or(part)
        })
        .collect();
    parts.join("; ")
}

/// The environment variable that the wrong value of an option comes from, when the option is not on the command line.
fn variable_of(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let option = option.split(' ').next()?;
    let typed = std::env::args_os().any(|arg| {
        let arg = arg.to_string_lossy();
        arg == option || arg.strip_prefix(option).is_some_and(|rest| rest.starts_with('='))
    });
    let variable = format!("MACULA_{}", option.strip_prefix("--")?.replace('-', "_").to_uppercase());
    (!typed && std::env::var_os(&variable).is_some()).then_some(variable)
}

/// Says something on standard error, in one line. A closed standard error is no failure.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "macula: {}", one_line(line));
}

/// Writes a line to standard output.
pub(crate) fn print_line(line: impl Display) -> Result<(), Failure> {
    print(&format!("{line}\n"))
}

/// Writes whole lines to standard output.
pub(crate) fn print(lines: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(lines.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::other(format!("standard output cannot be written: {error}")))
}

/// Writes an object as JSON, in one line.
pub(crate) fn print_json(object: &impl serde::Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string(object).map_err(|error| Failure::other(format!("no JSON can be made: {error}")))?;
    print_line(text)
}

/// One line without control characters: some of it comes from other nodes, and must not steer a terminal.
fn one_line(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_one_line() {
        assert_eq!(one_line("a\n  b\tc "), "a b c");
        assert_eq!(one_line("\u{1b}[31mred\u{7}"), "[31mred");
    }

    #[test]
    fn z10_help_is_that_of_the_command_typed() {
        let help = |typed: &[&str]| help_of(typed.iter().map(|word| (*word).to_owned()));
        assert_eq!(help(&["--config", "x.toml", "call", "node"]), "macula call --help");
        assert_eq!(help(&["fly"]), "macula --help");
    }

    #[test]
    fn z8_the_cause_comes_first() {
        let lost = std::io::Error::other("the cable is cut");
        let error = anyhow::Error::new(lost).context("no connection").context("no mesh");
        assert_eq!(cause_first(error.as_ref()), "the cable is cut (no mesh: no connection)");
        assert_eq!(cause_first(&std::fmt::Error), std::fmt::Error.to_string());
    }

    #[test]
    fn each_end_of_a_call_has_its_exit_code() {
        let service: macula_node::ServiceName = "a".parse().unwrap();
        let code = |error: CallError| call_code(&error);
        assert_eq!(
            code(CallError::ServiceNotFound {
                service: service.clone()
            }),
            3
        );
        assert_eq!(
            code(CallError::AllProvidersFailed {
                service: service.clone(),
                attempts: vec![]
            }),
            4
        );
        assert_eq!(
            code(CallError::MaxAttemptsExceeded {
                service: service.clone(),
                attempts: vec![]
            }),
            5
        );
        let allowed = std::time::Duration::from_secs(1);
        assert_eq!(
            code(CallError::DeadlineExceeded {
                service: service.clone(),
                allowed,
                attempts: vec![]
            }),
            6
        );
        let status = macula_node::Status::not_found("no");
        assert_eq!(
            code(CallError::Answered {
                service,
                status,
                attempts: vec![]
            }),
            7
        );
        assert_eq!(code(CallError::RequestTooLarge { size: 2, limit: 1 }), 2);
    }
}
