//! Certificates for the stacks that need them: one for each side, each trusted by the other, so that all prove both ends.

use anyhow::Result;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A self-signed certificate, as text that fits into an address: the key's bytes follow from it.
pub(crate) struct Certificate {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

/// Both sides' certificate. A fixed key: what is measured is calls, and this one guards nothing.
pub(crate) fn shared() -> Result<Certificate> {
    let seed = [0x5a; 32];
    // An Ed25519 private key as RFC 8410 has it, section 7.
    let prefix = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ];
    let key = PrivatePkcs8KeyDer::from([&prefix[..], &seed].concat());
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ED25519)?;
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2100, 1, 1);
    params.serial_number = Some(1_u64.into());
    let certificate = params.self_signed(&key)?;
    Ok(Certificate {
        certificate: certificate.der().clone(),
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    })
}

pub(crate) fn roots() -> Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(shared()?.certificate)?;
    Ok(roots)
}
