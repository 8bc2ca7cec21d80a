//! What an issuer keeps in its data folder: tokens, members, and where it listens.
//!
//! | file | what it is |
//! |---|---|
//! | `tokens/ID` | a token without its secret, and how often it may still be used |
//! | `members/NODEID` | a member's last grant |
//! | `issuer` | the addresses that the issuer's tokens name, one a line |
//!
//! **Invariants:** every file is complete or absent, and on disk before anything follows from it: no crash gives a token one use more
//! than it had. The issuer alone changes files; the command line adds tokens and removes them. Both may do so at once.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use macula_transport::private_file;
use macula_wire::{
    Address, Chain, Issuer, JoinRefusal, JoinToken, KeptMember, KeptToken, MalformedMessage, NodeId, Realm, Terms,
    TokenId, TokenSecret,
};

/// The most tokens that an issuer keeps.
pub const MAX_TOKENS: usize = 1024;
/// The most members that an issuer keeps. It renews the grants of others as well, but does not list them.
pub const MAX_MEMBERS: usize = 65_536;
/// The most bytes of a file here.
const MAX_FILE_BYTES: usize = 16 * 1024;

/// How long the command line may take to write a token.
const UNFINISHED_FOR: Duration = Duration::from_secs(60);

const TOKENS: &str = "tokens";
const MEMBERS: &str = "members";
const ADDRESSES: &str = "issuer";

/// An issuer's files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: private_file::ReadError,
    },
    /// A file cannot be written.
    #[error("{} cannot be written: check that its folder is yours", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is damaged.
    #[error("{} is damaged: remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// There are [`MAX_TOKENS`] tokens that have not ended.
    #[error("the issuer has {MAX_TOKENS} tokens that have not ended: remove some of them")]
    TooManyTokens,
    /// The system has no randomness to give.
    #[error("the operating system gives no random numbers")]
    Randomness(#[source] getrandom::Error),
}

/// The data folder of an issuer.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use macula_node::IssuerFolder;
///
/// let folder = IssuerFolder::new("/var/lib/macula");
/// for (node_id, member) in folder.members()? {
///     println!("{node_id} since {}", member.since);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct IssuerFolder(PathBuf);

