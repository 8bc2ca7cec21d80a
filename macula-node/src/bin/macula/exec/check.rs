//! Whether a command can be run at all, found out at the node's start.

use std::process::{Command, Stdio};

use super::Environment;

/// A command that can never run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("there is no program `{0}` on this machine; write its whole path, or install it")]
    NoSuchProgram(String),
    #[error("the shell cannot read it: {0}")]
    Syntax(String),
    #[error("/bin/sh cannot be started: {0}")]
    NoShell(String),
}

/// Has the shell read the command without running it, and find its first program.
pub(crate) fn check(command: &str, environment: &Environment) -> Result<(), Unusable> {
    let read = shell(environment, &["-n", "-c", command])?;
    if !read.status.success() {
        let said = String::from_utf8_lossy(&read.stderr);
        return Err(Unusable::Syntax(said.lines().next().unwrap_or_default().to_owned()));
    }
    let Some(program) = first_program(command) else {
        return Ok(());
    };
    let found = shell(environment, &["-c", "command -v -- \"$1\"", "sh", program])?;
    match found.status.success() {
        true => Ok(()),
        false => Err(Unusable::NoSuchProgram(program.to_owned())),
    }
}

fn shell(environment: &Environment, args: &[&str]) -> Result<std::process::Output, Unusable> {
    let mut shell = Command::new("/bin/sh");
    let shell = shell.args(args).env_clear().envs(&environment.0).stdin(Stdio::null());
    shell.output().map_err(|error| Unusable::NoShell(error.to_string()))
}

/// The word that names the first program, when that is plain to see: no quotes, variables or brackets.
fn first_program(command: &str) -> Option<&str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._/+-".contains(c);
    let is_assignment = |word: &str| word.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    let mut words = command.split_whitespace();
    let word = words.find(|word| !is_assignment(word) && *word != "exec")?;
    let word = word.trim_end_matches(';');
    (!word.is_empty() && word.chars().all(is_plain)).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn z10_a_program_that_is_not_there_is_found_out() {
        let environment = Environment::new(&[]);
        let check = |command: &str| check(command, &environment);
        for good in [
            "cat",
            "exec cat",
            "A=1 cat",
            "tr a-z A-Z",
            "cat | tr a b",
            "(cat)",
            "\"cat\"",
            "exit 1",
            "if true; then cat; fi",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let missing = |name: &str| Err(Unusable::NoSuchProgram(name.into()));
        assert_eq!(check("nosuchprog -x"), missing("nosuchprog"));
        assert_eq!(check("A=1 exec /no/such/prog"), missing("/no/such/prog"));
        assert!(matches!(check("if then"), Err(Unusable::Syntax(_))));
    }
}
