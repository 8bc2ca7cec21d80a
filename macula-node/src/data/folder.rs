//! The data folder: made if there is none, and taken by one process at a time.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use macula_dht::{BackendError, RedbBackend};
use macula_transport::{Identity, IdentityError};

use super::Keeper;

const DIRECTORY_FILE: &str = "directory.redb";
const IDENTITY_FILE: &str = "identity";
/// Of a folder that is made: it will hold a key.
const FOLDER_MODE: u32 = 0o700;

/// A data folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// It is not there and cannot be made, or is no folder.
    #[error("the data folder {} cannot be made: name a folder that is yours to write", path.display())]
    Make {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "the data folder {} is used by another process: give each node a folder of its own, or end the other one",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The directory's file in it cannot be used.
    #[error("the data folder {} cannot be used", path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: BackendError,
    },
    /// The node's key in it cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The thread that writes to it could not be started.
    #[error("the thread that writes to the data folder could not be started")]
    Thread(#[source] io::Error),
}

/// A data folder that this process has taken.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    backend: RedbBackend,
}

impl Folder {
    /// Takes the folder, and makes it if there is none. Reads and writes files: not for an async thread.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path);
        made.map_err(|source| DataError::Make {
            path: path.to_owned(),
            source,
        })?;
        let backend = open_directory(&path.join(DIRECTORY_FILE)).map_err(|error| match error {
            BackendError::InUse => DataError::InUse { path: path.to_owned() },
            source => DataError::Directory {
                path: path.to_owned(),
                source,
            },
        })?;
        Ok(Self {
            path: path.to_owned(),
            backend,
        })
    }

    /// The key kept in the folder, a new one at first.
    pub(crate) fn identity(&self) -> Result<Identity, DataError> {
        Ok(Identity::load_or_generate(&self.path.join(IDENTITY_FILE))?)
    }

    /// What keeps the directory from now on.
    pub(crate) fn keeper(self) -> Result<Keeper, DataError> {
        Keeper::start(self.path.join(DIRECTORY_FILE), self.backend).map_err(DataError::Thread)
    }
}

/// Opens the directory's file, and warns when a damaged one was set aside for a new one.
pub(super) fn open_directory(file: &Path) -> Result<RedbBackend, BackendError> {
    let opened = RedbBackend::open(file)?;
    if let Some(aside) = opened.set_aside {
        tracing::warn!(
            file = %file.display(),
            set_aside = %aside.display(),
            "the directory's file is damaged and was set aside; the node starts without what it had kept, and finds it in the mesh again"
        );
    }
    Ok(opened.backend)
}
