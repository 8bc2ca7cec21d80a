//! Services whose code is a server beside the node: `grpc://` and `http://`.

mod grpc;
mod http;
mod look;

pub(crate) use self::{grpc::Backends, http::Http};
