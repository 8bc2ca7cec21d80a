//! `macula completions` and `macula man`: made from the same description of the command line that reads it.

use std::{fs, path::Path};

use crate::{
    args::{self, CompletionsArgs, ManArgs},
    failure::{Failure, print},
};

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "macula", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut command = args::command();
    // Names every subcommand as it is typed.
    command.build();
    match &args.folder {
        None => {
            let command = match &args.command {
                None => command,
                Some(name) => command
                    .find_subcommand(name)
                    .cloned()
                    .ok_or_else(|| Failure::usage(format!("there is no command `{name}`; see `macula --help`")))?,
            };
            print(&String::from_utf8_lossy(&page(command)?))
        }
        Some(folder) => pages(command, folder),
    }
}

/// Writes a page for the program and for each command.
fn pages(command: clap::Command, folder: &Path) -> Result<(), Failure> {
    let lost = |error| Failure::other(format!("the pages cannot be written to {}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(lost)?;
    let write = |name: &str, page: Vec<u8>| fs::write(folder.join(format!("{name}.1")), page).map_err(lost);
    for subcommand in command.get_subcommands().filter(|it| it.get_name() != "help") {
        write(&format!("macula-{}", subcommand.get_name()), page(subcommand.clone())?)?;
    }
    write("macula", page(command)?)
}

fn page(command: clap::Command) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut page);
    rendered.map_err(|error| Failure::other(format!("a manual page cannot be made: {error}")))?;
    Ok(page)
}
