//! A small disk of its own for a node's data folder: a file system in memory.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::hosts::tool;

/// Room for a node's key, store and contacts.
const SIZE: &str = "size=8m,mode=0777";

/// A mounted disk. Dropping it unmounts it.
#[derive(Debug)]
pub(super) struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Mounts an empty disk at `at`.
    pub(super) fn new(at: &Path) -> Result<Self> {
        fs::create_dir_all(at).with_context(|| format!("cannot make {}", at.display()))?;
        let path = at.to_str().context("the folder's name is no text")?;
        tool(&["mount", "-t", "tmpfs", "-o", SIZE, "tmpfs", path])?;
        Ok(Self { at: at.to_path_buf() })
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Takes all the room that is left, and says whether the file system then refused a byte for want of it.
    pub(super) fn fill(&self) -> Result<bool> {
        let mut file = fs::File::create(self.ballast()).context("cannot fill a disk")?;
        let ended = std::io::copy(&mut std::io::repeat(0), &mut file);
        Ok(ended.is_err_and(|error| error.kind() == ErrorKind::StorageFull))
    }

    /// Gives it back.
    pub(super) fn free(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("cannot free a disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a node that is about to end may still hold a file open.
        let _ = tool(&["umount", "-l", &self.at.to_string_lossy()]);
    }
}
