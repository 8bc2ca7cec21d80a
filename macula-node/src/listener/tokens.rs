//! The tokens that open a port.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

#[cfg(feature = "ops")]
use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest as _, Sha256};
use tonic::codegen::http::{HeaderMap, header};

/// The shortest token, in bytes. A short one can be guessed.
pub const MIN_TOKEN_BYTES: usize = 16;
/// The most tokens.
const MAX_TOKENS: usize = 4_096;

/// The tokens of a port are not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokensError {
    /// The file of tokens cannot be read.
    #[error("the file of tokens {} cannot be read", .0.display())]
    Unread(PathBuf, #[source] io::Error),
    /// A token is too short.
    #[error("a token has less than {MIN_TOKEN_BYTES} characters; make one with `openssl rand -hex 32`")]
    Short,
    /// There is no token, or there are too many.
    #[error("{0} tokens; 1 to {MAX_TOKENS} can be used")]
    Count(usize),
}

/// The tokens that open a port. They are kept as hashes.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens(BTreeSet<[u8; 32]>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// These tokens.
    ///
    /// # Errors
    /// When there is none, one is shorter than [`MIN_TOKEN_BYTES`], or there are more than 4 096.
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Result<Self, TokensError> {
        let mut hashes = BTreeSet::new();
        for token in tokens {
            if token.len() < MIN_TOKEN_BYTES {
                return Err(TokensError::Short);
            }
            hashes.insert(hash(token));
        }
        match hashes.len() {
            1..=MAX_TOKENS => Ok(Self(hashes)),
            count => Err(TokensError::Count(count)),
        }
    }

    /// The tokens of a file: one a line; empty lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    /// When the file cannot be read, and as [`Tokens::new`].
    pub fn read(path: &Path) -> Result<Self, TokensError> {
        let text = fs::read_to_string(path).map_err(|error| TokensError::Unread(path.into(), error))?;
        let lines = text.lines().map(str::trim);
        Self::new(lines.filter(|line| !line.is_empty() && !line.starts_with('#')))
    }

    /// Whether the request brings one of the tokens, as `Bearer`.
    ///
    /// Hashes are compared, so the time that it takes tells nothing about a token.
    #[cfg(feature = "ingress")]
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        brought(headers, "bearer").is_some_and(|token| self.0.contains(&hash(token)))
    }

    /// As [`Tokens::admit`], and for a browser, which asks a person: a token is the password of any user (`Basic`).
    #[cfg(feature = "ops")]
    pub(crate) fn admit_person(&self, headers: &HeaderMap) -> bool {
        let password = || {
            let pair = BASE64_STANDARD.decode(brought(headers, "basic")?).ok()?;
            let pair = String::from_utf8(pair).ok()?;
            pair.split_once(':').map(|(_, password)| hash(password))
        };
        let bearer = brought(headers, "bearer").map(hash);
        [bearer, password()]
            .into_iter()
            .flatten()
            .any(|hash| self.0.contains(&hash))
    }
}

/// The credentials of this scheme.
fn brought<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let brought = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (said, credentials) = brought.split_once(' ')?;
    said.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(all(feature = "ingress", feature = "ops"))]
#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123";

    fn bringing(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_browser_brings_a_token_as_the_password_of_any_user() {
        let tokens = Tokens::new([TOKEN]).unwrap();
        let basic = |pair: &str| bringing(&format!("Basic {}", BASE64_STANDARD.encode(pair)));
        assert!(tokens.admit_person(&bringing(&format!("Bearer {TOKEN}"))));
        assert!(tokens.admit_person(&basic(&format!("ann:{TOKEN}"))));
        assert!(tokens.admit_person(&basic(&format!(":{TOKEN}"))));
        for wrong in [TOKEN, &format!("{TOKEN}:"), "ann:", &format!("ann:{}", &TOKEN[1..])] {
            assert!(!tokens.admit_person(&basic(wrong)), "{wrong}");
        }
        assert!(
            !tokens.admit(&basic(&format!("ann:{TOKEN}"))),
            "the ingress is for programs"
        );
        assert!(!tokens.admit_person(&HeaderMap::new()));
    }

    #[test]
    fn only_a_whole_token_with_its_scheme_opens() {
        let tokens = Tokens::new([TOKEN]).unwrap();
        assert!(tokens.admit(&bringing(&format!("Bearer {TOKEN}"))));
        assert!(tokens.admit(&bringing(&format!("bearer {TOKEN}"))));
        for wrong in [
            TOKEN,
            "Bearer ",
            &format!("Basic {TOKEN}"),
            &format!("Bearer {}", &TOKEN[1..]),
        ] {
            assert!(!tokens.admit(&bringing(wrong)), "{wrong}");
        }
        assert!(!tokens.admit(&HeaderMap::new()));
        assert!(!format!("{tokens:?}").contains(TOKEN));
    }

    #[test]
    fn tokens_that_protect_nothing_are_refused() {
        assert!(matches!(Tokens::new([]), Err(TokensError::Count(0))));
        assert!(matches!(Tokens::new(["short"]), Err(TokensError::Short)));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        assert!(matches!(Tokens::read(&file), Err(TokensError::Unread(..))));
        fs::write(&file, format!("# of the dashboard\n\n  {TOKEN}\n")).unwrap();
        assert_eq!(Tokens::read(&file).unwrap(), Tokens::new([TOKEN]).unwrap());
    }
}
