//! Files that hold secrets or decide about access: read only when they are their owner's alone, and never half written.
//!
//! **Invariant:** a file is complete or absent. It is written beside its place with mode 0600, flushed, and put there in one step.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use zeroize::{Zeroize as _, Zeroizing};

/// A file cannot be read as a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// Others than its owner may read it: its permission bits.
    #[error("it can be read by others (mode {0:03o}): run `chmod 600` on it")]
    Exposed(u32),
    /// It is a folder or a device.
    #[error("it is no file")]
    NoFile,
}

/// The first `most` bytes of a file that its owner alone may read. They are wiped when dropped.
///
/// # Errors
/// When it is not there, not a file, or not private.
pub fn read(path: &Path, most: usize) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NoFile);
    }
    check_private(&metadata)?;
    // A wrong path may name something endless. With room for all, nothing is copied as it grows.
    let length = usize::try_from(metadata.len()).unwrap_or(most).min(most);
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * length + 1));
    io::Read::read_to_end(&mut io::Read::take(file, most as u64), &mut bytes)?;
    Ok(bytes)
}

/// Writes a file of mode 0600, replacing one that is there.
///
/// # Errors
/// When its folder is missing or cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, AtPath::Any)
}

/// As [`write()`], where no file is yet.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when there is a file.
pub fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, AtPath::Free)
}

/// What may be at a file's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtPath {
    /// Nothing, else the write fails as [`io::ErrorKind::AlreadyExists`].
    Free,
    /// A file that is there is replaced.
    Any,
}

/// Whether a file of this name is one that [`write()`] has not finished: a leftover, when the process that wrote it is gone.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    let suffix = name.strip_suffix(".tmp").and_then(|name| name.rsplit_once('.'));
    suffix.is_some_and(|(_, suffix)| suffix.len() == 16 && suffix.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn put(path: &Path, bytes: &[u8], place: AtPath) -> io::Result<()> {
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(io::Error::other)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{:016x}.tmp", u64::from_le_bytes(suffix)));
    suffix.zeroize();
    let temporary = path.with_file_name(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let put = written.and_then(|()| match place {
        // A link, unlike a rename, fails where something is.
        AtPath::Free => match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => fs::rename(&temporary, path),
            linked => linked,
        },
        AtPath::Any => fs::rename(&temporary, path),
    });
    // Nothing is left after a rename, and a leftover has a name of its own and does no harm: the first error is the one to report.
    let _ = fs::remove_file(&temporary);
    put
}

#[cfg(unix)]
fn check_private(metadata: &fs::Metadata) -> Result<(), ReadError> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(ReadError::Exposed(mode))
    }
}

#[cfg(not(unix))]
fn check_private(_: &fs::Metadata) -> Result<(), ReadError> {
    Ok(())
}
