//! TLS, and the tokens that open the ingress.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
};
use sha2::{Digest as _, Sha256};
use tonic::codegen::http::{HeaderMap, header};

/// The shortest token, in bytes. A short one can be guessed.
pub const MIN_TOKEN_BYTES: usize = 16;
/// The most tokens.
const MAX_TOKENS: usize = 4_096;

/// The certificate, the key or the tokens of an ingress are not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// A PEM file cannot be read.
    #[error("{} is not a readable PEM file", .0.display())]
    Pem(PathBuf, #[source] pem::Error),
    /// The certificate and the key do not belong together, or are not supported.
    #[error("the certificate {} and its key cannot be used", .0.display())]
    Certificate(PathBuf, #[source] rustls::Error),
    /// The file of tokens cannot be read.
    #[error("the file of tokens {} cannot be read", .0.display())]
    Tokens(PathBuf, #[source] io::Error),
    /// A token is too short.
    #[error("a token has less than {MIN_TOKEN_BYTES} characters; make one with `openssl rand -hex 32`")]
    ShortToken,
    /// There is no token, or there are too many.
    #[error("{0} tokens; 1 to {MAX_TOKENS} can be used")]
    TokenCount(usize),
}

/// The tokens that open an ingress. They are kept as hashes.
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
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Result<Self, GuardError> {
        let mut hashes = BTreeSet::new();
        for token in tokens {
            if token.len() < MIN_TOKEN_BYTES {
                return Err(GuardError::ShortToken);
            }
            hashes.insert(hash(token));
        }
        match hashes.len() {
            1..=MAX_TOKENS => Ok(Self(hashes)),
            count => Err(GuardError::TokenCount(count)),
        }
    }

    /// The tokens of a file: one a line; empty lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    /// When the file cannot be read, and as [`Tokens::new`].
    pub fn read(path: &Path) -> Result<Self, GuardError> {
        let text = fs::read_to_string(path).map_err(|error| GuardError::Tokens(path.into(), error))?;
        let lines = text.lines().map(str::trim);
        Self::new(lines.filter(|line| !line.is_empty() && !line.starts_with('#')))
    }

    /// Whether the request brings one of the tokens.
    ///
    /// Hashes are compared, so the time that it takes tells nothing about a token.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        let brought = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = brought.and_then(|value| value.split_once(' '));
        token.is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case("bearer") && self.0.contains(&hash(token.trim()))
        })
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// TLS 1.2 or 1.3 with HTTP/2 and HTTP/1.1.
pub(super) fn server_tls(certificate: &Path, key: &Path) -> Result<ServerConfig, GuardError> {
    let unread = |path: &Path| {
        let path = path.to_path_buf();
        move |error| GuardError::Pem(path, error)
    };
    let chain = CertificateDer::pem_file_iter(certificate).map_err(unread(certificate))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(unread(certificate))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(unread(key))?;
    let provider = rustls::crypto::ring::default_provider();
    let config = ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| GuardError::Certificate(certificate.into(), error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123";

    fn bringing(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
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
        assert!(matches!(Tokens::new([]), Err(GuardError::TokenCount(0))));
        assert!(matches!(Tokens::new(["short"]), Err(GuardError::ShortToken)));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        assert!(matches!(Tokens::read(&file), Err(GuardError::Tokens(..))));
        fs::write(&file, format!("# of the dashboard\n\n  {TOKEN}\n")).unwrap();
        assert_eq!(Tokens::read(&file).unwrap(), Tokens::new([TOKEN]).unwrap());
        assert!(matches!(
            server_tls(&file, &file),
            Err(GuardError::Pem(..) | GuardError::Certificate(..))
        ));
    }
}
