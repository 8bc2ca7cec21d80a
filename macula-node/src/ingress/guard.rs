//! The certificate of the ingress.

use std::path::{Path, PathBuf};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
};

/// The certificate or the key of an ingress is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// A PEM file cannot be read.
    #[error("{} is not a readable PEM file", .0.display())]
    Pem(PathBuf, #[source] pem::Error),
    /// The certificate and the key do not belong together, or are not supported.
    #[error("the certificate {} and its key cannot be used", .0.display())]
    Certificate(PathBuf, #[source] rustls::Error),
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

    #[test]
    fn a_file_that_is_no_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("certificate");
        std::fs::write(&file, "no certificate").unwrap();
        assert!(matches!(
            server_tls(&file, &file),
            Err(GuardError::Pem(..) | GuardError::Certificate(..))
        ));
    }
}
