//! The file of a realm's key: mode 0600, and encrypted when it has a passphrase.
//!
//! Lines of a name and a value. The secret of an encrypted file is sealed with ChaCha20-Poly1305 (RFC 8439) under a key that
//! Argon2id (RFC 9106) makes of the passphrase, and bound to the realm that the file names. So a guess costs 64 MiB of memory.
//!
//! Beside the key, in a file with `.granted` at its end, stand the grants that were signed with it: see [`Granted`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::{
    ChaCha20Poly1305, Key, KeyInit as _, Nonce,
    aead::{Aead as _, Payload},
};
use macula_node::{Membership, Realm, RealmKey, RealmName, Revocations, SignedRevocations, private_file};
use zeroize::Zeroizing;

use super::{
    passphrase::{self, Passphrase},
    rights::now,
};
use crate::{
    failure::Failure,
    identity::{make_folder_of, user_folder},
};

const HEADER: &str = "macula realm key 1";
const MAX_FILE_BYTES: usize = 1024;
/// The most bytes of the list of grants, and of revocations.
const MAX_LIST_BYTES: usize = 16 * 1024 * 1024;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
/// Argon2id's cost: memory in KiB, passes, lanes. The second choice that RFC 9106 recommends.
const COST: (u32, u32, u32) = (64 * 1024, 3, 4);
/// The most memory that a file may ask for, in KiB, and the most passes: a file that was tampered with must not exhaust the machine.
const MAX_COST: (u32, u32, u32) = (1024 * 1024, 32, 64);

/// A realm's key file, read as far as it can be without a passphrase.
pub(super) struct KeyFile {
    pub(super) path: PathBuf,
    pub(super) realm: Realm,
    secret: Secret,
}

enum Secret {
    Plain(RealmKey),
    Sealed {
        cost: (u32, u32, u32),
        salt: [u8; SALT_BYTES],
        sealed: Vec<u8>,
    },
}

/// Where a realm's key is unless another file is named.
pub(super) fn default_for(name: &RealmName) -> Result<PathBuf, Failure> {
    Ok(folder()?.join(format!("{name}.key")))
}

fn folder() -> Result<PathBuf, Failure> {
    let folder = user_folder().map(|folder| folder.join("realms"));
    folder
        .ok_or_else(|| Failure::usage("there is no home folder to keep a realm's key in; name a file with --key FILE"))
}

/// The key file named, or the user's only one.
pub(super) fn find(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(file) = named {
        return Ok(file.to_owned());
    }
    let folder = folder()?;
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path());
    let mut keys: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|it| it == "key"))
        .collect();
    match (keys.pop(), keys.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Failure::usage(format!(
            "there are keys of several realms in {}: name one with --key FILE",
            folder.display()
        ))),
        (None, _) => Err(Failure::usage(
            "there is no realm's key here: make a realm with `macula realm new NAME`, or name its key with --key FILE",
        )),
    }
}

