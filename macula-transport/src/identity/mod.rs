//! A node's identity: its Ed25519 key, kept in a file that only its owner reads.
//!
//! **Invariants:** a key file is complete or absent, never half written: it is written beside its place, flushed, and put there in
//! one step. Processes that start together on one file end with one identity: the second takes the file that the first put there.
//! What is left out: the key's use in TLS is in `tls`, its use on records in `macula-wire`.

pub mod private_file;
pub(crate) mod successor;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use macula_wire::{NodeId, SecretKey, Signer};
use zeroize::Zeroizing;

/// How much of a key file is read, in bytes.
const MAX_FILE_BYTES: usize = 128;

/// A node's identity: its secret key, of which the [`NodeId`] is the public half. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    key: Arc<SecretKey>,
}

/// An identity could not be loaded, stored or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("cannot read the identity file {}: check that it exists and belongs to you", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner may read the file.
    #[error("the identity file {} can be read by others (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold a key.
    #[error("{} is not an identity file: it holds 64 hexadecimal digits; move it away and a new one is made", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write the identity file {}: check that its folder exists and is yours to write", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no randomness to give.
    #[error("the system gave no randomness for a new key")]
    Randomness(#[source] getrandom::Error),
}

impl IdentityError {
    fn unread(path: &Path, error: private_file::ReadError) -> Self {
        let path = path.to_owned();
        match error {
            private_file::ReadError::Io(source) => Self::Read { path, source },
            private_file::ReadError::Exposed(mode) => Self::Exposed { path, mode },
            private_file::ReadError::NoFile => Self::Malformed { path },
        }
    }
}

impl Identity {
    /// A new identity, from the system's randomness.
    ///
    /// # Errors
    /// [`IdentityError::Randomness`] when the system gives none.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut secret = Zeroizing::new([0; SecretKey::LEN]);
        getrandom::fill(&mut *secret).map_err(IdentityError::Randomness)?;
        Ok(Self::from_secret(SecretKey::from_bytes(&secret)))
    }

    /// The identity of this secret key.
    #[must_use]
    pub fn from_secret(key: SecretKey) -> Self {
        Self { key: Arc::new(key) }
    }

    /// The identity stored in a file.
    ///
    /// # Errors
    /// When the file cannot be read, does not hold a key, or can be read by anyone but its owner.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let text = private_file::read(path, MAX_FILE_BYTES).map_err(|error| IdentityError::unread(path, error))?;
        let secret =
            parse_secret(text.trim_ascii_end()).ok_or_else(|| IdentityError::Malformed { path: path.to_owned() })?;
        Ok(Self::from_secret(SecretKey::from_bytes(&secret)))
    }

    /// The identity stored in a file, or a new one stored there when the file does not exist.
    ///
    /// Processes that do this at once all get the same identity, where the file system has hard links.
    ///
    /// # Errors
    /// As [`Identity::load`], [`Identity::generate`] and [`Identity::store`].
    pub fn load_or_generate(path: &Path) -> Result<Self, IdentityError> {
        match Self::load(path) {
            Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let identity = Self::generate()?;
                match identity.put(path, private_file::write_new) {
                    Err(IdentityError::Write { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                        Self::load(path)
                    }
                    put => put.map(|()| identity),
                }
            }
            loaded => loaded,
        }
    }

    /// Writes the identity to a file of mode 0600, replacing one that is there.
    ///
    /// # Errors
    /// [`IdentityError::Write`] when the file cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), IdentityError> {
        self.put(path, private_file::write)
    }

    fn put(&self, path: &Path, write: fn(&Path, &[u8]) -> io::Result<()>) -> Result<(), IdentityError> {
        let mut text = Zeroizing::new(String::with_capacity(2 * SecretKey::LEN + 1));
        for byte in self.key.as_bytes() {
            text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        text.push('\n');
        write(path, text.as_bytes()).map_err(|source| IdentityError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// The public half, by which others know the node.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.key.node_id()
    }

    /// The secret half, for signing records.
    #[must_use]
    pub fn secret(&self) -> &SecretKey {
        &self.key
    }
}

impl Signer for Identity {
    fn node_id(&self) -> NodeId {
        self.key.node_id()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.node_id().short())
    }
}

fn parse_secret(digits: &[u8]) -> Option<Zeroizing<[u8; SecretKey::LEN]>> {
    if digits.len() != 2 * SecretKey::LEN {
        return None;
    }
    let mut secret = Zeroizing::new([0; SecretKey::LEN]);
    for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_stored_identity_is_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let made = Identity::load_or_generate(&path).unwrap();
        assert_eq!(Identity::load_or_generate(&path).unwrap().node_id(), made.node_id());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn processes_that_make_a_key_file_at_once_get_the_same_identity() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let path = dir.path().join(format!("{round}.key"));
            let start = std::sync::Barrier::new(8);
            let ids: std::collections::BTreeSet<NodeId> = std::thread::scope(|scope| {
                let made = || {
                    start.wait();
                    Identity::load_or_generate(&path).unwrap().node_id()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(made)).collect();
                threads.into_iter().map(|it| it.join().unwrap()).collect()
            });
            assert_eq!(ids, [Identity::load(&path).unwrap().node_id()].into());
        }
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            50,
            "no temporary file is left"
        );
    }

    #[test]
    fn a_new_identity_never_takes_a_files_place_and_a_stored_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let (first, second) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        first.put(&path, private_file::write_new).unwrap();
        assert!(matches!(
            second.put(&path, private_file::write_new),
            Err(IdentityError::Write { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists
        ));
        assert_eq!(Identity::load(&path).unwrap().node_id(), first.node_id());
        second.store(&path).unwrap();
        assert_eq!(Identity::load(&path).unwrap().node_id(), second.node_id());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        Identity::generate().unwrap().store(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o660, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Identity::load_or_generate(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Exposed { mode: m, .. } if m == mode));
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn a_file_that_holds_no_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        for text in ["", "hello", &"g".repeat(64), &"a".repeat(66), &"a".repeat(1000)] {
            private_file::write(&path, text.as_bytes()).unwrap();
            assert!(matches!(
                Identity::load_or_generate(&path),
                Err(IdentityError::Malformed { .. })
            ));
            assert_eq!(fs::read_to_string(&path).unwrap(), *text);
        }
        private_file::write(&path, &[0xff; 32]).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Malformed { .. })));
        let missing = dir.path().join("no such folder").join("node.key");
        assert!(matches!(
            Identity::load_or_generate(&missing),
            Err(IdentityError::Write { .. })
        ));
    }
}
