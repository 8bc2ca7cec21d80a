//! The whole configuration: command line, environment, and file.

use std::process::ExitCode;

use clap::FromArgMatches as _;

use crate::{
    args::{self, Cli},
    config,
    failure::{self, Failure},
};

/// Reads the command line, the environment, and the configuration file if there is one.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let typed = args::command();
    let read = |command: clap::Command| {
        let matches = command.try_get_matches()?;
        Cli::from_arg_matches(&matches)
    };
    let Some(file) = config::named(&typed) else {
        return read(typed).map_err(|error| failure::usage(&error));
    };
    let command = config::with_file(typed.clone(), &file);
    let command = command.map_err(|error| Failure::usage(failure::error_line(&error)).report())?;
    read(command).map_err(|error| match read(typed) {
        // The command line is right, so the file is wrong.
        Ok(_) => failure::usage_in(&file, &error),
        Err(error) => failure::usage(&error),
    })
}
