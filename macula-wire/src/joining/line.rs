//! Bytes as one line of text: a prefix that names the kind, then base64url (RFC 4648, section 5) of the bytes and their checksum.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::hash::sha256;

/// The longest line that is read, in bytes.
const MAX_LINE_BYTES: usize = 8 * 1024;
const CHECKSUM_BYTES: usize = 4;

/// What a line stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Grant,
    Token,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Grant => "macula_grant_",
            Self::Token => "macula_token_",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::Token => "token",
        }
    }
}

/// The text is not the line that it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// It is something else.
    #[error("this is no {0}: it begins with `macula_{0}_`")]
    OtherKind(&'static str),
    /// It is not whole.
    #[error("the {0} is damaged or cut off: copy the whole line")]
    Damaged(&'static str),
    /// It is whole, and not understood.
    #[error("the {0} is of a later version: update this program")]
    NotUnderstood(&'static str),
}

impl LineError {
    pub(super) fn not_understood(kind: Kind) -> Self {
        Self::NotUnderstood(kind.name())
    }
}

fn checksum(kind: Kind, body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..] = sha256(b"macula/v1/line\0", &[kind.prefix().as_bytes(), body]);
    [a, b, c, d]
}

pub(super) fn write(kind: Kind, body: &[u8]) -> String {
    let whole = [body, &checksum(kind, body)].concat();
    format!("{}{}", kind.prefix(), URL_SAFE_NO_PAD.encode(whole))
}

pub(super) fn read(kind: Kind, text: &str) -> Result<Vec<u8>, LineError> {
    let digits = text.trim().strip_prefix(kind.prefix());
    let digits = digits.ok_or(LineError::OtherKind(kind.name()))?;
    let damaged = LineError::Damaged(kind.name());
    if digits.len() > MAX_LINE_BYTES {
        return Err(damaged);
    }
    let mut body = URL_SAFE_NO_PAD.decode(digits).map_err(|_| damaged)?;
    let sum = body
        .len()
        .checked_sub(CHECKSUM_BYTES)
        .map(|at| body.split_off(at))
        .ok_or(damaged)?;
    if sum == checksum(kind, &body) {
        Ok(body)
    } else {
        Err(damaged)
    }
}
