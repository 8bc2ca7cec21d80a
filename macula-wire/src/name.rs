//! Names people choose: services and realms. Parsed once, valid ever after.

use std::{convert::Infallible, fmt, str::FromStr, sync::Arc};

/// The longest service or realm name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// The text is not a service or realm name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The text is empty.
    #[error("the name is empty; give it at least one character, like `api.compute`")]
    Empty,
    /// The text is longer than [`MAX_NAME_BYTES`].
    #[error("the name has {0} bytes, more than the {MAX_NAME_BYTES} a name may have; shorten it")]
    TooLong(usize),
    /// A character may not stand in a name.
    #[error("{0:?} may not stand in a name; use letters, digits, `.`, `_` and `-`, like `api.compute`")]
    Character(char),
    /// A part between dots is empty.
    #[error("a name neither starts nor ends with a dot nor has two in a row; write it like `api.compute`")]
    EmptySegment,
}

impl From<Infallible> for NameError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong(text.len()));
    }
    if let Some(bad) = text
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'))
    {
        return Err(NameError::Character(bad));
    }
    if text.split('.').any(str::is_empty) {
        return Err(NameError::EmptySegment);
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 1 to 128 ASCII letters, digits, `_`, `-` and single dots between them; case counts. Cheap to clone.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses a name.
            ///
            /// # Errors
            /// The reason it is not a valid name.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check(text).map(|()| Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NameError;

            fn try_from(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<&$name> for $name {
            fn from(name: &$name) -> Self {
                name.clone()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// The name of a service, like `api.compute`.
    ServiceName
}

name! {
    /// The name of a realm, which alone says nothing of its members: see [`Realm`](crate::Realm).
    RealmName
}

impl Default for RealmName {
    /// The name that is used when none is chosen: `default`.
    fn default() -> Self {
        Self("default".into())
    }
}
