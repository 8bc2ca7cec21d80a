//! The way of a request to its handler.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::post,
};
use macula_rpc::Channel;
use tokio::sync::watch;
use tonic::codegen::http::header;

use super::{Tokens, error, grpc, http};
use crate::{MAX_MESSAGE_BYTES, Node};

/// What answers the requests.
pub(super) fn app(node: &Node, tokens: Option<Tokens>, stopped: watch::Receiver<bool>) -> Router {
    let calls = Router::new()
        .route("/v1/call/{service}", post(http::call))
        .route("/v1/call/{service}/{method}", post(http::call))
        .layer(DefaultBodyLimit::max(MAX_MESSAGE_BYTES))
        .with_state(http::Calls {
            client: node.client().clone(),
            memory: node.memory(),
        });
    let gate = Arc::new(tokens);
    calls
        .fallback_service(grpc::Gateway::new(node, Channel::new(node.client().clone()), stopped))
        .layer(middleware::from_fn_with_state(gate, admit))
}

/// Lets requests with a token pass, without the token: it is this ingress's, and no provider's.
async fn admit(State(tokens): State<Arc<Option<Tokens>>>, mut request: Request, next: Next) -> Response {
    if let Some(tokens) = tokens.as_ref() {
        if !tokens.admit(request.headers()) {
            return match grpc::is_grpc(request.headers()) {
                true => grpc::refusal(tonic::Status::unauthenticated(error::NO_TOKEN)),
                false => error::unauthorized().into_response(),
            };
        }
        request.headers_mut().remove(header::AUTHORIZATION);
    }
    next.run(request).await
}