impl KeyFile {
    /// Makes a realm and its key file, where there is none.
    pub(super) fn make(path: &Path, name: &RealmName, passphrase: Option<&Passphrase>) -> Result<Realm, Failure> {
        make_folder_of(path)?;
        let key = RealmKey::from_bytes(&*random::<{ RealmKey::LEN }>()?);
        let realm = key.realm(name.clone());
        let secret = match passphrase {
            None => format!("secret {}", *hex(key.as_bytes())),
            Some(passphrase) => {
                let (salt, nonce) = (random::<SALT_BYTES>()?, random::<NONCE_BYTES>()?);
                let cipher = cipher(passphrase, &*salt, COST)?;
                let sealed = cipher.encrypt(&Nonce::from(*nonce), payload(key.as_bytes(), &realm.to_string()));
                let sealed = sealed.map_err(|_| Failure::other("the realm's key could not be encrypted"))?;
                let (m, t, p) = COST;
                format!(
                    "argon2id {m} {t} {p} {}\nsealed {}{}",
                    *hex(&*salt),
                    *hex(&*nonce),
                    *hex(&sealed)
                )
            }
        };
        let text = Zeroizing::new(format!("{HEADER}\nrealm {realm}\n{secret}\n"));
        private_file::write_new(path, text.as_bytes()).map_err(|error| {
            let path = path.display();
            Failure::other(match error.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    format!("there is a realm's key in {path} already: show it with `macula realm show`, or name another file with --key FILE")
                }
                _ => format!("the realm's key could not be written to {path}: {error}"),
            })
        })?;
        Ok(realm)
    }

    /// Reads a key file.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let text = private_file::read(path, MAX_FILE_BYTES).map_err(|error| {
            Failure::other(format!(
                "the realm's key {shown}: {}",
                crate::failure::error_line(&error)
            ))
        })?;
        let text = std::str::from_utf8(&text).unwrap_or_default();
        let (realm, secret) = parse(text)
            .ok_or_else(|| Failure::other(format!("{shown} is no realm's key, or it is damaged: use a copy of it")))?;
        Ok(Self {
            path: path.to_owned(),
            realm,
            secret,
        })
    }

    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self.secret, Secret::Sealed { .. })
    }

    /// The key itself; the passphrase is asked for when there is one.
    pub(super) fn unlock(&self) -> Result<RealmKey, Failure> {
        let key = match &self.secret {
            Secret::Plain(key) => key.clone(),
            Secret::Sealed { cost, salt, sealed } => {
                let passphrase = passphrase::ask()?;
                let (nonce, sealed) = sealed
                    .split_first_chunk::<NONCE_BYTES>()
                    .unwrap_or((&[0; NONCE_BYTES], &[]));
                let realm = self.realm.to_string();
                let opened = cipher(&passphrase, salt, *cost)?
                    .decrypt(&Nonce::from(*nonce), payload(sealed, &realm))
                    .map(Zeroizing::new);
                let secret = opened
                    .ok()
                    .and_then(|secret| secret[..].try_into().ok().map(Zeroizing::new));
                let secret =
                    secret.ok_or_else(|| Failure::other("the passphrase is wrong, or the file was changed"))?;
                RealmKey::from_bytes(&secret)
            }
        };
        if key.realm(self.realm.name().clone()) == self.realm {
            Ok(key)
        } else {
            Err(Failure::other(format!(
                "the key in {} is not that of {}",
                self.path.display(),
                self.realm
            )))
        }
    }
}

fn parse(text: &str) -> Option<(Realm, Secret)> {
    let mut lines = text.lines();
    (lines.next()? == HEADER).then_some(())?;
    let realm: Realm = lines.next()?.strip_prefix("realm ")?.parse().ok()?;
    let line = lines.next()?;
    if let Some(secret) = line.strip_prefix("secret ") {
        let secret: [u8; RealmKey::LEN] = unhex(secret)?[..].try_into().ok()?;
        return Some((realm, Secret::Plain(RealmKey::from_bytes(&secret))));
    }
    let mut words = line.strip_prefix("argon2id ")?.split(' ');
    let mut number = || words.next()?.parse::<u32>().ok();
    let cost = (number()?, number()?, number()?);
    let salt = unhex(words.next()?)?[..].try_into().ok()?;
    let sealed = unhex(lines.next()?.strip_prefix("sealed ")?)?.to_vec();
    let affordable = cost.0 <= MAX_COST.0 && cost.1 <= MAX_COST.1 && cost.2 <= MAX_COST.2;
    affordable.then_some((realm, Secret::Sealed { cost, salt, sealed }))
}

fn cipher(passphrase: &Passphrase, salt: &[u8], (m, t, p): (u32, u32, u32)) -> Result<ChaCha20Poly1305, Failure> {
    let unusable = |error: argon2::Error| Failure::other(format!("the passphrase cannot be used: {error}"));
    let params = Params::new(m, t, p, Some(32)).map_err(unusable)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut *key)
        .map_err(unusable)?;
    Ok(ChaCha20Poly1305::new(&Key::from(*key)))
}

/// The secret, bound to the realm that the file names.
fn payload<'a>(msg: &'a [u8], realm: &'a str) -> Payload<'a, 'a> {
    Payload {
        msg,
        aad: realm.as_bytes(),
    }
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, Failure> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes)
        .map_err(|error| Failure::other(format!("the system gives no random numbers: {error}")))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn unhex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digits = text.as_bytes();
    digits.len().is_multiple_of(2).then_some(())?;
    let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let byte = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
    digits
        .chunks_exact(2)
        .map(byte)
        .collect::<Option<Vec<_>>>()
        .map(Zeroizing::new)
}

/// What was signed with a realm's key here: the grants, and the revocations. It is a memory and no authority.
pub(super) struct Granted(PathBuf);

