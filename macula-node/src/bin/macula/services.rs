//! `macula services`: the services of the realm, with their providers and zones.
//!
//! A record lies under the hash of its service's name, so no node can list the names. Each node is asked for those that it serves, by
//! server reflection; the records of each name then give all of its providers. A service that only nodes serve which are not known here
//! is not found, so a few lookups make more nodes known first.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt as _, future, stream};
use macula_node::{Channel, Node, NodeId, Provider, ServiceName};
use serde::Serialize;
use tonic::Code;

use crate::{
    args::ServicesArgs,
    failure::{Failure, print, print_json, say},
    health, mesh,
    table::{Look, Table, count, number, text},
};

/// Lookups that find nodes to ask. One passes most nodes of a small mesh.
const LOOKUPS: usize = 4;
/// Nodes asked, and services looked up, at a time.
const AT_A_TIME: usize = 32;
/// Nodes asked at most, the closest first.
const MAX_NODES: usize = 1024;
/// Services shown at most.
const MAX_SERVICES: usize = 4096;
/// How long a node's answer is waited for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// The services of a realm.
#[derive(Debug, Serialize)]
struct Shown {
    services: Vec<Service>,
    /// Nodes that were asked, those of them that did not answer, and those that did not let this command ask.
    asked: usize,
    silent: usize,
    denied: usize,
}

/// A service and its providers.
#[derive(Debug, Serialize)]
struct Service {
    service: String,
    providers: usize,
    /// The zones of its providers with their numbers; those without a zone are under the empty name.
    zones: BTreeMap<String, usize>,
}

pub(crate) async fn run(args: ServicesArgs) -> Result<(), Failure> {
    let node = mesh::client(&args.reach, None).await?;
    let shown = survey(&node).await;
    node.shutdown().await;
    let answered = shown.asked - shown.silent - shown.denied;
    if args.json {
        print_json(&shown)?;
        return match answered {
            0 => Err(Failure::shown(1)),
            _ => Ok(()),
        };
    }
    if shown.denied > 0 {
        let (denied, asked) = (count(shown.denied as u64, "node"), shown.asked);
        say(&format!(
            "{denied} of {asked} did not let this command ask: its grant, or their list, does not allow grpc.reflection.v1.ServerReflection"
        ));
    }
    if answered == 0 {
        return Err(Failure::other(format!(
            "none of the {} known said what it serves",
            count(shown.asked as u64, "node")
        )));
    }
    if shown.silent > 0 {
        let (silent, asked) = (count(shown.silent as u64, "node"), shown.asked);
        say(&format!(
            "{silent} of {asked} did not answer; their services may be missing"
        ));
    }
    if shown.services.is_empty() {
        say(&format!(
            "no service is served by the {} known",
            count(shown.asked as u64, "node")
        ));
        return Ok(());
    }
    print(&table(&shown).render(Look::of_stdout()))
}

/// Finds nodes: a lookup of any name asks nodes on the way to its key, and these are known then.
async fn explore(node: &Node) {
    let lookups = (0..LOOKUPS).filter_map(|at| format!("macula.survey.{at}").parse::<ServiceName>().ok());
    let lookups = lookups.map(|name| async move { node.records(&name).await });
    // What they find is nothing; where they pass is the point.
    let _ = future::join_all(lookups).await;
}

async fn survey(node: &Node) -> Shown {
    explore(node).await;
    let state = node.state().await;
    // Clients are in no routing table, and serve all the same.
    let connected = state.connections.iter().filter(|it| !it.peer.endpoints.is_empty());
    let connected = connected.map(|it| Provider::new(it.peer.node_id, it.peer.endpoints.iter().cloned()));
    let contacts = state.directory.contacts.iter();
    let contacts = contacts.map(|it| Provider::new(*it.node_id(), it.endpoints().iter().cloned()));
    let known: BTreeMap<NodeId, Provider> = contacts.chain(connected).map(|it| (it.node_id, it)).collect();
    let asked = known.len().min(MAX_NODES);
    let answers = stream::iter(known.into_values().take(MAX_NODES)).map(async |provider| {
        let channel = Channel::new(node.client().clone())
            .with_provider(provider)
            .with_timeout(ANSWERS_WITHIN);
        health::list(&channel).await
    });
    let answers: Vec<_> = answers.buffer_unordered(AT_A_TIME).collect().await;
    let failed = || answers.iter().filter_map(|answer| answer.as_ref().err());
    let denied = failed()
        .filter(|status| status.code() == Code::PermissionDenied)
        .count();
    let silent = failed().count() - denied;
    let names: BTreeSet<ServiceName> = answers
        .into_iter()
        .flatten()
        .flatten()
        // The services about a node itself are no services of the mesh.
        .filter(|name| !name.starts_with("grpc."))
        .filter_map(|name| name.parse().ok())
        .collect();
    let looked_up = stream::iter(names.into_iter().take(MAX_SERVICES)).map(async |name| {
        let records = node.records(&name).await.unwrap_or_default();
        let mut zones = BTreeMap::new();
        for record in &records {
            *zones
                .entry(record.provider.zone.clone().unwrap_or_default())
                .or_default() += 1;
        }
        Service {
            service: name.to_string(),
            providers: records.len(),
            zones,
        }
    });
    Shown {
        services: looked_up.buffered(AT_A_TIME).collect().await,
        asked,
        silent,
        denied,
    }
}

fn table(shown: &Shown) -> Table<3> {
    let rows = shown.services.iter().map(|service| {
        let zones = service.zones.iter().map(|(zone, count)| match zone.as_str() {
            "" => format!("-={count}"),
            zone => format!("{zone}={count}"),
        });
        let zones: Vec<_> = zones.collect();
        [text(&service.service), number(service.providers), text(zones.join(" "))]
    });
    Table::new(["SERVICE", "PROVIDERS", "ZONES"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_one_line_with_its_zones() {
        let service = |name: &str, zones: &[(&str, usize)]| Service {
            service: name.to_owned(),
            providers: zones.iter().map(|(_, count)| count).sum(),
            zones: zones.iter().map(|(zone, count)| ((*zone).to_owned(), *count)).collect(),
        };
        let shown = Shown {
            services: vec![
                service("shop.cart", &[("", 1), ("eu-west", 2)]),
                service("text.upper", &[("eu-west", 12)]),
            ],
            asked: 3,
            silent: 0,
            denied: 0,
        };
        let expected = "\
SERVICE     PROVIDERS  ZONES
shop.cart           3  -=1 eu-west=2
text.upper         12  eu-west=12
";
        assert_eq!(table(&shown).render(Look::PLAIN), expected);
    }
}
