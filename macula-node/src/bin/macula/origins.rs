//! `macula config`: checks the configuration, and shows where each value came from.

use std::{fs, path::Path};

use clap::{ArgAction, ArgMatches, Command, FromArgMatches as _, parser::ValueSource};
use serde::Serialize;
use toml::de::DeTable;

use crate::{
    args::{self, Cli, Command as Given, ConfigAction, ConfigArgs},
    config,
    failure::{self, Failure, print, print_json, print_line},
    node,
    table::{Look, Table, text},
};

/// An option with its value.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Setting {
    option: String,
    /// Absent when the option has no value.
    value: Option<String>,
    origin: Origin,
    /// The environment's variable, or the file and its line.
    place: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Origin {
    Flag,
    Environment,
    File,
    Default,
    Unset,
}

impl Origin {
    const fn name(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Default => "default",
            Self::Unset => "unset",
        }
    }
}

pub(crate) fn run(args: &ConfigArgs, file: Option<&Path>) -> Result<(), Failure> {
    match &args.action {
        ConfigAction::Check { command } => check(command, file),
        ConfigAction::Show { command, json, args } => {
            let settings = settings(command, file, args)?;
            if *json {
                return print_json(&settings);
            }
            let rows = settings.iter().map(|setting| {
                let origin = match &setting.place {
                    Some(place) => format!("{} {place}", setting.origin.name()),
                    None => setting.origin.name().to_owned(),
                };
                [
                    text(&setting.option),
                    text(setting.value.as_deref().unwrap_or("-")),
                    text(origin),
                ]
            });
            print(&Table::new(["OPTION", "VALUE", "FROM"], rows).render(Look::of_stdout()))
        }
    }
}

/// The command line of `macula COMMAND` with these words, as it would be read.
fn read(command: &str, file: Option<&Path>, words: &[String]) -> Result<(Command, ArgMatches), Failure> {
    let mut typed = args::command();
    if let Some(file) = file {
        typed = config::with_file(typed, file).map_err(|error| Failure::usage(failure::error_line(&error)))?;
    }
    let Some(found) = typed.find_subcommand(command) else {
        return Err(Failure::usage(format!(
            "there is no command `{command}`; see `macula --help`"
        )));
    };
    // A required word, such as a service's name, is none of the configuration.
    let positional = found.get_positionals().filter(|arg| arg.is_required_set()).map(|_| "x");
    let line = ["macula", command].into_iter().chain(positional).map(str::to_owned);
    let matches = typed.clone().try_get_matches_from(line.chain(words.iter().cloned()));
    let matches = matches.map_err(|error| match file {
        Some(file) => Failure::usage(format!(
            "{}, the environment or the words: {}",
            file.display(),
            failure::what(&error)
        )),
        None => Failure::usage(failure::what(&error)),
    })?;
    Ok((typed, matches))
}

fn check(command: &str, file: Option<&Path>) -> Result<(), Failure> {
    let (_, matches) = read(command, file, &[])?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| Failure::usage(failure::what(&error)))?;
    if let Given::Node(args) = &cli.command {
        node::check(args)?;
    }
    let whole = match file {
        Some(file) => file.display().to_string(),
        None => "the environment (no file is named)".to_owned(),
    };
    print_line(format!("{whole}: right for `macula {command}`"))
}

fn settings(command: &str, file: Option<&Path>, words: &[String]) -> Result<Vec<Setting>, Failure> {
    let (typed, matches) = read(command, file, words)?;
    let (Some(found), Some(matches)) = (typed.find_subcommand(command), matches.subcommand_matches(command)) else {
        return Ok(Vec::new());
    };
    let lines = file.map(|file| Lines::read(file, command)).unwrap_or_default();
    let options = found.get_arguments().filter(|arg| {
        arg.get_long().is_some()
            && !arg.is_global_set()
            && !matches!(
                arg.get_action(),
                ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort | ArgAction::Version
            )
    });
    let setting = |arg: &clap::Arg| {
        let (id, long) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
        let raw = matches.try_get_raw(id).ok().flatten();
        let value = raw.map(|values| {
            let values: Vec<_> = values.map(|value| value.to_string_lossy().into_owned()).collect();
            values.join(" ")
        });
        let (origin, place) = match (matches.value_source(id), lines.of(long)) {
            (Some(ValueSource::CommandLine), _) => (Origin::Flag, None),
            (Some(ValueSource::EnvVariable), _) => {
                let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
                (Origin::Environment, variable)
            }
            (Some(ValueSource::DefaultValue), Some(line)) => {
                let file = file.map(|file| format!("{}:{line}", file.display()));
                (Origin::File, file)
            }
            (Some(_), _) => (Origin::Default, None),
            (None, _) => (Origin::Unset, None),
        };
        let value = value.filter(|_| origin != Origin::Unset);
        // A secret is not for a screen.
        let value = value.map(|value| {
            if arg.is_hide_env_values_set() {
                "(hidden)".to_owned()
            } else {
                value
            }
        });
        Setting {
            option: long.to_owned(),
            value,
            origin,
            place,
        }
    };
    Ok(options.map(setting).collect())
}

/// The lines of a file at which options stand.
#[derive(Debug, Default)]
struct Lines(Vec<(String, usize)>);

impl Lines {
    /// The lines of a command's options; its own table goes before the rest. A file that cannot be read is reported elsewhere.
    fn read(file: &Path, command: &str) -> Self {
        let text = fs::read_to_string(file).unwrap_or_default();
        let Ok(parsed) = DeTable::parse(&text) else {
            return Self::default();
        };
        let parsed = parsed.into_inner();
        let line = |at: usize| text[..at].matches('\n').count() + 1;
        let own = parsed.get(command).and_then(|table| table.get_ref().as_table());
        let tables = own.into_iter().chain([&parsed]);
        let keys = tables.flat_map(|table| table.keys());
        Self(
            keys.map(|key| (key.get_ref().to_string(), line(key.span().start)))
                .collect(),
        )
    }

    fn of(&self, option: &str) -> Option<usize> {
        self.0.iter().find(|(key, _)| key == option).map(|(_, line)| *line)
    }
}
