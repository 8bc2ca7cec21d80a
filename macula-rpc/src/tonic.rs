//! tonic applications on the mesh: generated clients call through [`Channel`], generated servers are mounted by
//! [`Server::serve_tonic`].
//!
//! A gRPC service `package.Service` is the mesh's service of that name, found, chosen and failed over like any other. One gRPC call is
//! one streaming call: the head carries path, deadline and metadata; the first message of the reply carries its headers; every other
//! message carries gRPC's own length-prefixed bytes, cut anywhere; the outcome carries the trailers. tonic enforces `grpc-timeout` only
//! in its own HTTP/2 server, so the deadline travels as the call's, and both sides enforce it. The headers that every gRPC message has
//! (`content-type: application/grpc`, `te`) are not sent; the reader adds the content type. A call of one small request shares a QUIC
//! stream with others.
//!
//! Compression, message limits, interceptors and layers are tonic's, and work as they do over HTTP/2. The caller's
//! [`PeerInfo`](macula_transport::PeerInfo), with the identity that the connection proved, is an extension of the request:
//! `request.extensions().get::<Arc<PeerInfo>>()`.

mod about;
mod channel;
mod convert;
mod headers;
mod mount;
mod requests;
mod services;

pub use channel::Channel;
#[cfg(feature = "fuzzing")]
pub use headers::fuzz_headers;
pub(crate) use mount::{GrpcReply, Mounted};
pub use services::TonicServices;
