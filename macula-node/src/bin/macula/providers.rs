//! `macula providers`.

use macula_node::{CallError, LookupError, Provider};
use serde_json::json;

use crate::{
    args::ProvidersArgs,
    failure::{Failure, chain, print_line},
    mesh,
};

pub(crate) async fn run(args: ProvidersArgs) -> Result<(), Failure> {
    let node = mesh::client(&args.mesh).await?;
    let found = node.lookup(&args.service).await;
    node.shutdown().await;
    let providers = found.map_err(|error: LookupError| Failure::other(chain(&error)))?;
    if args.json {
        let list: Vec<_> = providers.iter().map(as_json).collect();
        print_line(json!({ "service": args.service.as_str(), "providers": list }))?;
    } else {
        providers
            .iter()
            .try_for_each(|provider| print_line(as_line(provider)))?;
    }
    match providers.is_empty() {
        false => Ok(()),
        true if args.json => Err(Failure::shown(3)),
        true => Err(CallError::ServiceNotFound { service: args.service }.into()),
    }
}

fn as_json(provider: &Provider) -> serde_json::Value {
    let endpoints: Vec<_> = provider.endpoints.iter().map(ToString::to_string).collect();
    let metadata: serde_json::Map<_, _> = provider
        .metadata
        .iter()
        .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned().into()))
        .collect();
    json!({
        "node_id": provider.node_id.to_string(),
        "endpoints": endpoints,
        "weight": provider.weight,
        "zone": provider.zone,
        "metadata": metadata,
    })
}

fn as_line(provider: &Provider) -> String {
    let endpoints: Vec<_> = provider.endpoints.iter().map(ToString::to_string).collect();
    format!("{}  {}", provider.node_id, endpoints.join(" "))
}
