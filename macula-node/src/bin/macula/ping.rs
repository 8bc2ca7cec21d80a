//! `macula ping`: how far a node is, or each provider of a service, and how long its handler takes.
//!
//! A ping is a call of gRPC's health service at that very node: it takes the same path as every call. The path's round trip is QUIC's own
//! measure, so the rest of a ping's time is the peer's handler and both sides' work.

use std::time::{Duration, Instant};

use futures::future::join_all;
use macula_node::{CallError, Channel, Node, Provider};
use serde::Serialize;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    args::{PingArgs, PingTarget},
    failure::{Failure, cause_first, error_line, print, print_json},
    mesh,
    signals::Signals,
    table::{Look, Table, Tone, number, state, text, time},
};

/// The answer of one node.
#[derive(Debug, Default, Serialize)]
struct Pinged {
    node_id: String,
    /// The address that answered.
    address: Option<String>,
    /// From the first packet until both sides had accepted the connection; absent when it was open already.
    handshake_us: Option<u64>,
    /// The path's round trip, as QUIC measures it, after the last ping.
    round_trip_us: Option<u64>,
    pings: Vec<Ping>,
    /// Why there is no answer.
    error: Option<String>,
}

/// One ping.
#[derive(Debug, Serialize)]
struct Ping {
    /// `SERVING` and the other words of gRPC's health, or `error`.
    status: String,
    /// From the request until the answer.
    total_us: u64,
    /// This without the path's round trip.
    handler_us: u64,
    /// The error, if it is one.
    error: Option<String>,
}

pub(crate) async fn run(args: PingArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let work = async {
        let (providers, service) = targets(&args).await?;
        // It has no connection yet, so each ping shows a handshake.
        let node = mesh::alone(&args.reach).await?;
        let pings = providers.iter().map(|provider| ping(&node, &args, provider, &service));
        let pinged = join_all(pings).await;
        node.shutdown().await;
        Ok::<_, Failure>(pinged)
    };
    let pinged = tokio::select! {
        pinged = work => pinged?,
        ended = signals.next() => return Err(ended),
    };
    match args.json {
        true => pinged.iter().try_for_each(print_json)?,
        false => print(&table(&pinged).render(Look::of_stdout()))?,
    }
    match pinged.iter().all(Pinged::answered) {
        true => Ok(()),
        false => Err(Failure::shown(1)),
    }
}

/// The nodes to ping, and the service whose health they are asked for.
async fn targets(args: &PingArgs) -> Result<(Vec<Provider>, String), Failure> {
    match &args.target {
        PingTarget::Node(at) => {
            let provider = at.node_id.map(|id| Provider::new(id, [at.endpoint.clone()]));
            Ok((provider.into_iter().collect(), String::new()))
        }
        PingTarget::Service(name) => {
            let node = mesh::client(&args.reach, None).await?;
            let found = node.lookup(name).await;
            node.shutdown().await;
            let found = found.map_err(|error| Failure::other(cause_first(&error)))?;
            if found.is_empty() {
                let service = name.clone();
                return Err(CallError::ServiceNotFound { service }.into());
            }
            Ok((found.to_vec(), name.to_string()))
        }
    }
}

async fn ping(node: &Node, args: &PingArgs, provider: &Provider, service: &str) -> Pinged {
    let mut pinged = Pinged {
        node_id: provider.node_id.to_string(),
        ..Pinged::default()
    };
    match tokio::time::timeout(args.timeout, node.reach(provider)).await {
        Err(_) => pinged.error = Some(format!("it did not answer within {:?}", args.timeout)),
        Ok(Err(error)) => pinged.error = Some(error_line(&error)),
        Ok(Ok(reached)) => {
            pinged.address = Some(reached.peer.remote_addr.to_string());
            pinged.handshake_us = reached.handshake.map(micros);
            let channel = Channel::new(node.client().clone())
                .with_provider(provider.clone())
                .with_timeout(args.timeout);
            for number in 0..args.count {
                if number > 0 {
                    tokio::time::sleep(args.interval).await;
                }
                let (status, total, error) = ask(&channel, service).await;
                let round_trip = node
                    .reach(provider)
                    .await
                    .map_or(reached.round_trip, |now| now.round_trip);
                pinged.round_trip_us = Some(micros(round_trip));
                pinged.pings.push(Ping {
                    status,
                    total_us: micros(total),
                    handler_us: micros(total.saturating_sub(round_trip)),
                    error,
                });
            }
        }
    }
    pinged
}

async fn ask(channel: &Channel, service: &str) -> (String, Duration, Option<String>) {
    let service = service.to_owned();
    let start = Instant::now();
    let answer = HealthClient::new(channel.clone())
        .check(HealthCheckRequest { service })
        .await;
    let total = start.elapsed();
    match answer {
        Ok(answer) => (answer.into_inner().status().as_str_name().to_owned(), total, None),
        Err(status) => ("error".to_owned(), total, Some(status.message().to_owned())),
    }
}

impl Pinged {
    fn answered(&self) -> bool {
        self.error.is_none() && self.pings.iter().all(|ping| ping.error.is_none())
    }
}

fn table(pinged: &[Pinged]) -> Table<7> {
    let maybe = |micros: Option<u64>| number(micros.map_or_else(|| "-".to_owned(), time));
    let rows = pinged.iter().flat_map(|node| {
        let row = |said: crate::table::Cell, total: Option<u64>, handler: Option<u64>| {
            [
                text(&node.node_id),
                said,
                maybe(total),
                maybe(node.round_trip_us),
                maybe(handler),
                maybe(node.handshake_us),
                text(node.address.as_deref().unwrap_or("-")),
            ]
        };
        let whole = node
            .error
            .iter()
            .map(|error| row(text(error).toned(Tone::Bad), None, None));
        let pings = node.pings.iter().map(|ping| {
            let said = match &ping.error {
                Some(error) => text(error).toned(Tone::Bad),
                None => state(&ping.status),
            };
            row(said, Some(ping.total_us), Some(ping.handler_us))
        });
        whole.chain(pings).collect::<Vec<_>>()
    });
    Table::new(
        ["NODE", "STATE", "TOTAL", "ROUND TRIP", "HANDLER", "HANDSHAKE", "AT"],
        rows,
    )
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_one_line_and_a_node_that_does_not_answer_says_why() {
        let pinged = [
            Pinged {
                node_id: "02".repeat(5),
                address: Some("10.0.0.2:9443".to_owned()),
                handshake_us: Some(2_100),
                round_trip_us: Some(340),
                pings: vec![Ping {
                    status: "SERVING".to_owned(),
                    total_us: 410,
                    handler_us: 70,
                    error: None,
                }],
                error: None,
            },
            Pinged {
                node_id: "03".repeat(5),
                error: Some("it did not answer within 3s".to_owned()),
                ..Pinged::default()
            },
        ];
        let expected = "\
NODE        STATE                        TOTAL  ROUND TRIP  HANDLER  HANDSHAKE  AT
0202020202  SERVING                      410µs       340µs     70µs      2.1ms  10.0.0.2:9443
0303030303  it did not answer within 3s      -           -        -          -  -
";
        assert_eq!(table(&pinged).render(Look::PLAIN), expected);
        assert!(pinged[0].answered() && !pinged[1].answered());
    }
}
