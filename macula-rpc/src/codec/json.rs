//! JSON messages, by serde.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{CodecError, Decode, Encode};

/// A message written as JSON.
///
/// ```
/// use macula_rpc::{Decode, Encode, Json};
///
/// let payload = Json(vec![1, 2, 3]).encode()?;
/// assert_eq!(payload, "[1,2,3]");
/// let Json(numbers) = Json::<Vec<u8>>::decode(payload)?;
/// assert_eq!(numbers, [1, 2, 3]);
/// assert!(Json::<Vec<u8>>::decode("[1,2".into()).is_err());
/// # Ok::<(), macula_rpc::CodecError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json<T>(pub T);

impl<T: Serialize> Encode for Json<T> {
    fn encode(self) -> Result<Bytes, CodecError> {
        serde_json::to_vec(&self.0).map(Bytes::from).map_err(CodecError::new)
    }
}

impl<T: DeserializeOwned> Decode for Json<T> {
    fn decode(payload: Bytes) -> Result<Self, CodecError> {
        serde_json::from_slice(&payload).map(Self).map_err(CodecError::new)
    }
}
