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
        /// The system's error.
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
    /// `None` while the folder cannot be written.
    backend: Option<RedbBackend>,
}

impl Folder {
    /// Takes the folder, and makes it if there is none. Reads and writes files: not for an async thread.
    ///
    /// A folder that cannot be written costs a warning (Y17): the node goes on with the identity that it has there.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path);
        match made {
            Err(source) if !is_full(&source) => {
                return Err(DataError::Make {
                    path: path.to_owned(),
                    source,
                });
            }
            Ok(()) | Err(_) => {}
        }
        let backend = match open_directory(&path.join(DIRECTORY_FILE)) {
            Ok(backend) => Some(backend),
            Err(BackendError::InUse) => return Err(DataError::InUse { path: path.to_owned() }),
            Err(BackendError::Io(reason)) if is_full(&reason) || is_read_only(&reason) => {
                tracing::warn!(
                    folder = %path.display(), %reason,
                    "the data folder cannot be written; the node starts with what it can read there, and keeps nothing"
                );
                None
            }
            Err(source) => {
                return Err(DataError::Directory {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            backend,
        })
    }

    /// The key kept in the folder, a new one at first.
    pub(crate) fn identity(&self) -> Result<Identity, DataError> {
        let file = self.path.join(IDENTITY_FILE);
        match Identity::load_or_generate(&file) {
            Err(IdentityError::Write { source, .. }) if is_full(&source) => {
                tracing::warn!(
                    file = %file.display(), reason = %source,
                    "the disk is full: the node's new key cannot be kept, and the node is another one after its next start"
                );
                Ok(Identity::generate()?)
            }
            identity => Ok(identity?),
        }
    }

    /// Keeps the directory from now on; as soon as the folder can be written, when it cannot yet.
    pub(crate) fn keeper(self) -> Result<Keeper, DataError> {
        Keeper::start(self.path.join(DIRECTORY_FILE), self.backend).map_err(DataError::Thread)
    }
}

/// Whether the disk takes no more.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Whether the file may be read and not written.
fn is_read_only(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
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
