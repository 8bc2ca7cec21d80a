//! Server reflection for the services of the mesh (grpc.reflection.v1).
//!
//! A node has the schemas of its own services only. So a question about a service goes to a provider of that service, and the
//! questions that follow on the same stream, for the files that its answer names, go to the same provider.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use macula_rpc::{Channel, Client, StaticResolver};
use macula_wire::ServiceName;
use tonic::{Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::{
    ErrorResponse, ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
    server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest as Ask,
    server_reflection_response::MessageResponse as Told,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};

use crate::Node;

/// The most nodes that one stream of questions goes to.
const MAX_ASKED: usize = 16;
/// The most providers of one service that a question goes to, one after another.
const MAX_OF_SERVICE: usize = 3;

#[derive(Clone)]
pub(super) struct Reflection {
    node: Node,
    /// To the node itself, which a node does not dial.
    own: Channel,
}

impl Reflection {
    pub(super) const NAME: &'static str = "grpc.reflection.v1.ServerReflection";

    pub(super) fn new(node: &Node) -> Self {
        let nowhere = StaticResolver::new();
        let own = Client::builder(&node.inner.transport, nowhere).local_first(node.inner.inspection.server().clone());
        Self {
            node: node.clone(),
            own: Channel::new(own.build()),
        }
    }

    pub(super) fn into_server(self) -> ServerReflectionServer<Self> {
        ServerReflectionServer::new(self)
    }
}

type Provider = ServerReflectionClient<Channel>;

#[tonic::async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream = Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let own = ServerReflectionClient::new(self.own.clone());
        let conversation = (self.clone(), request.into_inner(), vec![own]);
        let answers = stream::try_unfold(conversation, async |(this, mut questions, mut asked)| {
            let Some(question) = questions.message().await? else {
                return Ok(None);
            };
            let answer = this.answer(&question, &mut asked).await;
            let response = ServerReflectionResponse {
                valid_host: question.host.clone(),
                message_response: Some(answer),
                original_request: Some(question),
            };
            Ok(Some((response, (this, questions, asked))))
        });
        Ok(Response::new(answers.boxed()))
    }
}

impl Reflection {
    /// Answers one question. `asked` are this node and the providers that earlier ones went to, the latest last.
    async fn answer(&self, question: &ServerReflectionRequest, asked: &mut Vec<Provider>) -> Told {
        let Some(ask) = &question.message_request else {
            return error(tonic::Code::InvalidArgument, "the question is empty");
        };
        match ask {
            Ask::ListServices(_) => return self.list().await,
            Ask::FileContainingSymbol(symbol) => {
                // The first one is asked first, and the next ones when it is lost.
                for provider in self.providers_of(symbol).await.into_iter().rev() {
                    if asked.len() == MAX_ASKED {
                        asked.remove(0);
                    }
                    asked.push(provider);
                }
            }
            Ask::FileByFilename(_) | Ask::FileContainingExtension(_) | Ask::AllExtensionNumbersOfType(_) => {}
        }
        let mut last = error(
            tonic::Code::NotFound,
            "no provider of the mesh knows it; name a service first, in full: package.Service",
        );
        for provider in asked.iter_mut().rev() {
            match forward(provider, question).await {
                Ok(Told::ErrorResponse(told)) => last = Told::ErrorResponse(told),
                Ok(told) => return told,
                Err(status) => last = error(status.code(), status.message()),
            }
        }
        last
    }

    /// The services that this node serves and those that it has called: the mesh has no list of all.
    async fn list(&self) -> Told {
        let state = self.node.state().await;
        let mut names: Vec<_> = state
            .served
            .services
            .iter()
            .map(|(service, _)| service.to_string())
            .collect();
        names.extend(state.called.iter().map(|called| called.service.to_string()));
        names.sort();
        names.dedup();
        let service = names.into_iter().map(|name| ServiceResponse { name }).collect();
        Told::ListServicesResponse(ListServiceResponse { service })
    }

    /// Providers of the service that `symbol` is, or is a part of: `package.Service.Method` is a part of `package.Service`.
    async fn providers_of(&self, symbol: &str) -> Vec<Provider> {
        let whole = Some(symbol);
        let parent = symbol.rsplit_once('.').map(|(parent, _)| parent);
        for name in [whole, parent].into_iter().flatten() {
            let Ok(service) = ServiceName::new(name) else { continue };
            let found = self.node.providers(&service).await.unwrap_or_default();
            if !found.is_empty() {
                return found.iter().take(MAX_OF_SERVICE).map(|it| self.reach(it)).collect();
            }
        }
        Vec::new()
    }

    fn reach(&self, provider: &macula_rpc::Provider) -> Provider {
        let channel = match provider.node_id == self.node.id() {
            true => self.own.clone(),
            false => Channel::new(self.node.client().clone()).with_provider(provider.clone()),
        };
        ServerReflectionClient::new(channel)
    }
}

/// Asks a provider the same question.
async fn forward(provider: &mut Provider, question: &ServerReflectionRequest) -> Result<Told, Status> {
    let answers = provider
        .server_reflection_info(stream::iter([question.clone()]))
        .await?;
    let answer = answers.into_inner().message().await?;
    answer
        .and_then(|answer| answer.message_response)
        .ok_or_else(|| Status::unavailable("a provider's reflection gave no answer"))
}

fn error(code: tonic::Code, message: &str) -> Told {
    Told::ErrorResponse(ErrorResponse {
        error_code: code.into(),
        error_message: message.to_owned(),
    })
}
