//! Liveness and readiness.

use axum::http::StatusCode;

use crate::{NodeState, Phase};

/// The answer of a process that answers.
pub(super) const LIVE: &str = "alive\n";

/// Whether the node should be given work, and if not, why: a reason in each line.
pub(super) fn readiness(state: &NodeState) -> (StatusCode, String) {
    let reasons = reasons(state);
    match reasons[..] {
        [] => (StatusCode::OK, "ready\n".to_owned()),
        _ => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}

/// The reasons why a node is not ready. None means ready: the node is in the mesh, its services are published, it does not drain.
pub(super) fn reasons(state: &NodeState) -> Vec<String> {
    let mut reasons = Vec::new();
    match (state.phase, &state.join) {
        (Phase::Serving, _) => {}
        (Phase::Draining, _) => reasons.push(format!("draining: {} calls still run", state.served.running)),
        (Phase::Left, _) => reasons.push("the node has left the mesh".to_owned()),
        (Phase::Joining, Some(Err(error))) => reasons.push(format!("not in the mesh: {error}")),
        (Phase::Joining, _) => reasons.push("not in the mesh yet".to_owned()),
    }
    let published = &state.directory.published;
    let unpublished = published.iter().filter(|own| own.last.is_none());
    reasons.extend(unpublished.map(|own| format!("the service {} is not published yet", own.service)));
    reasons
}
