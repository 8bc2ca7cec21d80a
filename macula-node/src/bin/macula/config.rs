//! The configuration file: options of the command line, written down.
//!
//! **One schema.** A key is an option's long name, and a value is read as if it were typed there; this file names no option. The
//! command line goes before the environment, and the environment before the file.
//!
//! ```toml
//! realm = "shop"                                # for every command that has the option
//! bootstrap = ["NODEID@node1.example.com:9443"]
//!
//! [node]                                        # for `macula node`
//! listen = "0.0.0.0:9443"
//! serve = ["api.compute=exec:./compute"]
//!
//! [node.service."api.compute"]                  # as `--service api.compute:timeout=5s`
//! timeout = "5s"
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

/// The most bytes a configuration file may have.
const MAX_BYTES: u64 = 1024 * 1024;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("the configuration file {path} cannot be read", path = .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    #[error("the configuration file {path} has {bytes} bytes; at most {MAX_BYTES} are read", path = .0.display(), bytes = .1)]
    TooLarge(PathBuf, u64),
    #[error("the configuration file {path} is not TOML", path = .0.display())]
    NotToml(PathBuf, #[source] toml::de::Error),
    #[error(
        "{path}: no command has an option `{option}`; `macula COMMAND --help` shows the options, to be written without the dashes",
        path = .0.display(), option = .1
    )]
    NoSuchOption(PathBuf, String),
    #[error("{path}: `macula {command}` has no option `{option}`; see `macula {command} --help`",
        path = .0.display(), command = .1, option = .2)]
    NotOfCommand(PathBuf, String, String),
    #[error("{path}: `{option}` takes {kind}", path = .0.display(), option = .1, kind = .2)]
    WrongKind(PathBuf, String, &'static str),
}

/// The file that the command line or the environment names.
pub(crate) fn named(command: &Command) -> Option<PathBuf> {
    // Other errors are reported when the whole command line is read.
    let matches = command.clone().ignore_errors(true).try_get_matches().ok()?;
    matches.get_one::<PathBuf>("config").cloned()
}

/// The command line with the file's values as defaults.
pub(crate) fn with_file(mut command: Command, path: &Path) -> Result<Command, ConfigError> {
    let is_command = |command: &Command, name: &str| command.find_subcommand(name).is_some();
    let (tables, everywhere): (Vec<_>, Vec<_>) = read(path)?
        .into_iter()
        .partition(|(key, value)| value.is_table() && is_command(&command, key));
    for (option, value) in everywhere {
        if !command.get_subcommands().any(|command| has(command, &option)) {
            return Err(ConfigError::NoSuchOption(path.into(), option));
        }
        command = set(command, path, |_| true, &option, &value)?;
    }
    // After those for all commands, whose place they take.
    for (name, table) in tables {
        for (option, value) in table.as_table().into_iter().flatten() {
            if !command
                .find_subcommand(&name)
                .is_some_and(|command| has(command, option))
            {
                return Err(ConfigError::NotOfCommand(path.into(), name, option.clone()));
            }
            command = set(command, path, |command| command == name, option, value)?;
        }
    }
    Ok(command)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable(path.into(), error);
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_BYTES {
        return Err(ConfigError::TooLarge(path.into(), bytes));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    text.parse().map_err(|error| ConfigError::NotToml(path.into(), error))
}

fn has(command: &Command, option: &str) -> bool {
    command.get_arguments().any(|arg| is(arg, option))
}

fn is(arg: &Arg, option: &str) -> bool {
    arg.get_long() == Some(option)
        && !arg.is_global_set()
        && !matches!(arg.get_action(), ArgAction::Help | ArgAction::Version)
}

/// Sets an option's default in the commands meant.
fn set(
    command: Command,
    path: &Path,
    meant: impl Fn(&str) -> bool,
    option: &str,
    value: &Value,
) -> Result<Command, ConfigError> {
    let mut wrong = None;
    let command = command.mut_subcommands(|command| {
        if !meant(command.get_name()) {
            return command;
        }
        command.mut_args(|arg| {
            if !is(&arg, option) {
                return arg;
            }
            match values(arg.get_action(), value) {
                Ok(None) => arg,
                Ok(Some(values)) => arg.default_values(values),
                Err(kind) => {
                    wrong = Some(kind);
                    arg
                }
            }
        })
    });
    match wrong {
        Some(kind) => Err(ConfigError::WrongKind(path.into(), option.to_owned(), kind)),
        None => Ok(command),
    }
}

/// A table of tables as it would be typed: `NAME:KEY=VALUE` for each value.
fn settings(tables: &Table, one: impl Fn(&Value) -> Option<String>) -> Result<Vec<String>, &'static str> {
    const KIND: &str = "a text, a list of texts, or a table for each name";
    let mut typed = Vec::new();
    for (name, table) in tables {
        for (key, value) in table.as_table().ok_or(KIND)? {
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for value in values {
                typed.push(format!("{name}:{key}={}", one(value).ok_or(KIND)?));
            }
        }
    }
    Ok(typed)
}

/// A value as it would be typed; nothing for a flag that is not given.
fn values(action: &ArgAction, value: &Value) -> Result<Option<Vec<String>>, &'static str> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    };
    match (action, value) {
        (ArgAction::SetTrue, Value::Boolean(false)) => Ok(None),
        (ArgAction::SetTrue, Value::Boolean(true)) => Ok(Some(vec!["true".to_owned()])),
        (ArgAction::SetTrue, _) => Err("true or false"),
        (ArgAction::Append, Value::Table(tables)) => settings(tables, one).map(Some),
        (ArgAction::Append, Value::Array(list)) => {
            let list = list.iter().map(one).collect::<Option<Vec<_>>>();
            list.map(Some).ok_or("a text, or a list of texts")
        }
        (ArgAction::Append, value) => one(value)
            .map(|one| Some(vec![one]))
            .ok_or("a text, or a list of texts"),
        (_, value) => one(value).map(|one| Some(vec![one])).ok_or("one text or number"),
    }
}
