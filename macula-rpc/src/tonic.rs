//! tonic applications on the mesh: generated clients call through [`Channel`], generated servers are mounted by
//! [`Server::serve_tonic`].
//!
//! A gRPC service `package.Service` is the mesh's service of that name, found, chosen and failed over like any other. One call is
//! one streaming call: the head carries path, deadline and metadata; the first message of the reply is its headers; every other
//! message is gRPC's own length-prefixed bytes, cut where it is convenient; the outcome is the trailers. tonic enforces
//! `grpc-timeout` only in its own HTTP/2 server, so the deadline travels as the call's, and both sides enforce it. What every gRPC
//! message says (`content-type: application/grpc`, `te`) is not carried; the former is put back.
//!
//! Methods that answer briefly, as unary ones do, share a stream with other calls once their client knows them for it.
//!
//! Compression, message limits, interceptors and layers are tonic's, and work as they do over HTTP/2. The caller's
//! [`PeerInfo`](macula_transport::PeerInfo), its identity proved by the connection, is an extension of the request:
//! `request.extensions().get::<Arc<PeerInfo>>()`.

mod channel;
mod convert;
mod headers;
mod here;
mod mount;

pub use channel::Channel;
pub(crate) use mount::Mounted;
pub use mount::TonicServices;
