//! The services about the node itself: `grpc.health.v1.Health` and gRPC's server reflection, on every node with the feature
//! `tonic`.
//!
//! Both are questions to *one* node, and a name in the mesh is a question to any of its providers. So they are served and not
//! published: a million nodes that each provided `grpc.health.v1.Health` would fill the record list of one key, and a call by
//! that name would tell the health of one of them at random. They are called at a node, with
//! [`Channel::with_provider`](macula_rpc::Channel::with_provider), or at a provider of the service that they are asked about, as
//! [`Channel::with_service`](macula_rpc::Channel::with_service) explains. A service of the application's own with one of these
//! names goes first, and is published like any other.
//!
//! **Invariant:** they answer while the node drains, which is when they are asked; so they are no part of what a drain waits
//! for, and have a limit of their own, [`MAX_CALLS`](mounted::MAX_CALLS).

#[cfg(feature = "tonic")]
mod health;
#[cfg(feature = "tonic")]
mod mounted;
#[cfg(not(feature = "tonic"))]
#[path = "nothing.rs"]
mod mounted;

pub(crate) use mounted::Inspection;
