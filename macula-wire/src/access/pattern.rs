//! Patterns of service names: `*`, `shop.*` and `shop.cart`.
//!
//! A pattern stands for a set of names. One covers another when its set holds all of the other's; [`Patterns`] covers another list
//! when each pattern of that list is covered by one of its own. That is exact and not only sufficient: `shop.*` stands for names
//! without end, so no list of other patterns makes it up.

use std::{fmt, str::FromStr};

use crate::{NameError, ServiceName};

/// A set of service names.
///
/// Ordered: `*` first, then the prefixes, then the names, each by their text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    /// `*`: every name.
    All,
    /// `shop.*`: every name below `shop`, however deep; `shop` itself is not one.
    Under(ServiceName),
    /// `shop.cart`: this name.
    Name(ServiceName),
}

/// Whether `name` is `prefix`, a dot, and more.
fn is_under(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

impl Pattern {
    /// Whether `service` is one of its names.
    #[must_use]
    pub fn matches(&self, service: &ServiceName) -> bool {
        match self {
            Self::All => true,
            Self::Under(prefix) => is_under(service.as_str(), prefix.as_str()),
            Self::Name(name) => name == service,
        }
    }

    /// Whether every name of `other` is one of its names.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (_, Self::Name(name)) => self.matches(name),
            (Self::Under(_) | Self::Name(_), Self::All) | (Self::Name(_), Self::Under(_)) => false,
            (Self::Under(wide), Self::Under(narrow)) => wide == narrow || is_under(narrow.as_str(), wide.as_str()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Under(prefix) => write!(f, "{prefix}.*"),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for Pattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match (text, text.strip_suffix(".*")) {
            ("*", _) => Ok(Self::All),
            (_, Some(prefix)) => ServiceName::new(prefix).map(Self::Under),
            (name, None) => ServiceName::new(name).map(Self::Name),
        }
    }
}

impl From<ServiceName> for Pattern {
    fn from(name: ServiceName) -> Self {
        Self::Name(name)
    }
}

/// The names of several patterns together; none of them is covered by another, and they are in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Patterns(Vec<Pattern>);

impl Patterns {
    /// No name.
    pub const NONE: Self = Self(Vec::new());

    /// Every name.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![Pattern::All])
    }

    /// Whether `service` is one of the names.
    #[must_use]
    pub fn matches(&self, service: &ServiceName) -> bool {
        self.0.iter().any(|pattern| pattern.matches(service))
    }

    /// Whether every name of `other` is one of the names.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let covered = |narrow| self.0.iter().any(|pattern| pattern.covers(narrow));
        other.0.iter().all(covered)
    }

    /// Whether there is no name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The patterns, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Pattern> {
        self.0.iter()
    }
}

impl FromIterator<Pattern> for Patterns {
    fn from_iter<I: IntoIterator<Item = Pattern>>(patterns: I) -> Self {
        let mut sorted: Vec<_> = patterns.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        // A wider pattern may stand before or after a narrower one, so each is compared with all.
        let kept = sorted
            .iter()
            .filter(|one| !sorted.iter().any(|other| other != *one && other.covers(one)))
            .cloned()
            .collect();
        Self(kept)
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, pattern) in self.0.iter().enumerate() {
            write!(f, "{}{pattern}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}
