//! Protocol Buffers messages, by prost.

use bytes::Bytes;
use prost::Message;

use super::{CodecError, Decode, Encode};

/// A message written as Protocol Buffers, of a type that prost has generated or derived.
///
/// ```
/// use macula_rpc::{Decode, Encode, Prost};
///
/// let payload = Prost("a string is google.protobuf.StringValue".to_owned()).encode()?;
/// let Prost(text) = Prost::<String>::decode(payload)?;
/// assert!(text.starts_with("a string"));
/// assert!(Prost::<String>::decode(vec![0xff; 3].into()).is_err());
/// # Ok::<(), macula_rpc::CodecError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Prost<M>(pub M);

impl<M: Message> Encode for Prost<M> {
    fn encode(self) -> Result<Bytes, CodecError> {
        Ok(self.0.encode_to_vec().into())
    }
}

impl<M: Message + Default> Decode for Prost<M> {
    fn decode(payload: Bytes) -> Result<Self, CodecError> {
        M::decode(payload).map(Self).map_err(CodecError::new)
    }
}
