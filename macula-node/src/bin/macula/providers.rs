//! `macula providers`.

use std::time::Duration;

use futures::future::join_all;
use macula_node::{CallError, Node, ProviderRecord};
use serde_json::json;

use crate::{
    args::ProvidersArgs,
    failure::{Failure, cause_first, print, print_line},
    health, mesh,
    table::{Cell, Look, Table, number, state, text},
};

/// How long the answer of a provider to the question for its state is waited for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// A provider and its state.
struct Listed {
    record: ProviderRecord,
    state: &'static str,
}

pub(crate) async fn run(args: ProvidersArgs) -> Result<(), Failure> {
    let node = mesh::client(&args.reach, None).await?;
    let listed = list(&node, &args).await;
    node.shutdown().await;
    let listed = listed?;
    if args.json {
        let list: Vec<_> = listed.iter().map(Listed::as_json).collect();
        print_line(json!({ "service": args.service.as_str(), "providers": list }))?;
    } else if !listed.is_empty() {
        print(&table(&listed).render(Look::of_stdout()))?;
    }
    match listed.is_empty() {
        false => Ok(()),
        true if args.json => Err(Failure::shown(3)),
        true => Err(CallError::ServiceNotFound { service: args.service }.into()),
    }
}

async fn list(node: &Node, args: &ProvidersArgs) -> Result<Vec<Listed>, Failure> {
    let records = node.records(&args.service).await;
    let records = records.map_err(|error| Failure::other(cause_first(&error)))?;
    let asked = records.into_iter().map(async |record| {
        let provider = record.provider.clone();
        let state = health::state(node, provider, args.service.as_str(), ANSWERS_WITHIN).await;
        Listed { record, state }
    });
    Ok(join_all(asked).await)
}

/// A line for each provider.
fn table(listed: &[Listed]) -> Table<5> {
    Table::new(
        ["NODE", "STATE", "AGE", "ZONE", "ADDRESSES"],
        listed.iter().map(Listed::as_row),
    )
}

impl Listed {
    fn addresses(&self) -> Vec<String> {
        self.record.provider.endpoints.iter().map(ToString::to_string).collect()
    }

    fn as_row(&self) -> [Cell; 5] {
        let provider = &self.record.provider;
        [
            text(provider.node_id.to_string()),
            state(self.state),
            number(format!("{}s", self.record.age.as_secs())),
            text(provider.zone.as_deref().unwrap_or("-")),
            text(self.addresses().join(" ")),
        ]
    }

    fn as_json(&self) -> serde_json::Value {
        let provider = &self.record.provider;
        let metadata: serde_json::Map<_, _> = provider
            .metadata
            .iter()
            .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned().into()))
            .collect();
        json!({
            "node_id": provider.node_id.to_string(),
            "endpoints": self.addresses(),
            "state": self.state,
            "age_secs": self.record.age.as_secs(),
            "ttl_secs": self.record.ttl.as_secs(),
            "weight": provider.weight,
            "zone": provider.zone,
            "metadata": metadata,
        })
    }
}
