//! What a call is made of: a service, and one of its methods.

use macula_node::{NameError, ServiceName};

/// A service, and one of its methods.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) service: ServiceName,
    /// Empty for a service without methods.
    pub(crate) method: String,
}

impl std::str::FromStr for Target {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (service, method) = text.split_once('/').unwrap_or((text, ""));
        Ok(Self {
            service: ServiceName::new(service)?,
            method: method.to_owned(),
        })
    }
}
