//! `macula health`: gRPC's health and reflection, asked of nodes one by one.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, stream};
use macula_node::{CallError, Channel, Node, Phase, Provider, admin::schema::StateRequest};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    args::HealthArgs,
    failure::{Failure, error_line, print_line},
    mesh,
    own::{self, unanswered},
};

/// Nodes asked at a time, and services of each.
const AT_A_TIME: usize = 32;

/// The services of a node whose health is asked for, at most.
const MAX_SERVICES: usize = 4096;

pub(crate) async fn run(args: HealthArgs) -> Result<(), Failure> {
    let node = match (&args.service, &args.on[..]) {
        (None, []) => return own_health(&args).await,
        (Some(_), []) => mesh::client(&args.reach, None).await?,
        // The nodes are known: there is nothing to look up.
        _ => mesh::alone(&args.reach).await?,
    };
    let outcome = ask_all(&node, &args).await;
    node.shutdown().await;
    outcome
}

/// The health of the node that runs here, by its admin socket.
async fn own_health(args: &HealthArgs) -> Result<(), Failure> {
    let asked = async {
        let mut node = own::node(&args.reach.admin).await?;
        let state = node
            .get_state(StateRequest {})
            .await
            .map_err(|status| unanswered(&status))?;
        Ok::<_, Failure>(state.into_inner())
    };
    let late = |_| Failure::other(format!("the running node did not answer within {:?}", args.timeout));
    let state = tokio::time::timeout(args.timeout, asked).await.map_err(late)??;
    if args.json {
        print_line(json!({ "node_id": state.node_id, "state": state.phase }))?;
    } else {
        print_line(format!("{}  {}", state.node_id, state.phase))?;
    }
    match args.live || state.phase == Phase::Serving.name() {
        true => Ok(()),
        false => Err(Failure::shown(1)),
    }
}

async fn ask_all(node: &Node, args: &HealthArgs) -> Result<(), Failure> {
    let providers = match (&args.service, &args.on[..]) {
        (Some(service), []) => {
            let found = node.lookup(service).await;
            let found = found.map_err(|error| Failure::other(error_line(&error)))?;
            if found.is_empty() {
                let service = service.clone();
                return Err(CallError::ServiceNotFound { service }.into());
            }
            found.to_vec()
        }
        (_, named) => named
            .iter()
            .filter_map(|at| Some(Provider::new(at.node_id?, [at.endpoint.clone()])))
            .collect(),
    };
    let mut asked = stream::iter(providers)
        .map(|provider| ask(node, args, provider))
        .buffered(AT_A_TIME);
    let mut all_serve = true;
    while let Some(report) = asked.next().await {
        all_serve &= report.serves();
        if args.json {
            print_line(report.as_json())?;
        } else {
            report.as_lines().iter().try_for_each(print_line)?;
        }
    }
    match all_serve {
        true => Ok(()),
        false => Err(Failure::shown(1)),
    }
}

/// A node's answer about a service, or why there is none.
type Said = Result<&'static str, String>;

/// The answers of one node.
struct Report {
    provider: Provider,
    /// Of the service asked for, or of the node as a whole.
    health: Said,
    /// Of each service it has, when no single one was asked for.
    services: BTreeMap<String, Said>,
}

async fn ask(node: &Node, args: &HealthArgs, provider: Provider) -> Report {
    let channel = Channel::new(node.client().clone())
        .with_provider(provider.clone())
        .with_timeout(args.timeout);
    let name = args.service.as_ref().map_or("", |service| service.as_str());
    let health = health(&channel, name).await;
    let mut services = BTreeMap::new();
    if args.service.is_none() && health.is_ok() {
        // A node without reflection has no list, and answers only about itself.
        let names = list(&channel).await.unwrap_or_default();
        // The services about the node itself are left out.
        let names: Vec<_> = names.into_iter().filter(|name| !name.starts_with("grpc.")).collect();
        let asked = stream::iter(names.into_iter().take(MAX_SERVICES)).map(async |name| {
            let health = self::health(&channel, &name).await;
            (name, health)
        });
        services = asked.buffered(AT_A_TIME).collect().await;
    }
    Report {
        provider,
        health,
        services,
    }
}

/// The state of a service at a provider, in a word.
pub(crate) async fn state(node: &Node, provider: Provider, service: &str, within: Duration) -> &'static str {
    let channel = Channel::new(node.client().clone())
        .with_provider(provider)
        .with_timeout(within);
    let service = service.to_owned();
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await;
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(ServingStatus::Serving) => "serving",
        Ok(ServingStatus::NotServing) => "leaving",
        Ok(ServingStatus::Unknown | ServingStatus::ServiceUnknown) => "unknown",
        // It answers, and has no health to tell: the service is another program's, or was withdrawn.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => "not served",
        Err(status) if status.code() == Code::PermissionDenied => "not allowed to ask",
        Err(_) => "unreachable",
    }
}

async fn health(channel: &Channel, service: &str) -> Said {
    let service = service.to_owned();
    let mut client = HealthClient::new(channel.clone());
    let answer = client.check(HealthCheckRequest { service }).await;
    let answer = answer.map_err(|status| status.message().to_owned())?;
    Ok(answer.into_inner().status().as_str_name())
}

/// The names of the services that a node has.
pub(crate) async fn list(channel: &Channel) -> Result<Vec<String>, Status> {
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut answers = client
        .server_reflection_info(stream::iter([question]))
        .await?
        .into_inner();
    let answer = answers.message().await?.and_then(|answer| answer.message_response);
    match answer {
        Some(MessageResponse::ListServicesResponse(list)) => Ok(list.service.into_iter().map(|it| it.name).collect()),
        _ => Err(Status::internal("the node answered something else than a list")),
    }
}

impl Report {
    fn serves(&self) -> bool {
        self.services
            .values()
            .chain([&self.health])
            .all(|said| matches!(said, Ok("SERVING")))
    }

    fn as_lines(&self) -> Vec<String> {
        let word = |said: &Said| match said {
            Ok(status) => (*status).to_owned(),
            Err(reason) => format!("no answer: {reason}"),
        };
        let endpoint = self.provider.endpoints.first();
        let endpoint = endpoint.map(ToString::to_string).unwrap_or_default();
        let head = format!("{}  {endpoint}  {}", self.provider.node_id, word(&self.health));
        let services = self.services.iter();
        let services = services.map(|(name, said)| format!("  {name}  {}", word(said)));
        std::iter::once(head).chain(services).collect()
    }

    fn as_json(&self) -> Value {
        let word = |said: &Said| match said {
            Ok(status) => json!({ "status": status }),
            Err(reason) => json!({ "status": null, "message": reason }),
        };
        let mut report = word(&self.health);
        report["node_id"] = self.provider.node_id.to_string().into();
        report["endpoint"] = self.provider.endpoints.first().map(ToString::to_string).into();
        let services = self.services.iter().map(|(name, said)| (name.clone(), word(said)));
        report["services"] = Value::Object(services.collect());
        report
    }
}
