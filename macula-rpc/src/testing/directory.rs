//! The directory of a mesh in memory: whoever serves a service provides it.

use std::sync::{Arc, PoisonError, Weak};

use futures::future::{BoxFuture, ready};
use macula_wire::ServiceName;

use super::mesh::{Presence, Shared};
use crate::{Provider, Resolve, ResolveError, ResolveOptions, Resolved, Source};

/// Does not keep the mesh alive: a handler may hold a client.
pub(super) struct MeshDirectory(pub(super) Weak<Shared>);

impl Resolve for MeshDirectory {
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        _: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        let answer = match self.0.upgrade() {
            Some(mesh) => mesh.providers(service),
            None => Err(ResolveError::Closed),
        };
        Box::pin(ready(answer))
    }
}

impl Shared {
    fn providers(&self, service: &ServiceName) -> Result<Resolved, ResolveError> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.directory_lost {
            return Err(ResolveError::Unreachable);
        }
        let listed = nodes.by_name.values().filter(|node| match node.presence {
            // A provider that was killed has not withdrawn.
            Presence::Running(_) | Presence::Killed => node.server.serves(service),
            Presence::Left => false,
        });
        let providers: Vec<Provider> = listed
            .filter_map(|node| Some(Provider::new(node.id(), [node.addr.try_into().ok()?])))
            .collect();
        let known = nodes.answers.entry(service.clone()).or_default();
        if **known != *providers {
            // The same list while nothing changes: clients compare the pointers.
            *known = providers.into();
        }
        Ok(Resolved {
            providers: Arc::clone(known),
            source: Source::Static,
        })
    }
}
