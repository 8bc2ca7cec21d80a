//! The identity file that `macula id` and `macula node` share by default.

use std::{
    fs::{DirBuilder, File, TryLockError},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use macula_node::Identity;

use crate::failure::{Failure, error_line};

/// A key that this process uses, and no other while this is kept.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) identity: Identity,
    _lock: File,
}

/// The user's own folder, `~/.macula`; `None` without a home folder.
pub(crate) fn user_folder() -> Option<PathBuf> {
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    home.map(|home| home.join(".macula"))
}

/// The default identity file; its folder may not be there.
pub(crate) fn default_file() -> Option<PathBuf> {
    user_folder().map(|folder| folder.join("identity"))
}

/// Makes the folder of a file, for its owner only.
pub(crate) fn make_folder_of(file: &Path) -> Result<(), Failure> {
    let Some(folder) = file.parent() else { return Ok(()) };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Failure::other(format!("the folder {} could not be made: {error}", folder.display())))
}

/// Keeps others from the identity in `file` while the result is kept. `None` when that cannot be done.
pub(crate) fn hold(file: &Path) -> Option<File> {
    let lock = File::open(file).ok()?;
    lock.try_lock().is_ok().then_some(lock)
}

/// Takes the identity in `file`, which has to be there.
pub(crate) fn take_existing(file: &Path) -> Result<Taken, Failure> {
    Identity::load(file).map_err(|error| Failure::other(error_line(&error)))?;
    take(file)
}

/// Takes the identity in `file`, made if it is missing. Two nodes with one key would each be taken for the other.
pub(crate) fn take(file: &Path) -> Result<Taken, Failure> {
    let identity = Identity::load_or_generate(file).map_err(|error| Failure::other(error_line(&error)))?;
    let lock = File::open(file).map_err(|error| Failure::other(format!("{} was lost: {error}", file.display())))?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Failure::other(format!(
            "another node uses the identity {}: give this one its own with --identity FILE or --data DIR",
            file.display()
        ))),
        Err(TryLockError::Error(error)) => {
            tracing::debug!(%error, "the identity file cannot be locked");
            Ok(Taken { identity, _lock: lock })
        }
        Ok(()) => Ok(Taken { identity, _lock: lock }),
    }
}
