//! The state that a node keeps over a restart.
//!
//! A data folder holds the node's key (`identity`) and, in `directory.redb`, the records of others and the contacts of its
//! directory. The folder belongs to one process at a time. The mesh can replace everything in `directory.redb`: a damaged file is set
//! aside, and nothing that goes wrong with it later stops the node.

#[cfg(feature = "redb")]
mod folder;
#[cfg(feature = "redb")]
mod keeper;

use futures::future::BoxFuture;
use macula_dht::{Backend, BackendError, Change, Loaded, Memory};

#[cfg(feature = "redb")]
pub use self::folder::DataError;
#[cfg(feature = "redb")]
pub(crate) use self::{folder::Folder, keeper::Keeper};

/// Where the directory's core keeps things.
#[derive(Debug)]
pub(crate) enum Kept {
    /// Nowhere.
    Nowhere(Memory),
    /// In the data folder.
    #[cfg(feature = "redb")]
    Folder(Keeper),
}

impl Kept {
    pub(crate) const NOWHERE: Self = Self::Nowhere(Memory);

    /// Waits until every change is written or given up, and the files are closed. Call it before the core is dropped; the drop starts
    /// the closing.
    pub(crate) fn closed(&self) -> BoxFuture<'static, ()> {
        match self {
            Self::Nowhere(_) => Box::pin(std::future::ready(())),
            #[cfg(feature = "redb")]
            Self::Folder(keeper) => Box::pin(keeper.closed()),
        }
    }
}

impl Backend for Kept {
    fn load(&mut self) -> Result<Loaded, BackendError> {
        match self {
            Self::Nowhere(memory) => memory.load(),
            #[cfg(feature = "redb")]
            Self::Folder(keeper) => keeper.load(),
        }
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), BackendError> {
        match self {
            Self::Nowhere(memory) => memory.commit(changes),
            #[cfg(feature = "redb")]
            Self::Folder(keeper) => keeper.commit(changes),
        }
    }

    fn is_volatile(&self) -> bool {
        match self {
            Self::Nowhere(memory) => memory.is_volatile(),
            #[cfg(feature = "redb")]
            Self::Folder(_) => false,
        }
    }
}
