//! Typed messages as bytes.
//!
//! The type of a message is its format: [`Json<T>`], [`Prost<M>`], text or bytes. The format does not travel; bytes of another format
//! are an error and never a wrong value.
//!
//! Left out: negotiation of a format, and compression.

use std::{convert::Infallible, error::Error, sync::Arc};

use bytes::Bytes;

use crate::{Response, Status};

#[cfg(feature = "json")]
mod json;
#[cfg(feature = "prost")]
mod prost;

#[cfg(feature = "prost")]
pub use self::prost::Prost;
#[cfg(feature = "json")]
pub use json::Json;

/// A message could not be written or read. The text is the format's.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct CodecError(Arc<dyn Error + Send + Sync>);

impl CodecError {
    /// Wraps the error of a format.
    pub fn new(cause: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(cause))
    }
}

impl From<Infallible> for CodecError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A message that can be written as a payload.
pub trait Encode {
    /// The message's bytes.
    ///
    /// # Errors
    /// When the format cannot express the message.
    fn encode(self) -> Result<Bytes, CodecError>;
}

/// A message that can be read from a payload.
pub trait Decode: Sized {
    /// Reads a message. A peer sent the bytes, so they may be anything.
    ///
    /// # Errors
    /// When the bytes are not a message of this type.
    fn decode(payload: Bytes) -> Result<Self, CodecError>;
}

macro_rules! bytes_as_they_are {
    ($($type:ty),+) => {$(
        impl Encode for $type {
            fn encode(self) -> Result<Bytes, CodecError> {
                Ok(self.into())
            }
        }
    )+};
}

bytes_as_they_are!(Bytes, Vec<u8>, Box<[u8]>, String, &'static str, &'static [u8]);

/// No payload.
impl Encode for () {
    fn encode(self) -> Result<Bytes, CodecError> {
        Ok(Bytes::new())
    }
}

impl Decode for Bytes {
    fn decode(payload: Bytes) -> Result<Self, CodecError> {
        Ok(payload)
    }
}

impl Decode for Vec<u8> {
    fn decode(payload: Bytes) -> Result<Self, CodecError> {
        Ok(payload.into())
    }
}

/// UTF-8 text.
impl Decode for String {
    fn decode(payload: Bytes) -> Result<Self, CodecError> {
        Self::from_utf8(payload.into()).map_err(CodecError::new)
    }
}

/// Any payload is ignored.
impl Decode for () {
    fn decode(_payload: Bytes) -> Result<Self, CodecError> {
        Ok(())
    }
}

/// A handler's answer: a message, or a [`Response`] with a message and metadata.
pub trait IntoResponse {
    /// The answer's bytes.
    ///
    /// # Errors
    /// When the message cannot be written, which is the provider's fault.
    fn into_response(self) -> Result<Response, Status>;
}

impl<T: Encode> IntoResponse for T {
    fn into_response(self) -> Result<Response, Status> {
        Response::new(self).into_response()
    }
}

impl<T: Encode> IntoResponse for Response<T> {
    fn into_response(self) -> Result<Response, Status> {
        let (message, metadata) = self.into_parts();
        match message.encode() {
            Ok(payload) => Ok(Response::new(payload).with_metadata(metadata)),
            Err(error) => Err(Status::internal(format!("the answer could not be written: {error}"))),
        }
    }
}
