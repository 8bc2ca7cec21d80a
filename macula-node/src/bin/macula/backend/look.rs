//! How a gRPC server is, and which services it has: `grpc.health.v1`, and reflection in both of its versions.

use std::{collections::BTreeSet, time::Duration};

use futures::stream;
use macula_node::ServiceName;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// The most services of one server.
const MAX_SERVICES: usize = 256;

/// Those of the services that the server says are well.
pub(super) async fn well(channel: &Channel, services: &BTreeSet<ServiceName>) -> BTreeSet<ServiceName> {
    let mut well = BTreeSet::new();
    for service in services {
        let asked = tokio::time::timeout(ANSWER_WITHIN, is_well(channel, service.as_str()));
        if asked.await.unwrap_or(false) {
            well.insert(service.clone());
        }
    }
    well
}

/// A server that does not know a service's health is asked for its own. One without health is well, because it answers.
async fn is_well(channel: &Channel, service: &str) -> bool {
    let mut health = HealthClient::new(channel.clone());
    for service in [service, ""] {
        let asked = health.check(HealthCheckRequest {
            service: service.to_owned(),
        });
        match asked.await {
            Ok(answer) => return answer.into_inner().status() == ServingStatus::Serving,
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return status.code() == Code::Unimplemented,
        }
    }
    true
}

/// Asks a version of reflection for the names of all services.
macro_rules! list {
    ($version:ident, $channel:expr) => {{
        use pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let question = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut request = Request::new(stream::iter([question]));
        request.set_timeout(ANSWER_WITHIN);
        let mut client = ServerReflectionClient::new($channel.clone());
        let answers = client.server_reflection_info(request).await;
        match answers {
            Err(status) => Err(status),
            Ok(answers) => match answers.into_inner().message().await {
                Err(status) => Err(status),
                Ok(answer) => match answer.and_then(|answer| answer.message_response) {
                    Some(MessageResponse::ListServicesResponse(list)) => {
                        Ok(list.service.into_iter().map(|service| service.name).collect::<Vec<_>>())
                    }
                    _ => Err(Status::unknown("its reflection gives no list of services")),
                },
            },
        }
    }};
}

/// The services that the server's reflection names, without gRPC's own.
pub(super) async fn services(channel: &Channel) -> Result<BTreeSet<ServiceName>, Status> {
    let mut names = list!(v1, channel);
    // Older libraries have the version before only.
    if names.as_ref().is_err_and(|status| status.code() == Code::Unimplemented) {
        names = list!(v1alpha, channel);
    }
    let named = names?.into_iter().filter(|name| !name.starts_with("grpc."));
    Ok(named
        .filter_map(|name| ServiceName::new(&name).ok())
        .take(MAX_SERVICES)
        .collect())
}