impl IssuerFolder {
    /// The issuer whose data folder this is.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self(data.into())
    }

    /// Removes what a write left that the end of a process cut off, before the issuer writes anything. The command line may write a
    /// token at the same time: what it has begun in the last minute stays.
    pub(crate) fn tidy(&self) {
        let folders = [self.0.clone(), self.0.join(TOKENS), self.0.join(MEMBERS)];
        let entries = folders
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .flatten();
        let is_left = |entry: &fs::DirEntry| {
            let is_temporary = entry.file_name().to_str().is_some_and(private_file::is_temporary);
            let is_old = || {
                let written = entry.metadata().and_then(|metadata| metadata.modified()).ok();
                written
                    .and_then(|then| then.elapsed().ok())
                    .is_some_and(|age| age >= UNFINISHED_FOR)
            };
            is_temporary && (!entry.path().starts_with(self.0.join(TOKENS)) || is_old())
        };
        for entry in entries.filter(is_left) {
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::debug!(file = %entry.path().display(), %error, "what a write left cannot be removed");
            }
        }
    }

    /// Makes a token that lets `uses` nodes in until `not_after`, in seconds since the Unix epoch. Its secret is kept nowhere.
    ///
    /// # Errors
    /// When there are too many tokens, or the folder cannot be written.
    pub fn create_token(
        &self,
        realm: &Realm,
        issuer: Issuer,
        terms: Terms,
        uses: u32,
        now: u64,
        not_after: u64,
    ) -> Result<JoinToken, FolderError> {
        let tokens = self.tokens()?;
        for (id, _) in tokens.iter().filter(|(_, token)| token.not_after <= now) {
            self.cancel_token(id)?;
        }
        if tokens.iter().filter(|(_, token)| token.not_after > now).count() >= MAX_TOKENS {
            return Err(FolderError::TooManyTokens);
        }
        let (mut id, mut secret) = ([0; TokenId::LEN], [0; TokenSecret::LEN]);
        getrandom::fill(&mut id).map_err(FolderError::Randomness)?;
        getrandom::fill(&mut secret).map_err(FolderError::Randomness)?;
        let token = JoinToken {
            realm: realm.clone(),
            issuer,
            id: TokenId::from_bytes(id),
            secret: TokenSecret::from_bytes(&secret),
            not_after,
        };
        let kept = KeptToken {
            secret_hash: token.secret.hash(),
            made_at: now,
            not_after,
            uses_left: uses,
            terms,
        };
        self.write(TOKENS, &token.id, &kept.encode())?;
        Ok(token)
    }

    /// Removes a token; one that is not there is no error.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn cancel_token(&self, id: &TokenId) -> Result<(), FolderError> {
        let path = self.path(TOKENS, id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FolderError::Write { path, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The tokens, ended ones among them.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn tokens(&self) -> Result<Vec<(TokenId, KeptToken)>, FolderError> {
        self.all(TOKENS, |text| TokenId::from_str(text).ok(), KeptToken::decode)
    }

    /// The members that this issuer has let in or renewed.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn members(&self) -> Result<Vec<(NodeId, KeptMember)>, FolderError> {
        self.all(MEMBERS, |text| text.parse().ok(), KeptMember::decode)
    }

    /// Where the issuer listens, as it said last; nothing before its first start.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn addresses(&self) -> Result<Vec<Address>, FolderError> {
        let path = self.0.join(ADDRESSES);
        let Some(text) = read(&path)? else {
            return Ok(Vec::new());
        };
        let text = std::str::from_utf8(&text).map_err(|_| FolderError::Damaged { path: path.clone() })?;
        let lines = text.lines().map(str::parse).collect::<Result<_, _>>();
        lines.map_err(|_| FolderError::Damaged { path })
    }

    /// Keeps where the issuer listens.
    pub(super) fn set_addresses(&self, addresses: &[Address]) -> Result<(), FolderError> {
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        let path = self.0.join(ADDRESSES);
        private_file::write(&path, text.as_bytes()).map_err(|source| FolderError::Write { path, source })
    }

    /// A token by its id and secret; the refusal for all others. Nothing is used up yet.
    pub(super) fn token(&self, id: &TokenId, secret: &TokenSecret, now: u64) -> Result<KeptToken, Unusable> {
        let path = self.path(TOKENS, id);
        let bytes = read(&path)?.ok_or(JoinRefusal::UnknownToken)?;
        let token = KeptToken::decode(bytes.into()).map_err(|_| FolderError::Damaged { path })?;
        if secret.hash() != token.secret_hash {
            return Err(JoinRefusal::UnknownToken.into());
        }
        if token.not_after <= now {
            return Err(JoinRefusal::TokenEnded.into());
        }
        Ok(token)
    }

    /// Takes one use of a token.
    pub(super) fn use_up(&self, id: &TokenId, token: &KeptToken) -> Result<(), Unusable> {
        let uses_left = token.uses_left.checked_sub(1).ok_or(JoinRefusal::TokenUsedUp)?;
        let left = KeptToken {
            uses_left,
            ..token.clone()
        };
        Ok(self.write(TOKENS, id, &left.encode())?)
    }

    /// A member, if it is known here.
    pub(super) fn member(&self, node_id: &NodeId) -> Result<Option<KeptMember>, FolderError> {
        let path = self.path(MEMBERS, node_id);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let member = KeptMember::decode(bytes.into()).map_err(|_| FolderError::Damaged { path })?;
        Ok(Some(member))
    }

    /// Keeps a member's new grant.
    pub(super) fn keep_member(
        &self,
        node_id: &NodeId,
        known: Option<&KeptMember>,
        token: Option<TokenId>,
        chain: &Chain,
        now: u64,
    ) -> Result<(), FolderError> {
        if known.is_none() && self.count(MEMBERS)? >= MAX_MEMBERS {
            tracing::warn!(node = %node_id, "a member is not listed: the issuer keeps {MAX_MEMBERS}; remove some of them below {MEMBERS}/");
            return Ok(());
        }
        let member = KeptMember {
            token: token.or_else(|| known?.token),
            since: known.map_or(now, |known| known.since),
            chain: chain.clone(),
        };
        self.write(MEMBERS, node_id, &member.encode())
    }

    fn path(&self, kind: &str, name: &impl ToString) -> PathBuf {
        self.0.join(kind).join(name.to_string())
    }

    fn write(&self, kind: &str, name: &impl ToString, bytes: &[u8]) -> Result<(), FolderError> {
        let path = self.path(kind, name);
        let folder = self.0.join(kind);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.and_then(|()| private_file::write(&path, bytes))
            .map_err(|source| FolderError::Write { path, source })
    }

    /// How many files of a kind there are.
    fn count(&self, kind: &str) -> Result<usize, FolderError> {
        let path = self.0.join(kind);
        match fs::read_dir(&path) {
            Ok(entries) => Ok(entries.count()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(FolderError::Read {
                path,
                source: source.into(),
            }),
        }
    }

    fn all<K: Ord, V>(
        &self,
        kind: &str,
        key: impl Fn(&str) -> Option<K>,
        decode: impl Fn(bytes::Bytes) -> Result<V, MalformedMessage>,
    ) -> Result<Vec<(K, V)>, FolderError> {
        let folder = self.0.join(kind);
        let unread = |source: io::Error| FolderError::Read {
            path: folder.clone(),
            source: source.into(),
        };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(unread)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unread)?;
            // A file that is being written has another name.
            let Some(key) = entry.file_name().to_str().and_then(&key) else {
                continue;
            };
            let path = entry.path();
            let Some(bytes) = read(&path)? else { continue };
            let value = decode(bytes.into()).map_err(|_| FolderError::Damaged { path })?;
            all.push((key, value));
        }
        all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }
}

