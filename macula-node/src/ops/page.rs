//! The page: the mesh as this node sees it, live, in one file without any other resource.
//!
//! `/state` answers with the JSON of `macula status --json`, and `/events` streams that of `macula watch --json`.
//!
//! **Invariant.** Clients of this host are answered, under a name of this host: the page shows peers and their addresses. A site that
//! points its own name at this host (DNS rebinding) is turned away. Other clients are answered with a token, if the port has tokens.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State},
    http::{StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures::{Stream, stream};

use super::{Asked, Tokens};
use crate::admin::{event_message, schema::Build, state_message};

const PAGE: &str = include_str!("page.html");
/// Nothing but the page itself and its two questions.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
const ELSEWHERE: &str = "this page is for the node's own host: forward the port to it (ssh -L, kubectl port-forward) and open it as \
                         localhost, or give the node --ops-tokens; /livez, /readyz and /metrics answer everywhere\n";
/// Makes a browser ask for a user and a password.
const ASK: [(header::HeaderName, &str); 1] = [(header::WWW_AUTHENTICATE, "Basic realm=\"macula\", charset=\"UTF-8\"")];

pub(super) fn routes(tokens: Option<Tokens>) -> Router<Arc<Asked>> {
    Router::new()
        .route("/", get(page))
        .route("/state", get(state))
        .route("/events", get(events))
        .route_layer(middleware::from_fn_with_state(Arc::new(tokens), admit))
}

async fn admit(
    State(tokens): State<Arc<Option<Tokens>>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let named = named.or_else(|| request.uri().authority().map(Authority::as_str));
    let is_here = client.ip().to_canonical().is_loopback() && named.is_some_and(is_this_host);
    match &*tokens {
        _ if is_here => next.run(request).await,
        Some(tokens) if tokens.admit_person(request.headers()) => next.run(request).await,
        Some(_) => (StatusCode::UNAUTHORIZED, ASK, "a token is needed\n").into_response(),
        None => (StatusCode::FORBIDDEN, ELSEWHERE).into_response(),
    }
}

/// Whether a name, with or without a port, stands for this host wherever it is looked up.
fn is_this_host(name: &str) -> bool {
    let Ok(name) = name.parse::<Authority>() else {
        return false;
    };
    let host = name.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE)
}

async fn state(State(asked): State<Arc<Asked>>) -> impl IntoResponse {
    Json(state_message(&asked.node.state().await, Build::default()))
}

async fn events(State(asked): State<Arc<Asked>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let from_now = (asked.node.events(), asked.stopped.clone());
    let told = stream::unfold(from_now, async |(mut events, mut stopped)| {
        let event = tokio::select! {
            biased;
            // The port closes, or is dropped and its sender with it.
            _ = stopped.wait_for(|stopped| *stopped) => return None,
            event = events.next() => event?,
        };
        let event = Event::default().json_data(event_message(&event)).ok()?;
        Some((Ok(event), (events, stopped)))
    });
    Sse::new(told).keep_alive(KeepAlive::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n5_the_page_is_asked_for_under_a_name_of_this_host() {
        for here in ["localhost:9090", "LOCALHOST", "127.0.0.1:9090", "[::1]:9090"] {
            assert!(is_this_host(here), "{here}");
        }
        for elsewhere in [
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "10.0.0.1:9090",
            "",
            "localhost.evil.example",
        ] {
            assert!(!is_this_host(elsewhere), "{elsewhere}");
        }
    }
}