impl Granted {
    pub(super) fn beside(key: &Path) -> Self {
        let mut name = key.as_os_str().to_owned();
        name.push(".granted");
        Self(name.into())
    }

    fn lines(&self) -> Result<Vec<String>, Failure> {
        let unread = |error: &dyn std::error::Error| {
            Failure::other(format!(
                "{} cannot be read: {}",
                self.0.display(),
                crate::failure::error_line(error)
            ))
        };
        match private_file::read(&self.0, MAX_LIST_BYTES) {
            Err(private_file::ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(unread(&error)),
            Ok(bytes) => {
                let text = std::str::from_utf8(&bytes).map_err(|error| unread(&error))?;
                Ok(text.lines().map(str::to_owned).collect())
            }
        }
    }

    fn add(&self, line: String) -> Result<(), Failure> {
        let mut lines = self.lines()?;
        lines.push(line);
        let text = lines.join("\n") + "\n";
        private_file::write(&self.0, text.as_bytes())
            .map_err(|error| Failure::other(format!("{} could not be written: {error}", self.0.display())))
    }

    pub(super) fn grants(&self) -> Result<Vec<Membership>, Failure> {
        Ok(self.lines()?.iter().filter_map(|line| line.parse().ok()).collect())
    }

    pub(super) fn add_grant(&self, membership: &Membership) -> Result<(), Failure> {
        self.add(membership.to_string())
    }

    pub(super) fn revocations(&self) -> Result<Vec<SignedRevocations>, Failure> {
        let read = |line: &String| {
            let bytes = unhex(line.strip_prefix("revoked ")?)?;
            SignedRevocations::decode(bytes.to_vec().into()).ok()
        };
        Ok(self.lines()?.iter().filter_map(read).collect())
    }

    /// The revocations in force.
    pub(super) fn known(&self, realm: &Realm) -> Result<Revocations, Failure> {
        let mut known = Revocations::new(realm.clone());
        for list in self.revocations()? {
            let merged = known.merge(&list, now());
            merged.map_err(|error| Failure::other(crate::failure::error_line(&error)))?;
        }
        Ok(known)
    }

    pub(super) fn add_revocation(&self, list: &SignedRevocations) -> Result<(), Failure> {
        self.add(format!("revoked {}", *hex(&list.encode())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phrase(text: &str) -> Passphrase {
        Zeroizing::new(text.to_owned())
    }

    fn opened(path: &Path, passphrase: &str) -> bool {
        let file = KeyFile::read(path).unwrap();
        let Secret::Sealed { cost, salt, sealed } = &file.secret else {
            panic!("it is not encrypted")
        };
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().unwrap();
        let cipher = cipher(&phrase(passphrase), salt, *cost).unwrap();
        cipher
            .decrypt(&Nonce::from(*nonce), payload(sealed, &file.realm.to_string()))
            .is_ok()
    }

    #[test]
    fn a1_a_realms_key_is_its_owners_alone_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let (path, name) = (folder.path().join("realms/shop.key"), RealmName::new("shop").unwrap());
        let realm = KeyFile::make(&path, &name, None).unwrap();
        let file = KeyFile::read(&path).unwrap();
        assert_eq!((&file.realm, file.is_encrypted()), (&realm, false));
        assert_eq!(file.unlock().unwrap().realm(name.clone()), realm);
        assert!(KeyFile::make(&path, &name, None).is_err());
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(KeyFile::read(&path).is_err());
    }

    #[test]
    fn a1_a_key_with_a_passphrase_opens_with_that_alone_and_for_its_realm_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, name) = (folder.path().join("shop.key"), RealmName::new("shop").unwrap());
        KeyFile::make(&path, &name, Some(&phrase("correct horse"))).unwrap();
        assert!(KeyFile::read(&path).unwrap().is_encrypted());
        assert!(opened(&path, "correct horse") && !opened(&path, "battery staple"));
        let text = fs::read_to_string(&path).unwrap();
        private_file::write(&path, text.replace("realm shop@", "realm mall@").as_bytes()).unwrap();
        assert!(!opened(&path, "correct horse"), "the file names another realm");
        private_file::write(&path, text.replace("argon2id 65536", "argon2id 4000000000").as_bytes()).unwrap();
        assert!(KeyFile::read(&path).is_err(), "it asks for too much memory");
    }
}