/// A token cannot be used, or the folder cannot.
#[derive(Debug)]
pub(super) enum Unusable {
    Refused(JoinRefusal),
    Folder(FolderError),
}

impl From<JoinRefusal> for Unusable {
    fn from(refusal: JoinRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<FolderError> for Unusable {
    fn from(error: FolderError) -> Self {
        Self::Folder(error)
    }
}

/// The content of a file; `None` when there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, FolderError> {
    match private_file::read(path, MAX_FILE_BYTES) {
        Ok(bytes) => Ok(Some(bytes.to_vec())),
        Err(private_file::ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FolderError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The process was killed while it wrote.
    #[test]
    fn a7_what_a_cut_off_write_left_is_removed_at_the_next_start() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        for kind in [MEMBERS, TOKENS] {
            fs::create_dir(folder.path().join(kind))?;
        }
        let id = "ab".repeat(32);
        let left = [
            format!("{MEMBERS}/{id}.00000000000000ff.tmp"),
            "identity.grant.0123456789abcdef.tmp".to_owned(),
        ];
        let stays = [
            format!("{MEMBERS}/{id}"),
            format!("{TOKENS}/0123456789abcdef.00000000000000ff.tmp"),
            "notes.tmp".to_owned(),
            "identity".to_owned(),
        ];
        for file in left.iter().chain(&stays) {
            fs::write(folder.path().join(file), "half")?;
        }
        IssuerFolder::new(folder.path()).tidy();
        assert!(left.iter().all(|file| !folder.path().join(file).exists()));
        assert!(
            stays.iter().all(|file| folder.path().join(file).exists()),
            "a token may be written just now"
        );
        let token = fs::File::options().write(true).open(folder.path().join(&stays[1]))?;
        token.set_modified(std::time::SystemTime::now() - 2 * UNFINISHED_FOR)?;
        IssuerFolder::new(folder.path()).tidy();
        assert!(!folder.path().join(&stays[1]).exists());
        Ok(())
    }
}
