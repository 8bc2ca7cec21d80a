//! A node without the feature `tonic`: it serves nothing about itself.

use macula_rpc::Server;
use macula_wire::ServiceName;

/// The services about the node itself: none.
#[derive(Debug, Clone)]
pub(crate) struct Inspection;

impl Inspection {
    pub(crate) fn server_of(&self, _: &ServiceName) -> Option<&Server> {
        None
    }

    pub(crate) fn serving(&self, _: &ServiceName) {}

    pub(crate) fn withdrawn(&self, _: &ServiceName) {}

    pub(crate) fn draining(&self, _: &[ServiceName]) {}

    pub(crate) fn ended(&self) {}
}
