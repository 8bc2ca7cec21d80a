//! Where a node listens.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

/// Where a node listens: a host name or IP address, and a UDP port. Its text form is `https://node1:9443`.
///
/// The scheme is the field's for HTTP/3 endpoints. It carries no meaning of its own and may be left out when parsing. Host
/// names are at most 253 bytes (RFC 1035). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    host: Arc<str>,
    port: u16,
}

/// The text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is no port.
    #[error("an address needs a port: write it like `node1:9443` or `[::1]:9443`")]
    NoPort,
    /// The port is not a number from 1 to 65535.
    #[error("the port of an address is a number from 1 to 65535")]
    BadPort,
    /// The host is neither a host name nor an IP address.
    #[error("the host of an address is a name like `node1.example`, an IPv4 address, or an IPv6 address in brackets")]
    BadHost,
}

impl Address {
    /// The host name or IP address, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host as an IP address, when it is one and not a name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.strip_prefix("https://").unwrap_or(text);
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
        // `parse` alone would take a sign.
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AddressError::BadPort);
        }
        let port = port.parse().ok().filter(|&p| p != 0).ok_or(AddressError::BadPort)?;
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            // One address, one text: peers compare endpoints.
            inner
                .parse::<Ipv6Addr>()
                .map_err(|_| AddressError::BadHost)?
                .to_string()
        } else {
            if !is_host_name(host) {
                return Err(AddressError::BadHost);
            }
            host.to_ascii_lowercase()
        };
        Ok(Self {
            host: host.into(),
            port,
        })
    }
}

fn is_host_name(host: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= 253 && host.split('.').all(label)
}

impl TryFrom<SocketAddr> for Address {
    type Error = AddressError;

    /// The endpoint at a socket address.
    ///
    /// # Errors
    /// [`AddressError::BadPort`] when the port is 0.
    fn try_from(addr: SocketAddr) -> Result<Self, AddressError> {
        match addr.port() {
            0 => Err(AddressError::BadPort),
            port => Ok(Self {
                host: addr.ip().to_canonical().to_string().into(),
                port,
            }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}
