//! The passphrase of a realm's key: from the environment, or typed at a terminal without being shown.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::failure::Failure;

/// Holds the passphrase where no terminal is.
const VARIABLE: &str = "MACULA_PASSPHRASE";

pub(super) type Passphrase = Zeroizing<String>;

/// A new passphrase, typed twice.
pub(super) fn choose() -> Result<Passphrase, Failure> {
    if let Some(passphrase) = from_environment() {
        return checked(passphrase);
    }
    let first = checked(typed("passphrase for the realm's key: ")?)?;
    if *first == *typed("the same again: ")? {
        Ok(first)
    } else {
        Err(Failure::usage("the two passphrases differ: try again"))
    }
}

/// The passphrase of a key that has one.
pub(super) fn ask() -> Result<Passphrase, Failure> {
    match from_environment() {
        Some(passphrase) => Ok(passphrase),
        None => typed("passphrase of the realm's key: "),
    }
}

fn from_environment() -> Option<Passphrase> {
    let value = std::env::var(VARIABLE).ok().filter(|value| !value.is_empty());
    value.map(Zeroizing::new)
}

fn checked(passphrase: Passphrase) -> Result<Passphrase, Failure> {
    if passphrase.is_empty() {
        return Err(Failure::usage(
            "an empty passphrase protects nothing: leave --passphrase out, or type one",
        ));
    }
    Ok(passphrase)
}

fn typed(prompt: &str) -> Result<Passphrase, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(format!(
            "the realm's key has a passphrase: type it at a terminal, or set {VARIABLE}"
        )));
    }
    let unread = |error: io::Error| Failure::other(format!("the passphrase could not be read: {error}"));
    let before = tcgetattr(&stdin).map_err(|error| unread(error.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{prompt}");
    tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|error| unread(error.into()))?;
    let mut line = Zeroizing::new(String::new());
    let read = stdin.lock().read_line(&mut line);
    let restored = tcsetattr(&stdin, OptionalActions::Flush, &before);
    let _ = writeln!(stderr);
    read.map_err(unread)?;
    restored.map_err(|error| unread(error.into()))?;
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}
