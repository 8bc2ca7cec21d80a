//! `macula status`: the node that runs here, on one page.

use macula_node::admin::schema::{CallStats, State, StateRequest};

use crate::{
    args::StatusArgs,
    failure::{Failure, print, print_json},
    own::{self, unanswered},
    table::{Look, Table, Tone, age, bytes, count, number, short, state, text, time},
};

pub(crate) async fn run(args: StatusArgs) -> Result<(), Failure> {
    let mut node = own::node(&args.admin).await?;
    let state = node
        .get_state(StateRequest {})
        .await
        .map_err(|status| unanswered(&status))?;
    let state = state.into_inner();
    match args.json {
        true => print_json(&state),
        false => print(&render(&state, Look::of_stdout())),
    }
}

/// The page.
pub(crate) fn render(node: &State, look: Look) -> String {
    let mut page = String::new();
    for (name, value, tone) in facts(node) {
        page += &look.paint(Tone::Heading, &format!("{name:12}"));
        page += &look.paint(tone, &value);
        page.push('\n');
    }
    let mut part = |table: String| {
        page.push('\n');
        page += &table;
    };
    if !node.serves.is_empty() {
        part(served(node).render(look));
    }
    if !node.calls.is_empty() {
        part(called(node).render(look));
    }
    if !node.peers.is_empty() {
        part(peers(node).render(look));
    }
    if node.left_out > 0 {
        part(format!("{} entries had no room\n", node.left_out));
    }
    page
}

/// The lines above the tables.
fn facts(node: &State) -> Vec<(&'static str, String, Tone)> {
    let mut facts = Vec::new();
    let mut fact = |name, value: String, tone| facts.push((name, value, tone));
    let build = node.build.clone().unwrap_or_default();
    fact("node", node.node_id.clone(), Tone::Plain);
    fact("realm", node.realm.clone(), Tone::Plain);
    fact("state", node.phase.clone(), Tone::of_state(&node.phase));
    let access = node.access.clone().unwrap_or_default();
    if !access.revoked.is_empty() {
        let by = match access.revoked == node.node_id {
            true => "this node".to_owned(),
            false => format!("its issuer {}", access.revoked),
        };
        fact("revoked", format!("{by}: it is out of its realm"), Tone::Bad);
    }
    let running = match node.running_calls {
        0 => String::new(),
        calls => format!(", {calls} calls run"),
    };
    let program = format!(
        "macula {}, process {}, up {}{running}",
        build.version,
        node.pid,
        age(node.uptime_ms)
    );
    fact("program", program, Tone::Plain);
    let addresses = node.addresses.clone().unwrap_or_default();
    fact("listens", addresses.listening, Tone::Plain);
    fact("advertises", or_nothing(&addresses.advertised), Tone::Plain);
    for seen in addresses.observed.iter().take(4) {
        fact(
            "seen at",
            format!("{} by {}", seen.address, count(seen.peers, "peer")),
            Tone::Plain,
        );
    }
    let mesh = node.mesh.clone().unwrap_or_default();
    let about = match mesh.estimated_nodes {
        0 => String::new(),
        nodes => format!(", about {nodes} in all"),
    };
    let known = format!("{} known{about}", count(mesh.contacts.len() as u64, "node"));
    match mesh.error.as_str() {
        "" => fact("mesh", known, Tone::Plain),
        error => fact("mesh", format!("{known}; {error}"), Tone::Bad),
    }
    let records = node.records.clone().unwrap_or_default();
    let held = format!(
        "{} of others held ({} of {}), {} published",
        records.held,
        bytes(records.held_bytes),
        bytes(records.max_bytes),
        records.published.len()
    );
    fact("records", held, Tone::Plain);
    let refused = records
        .published
        .iter()
        .flat_map(|own| own.refused.iter().map(move |it| (own, it)));
    for (own, refusal) in refused.take(4) {
        let value = format!("{} by {}: {}", own.service, short(&refusal.node_id), refusal.reason);
        fact("refused", value, Tone::Warning);
    }
    let cache = node.cache.unwrap_or_default();
    let answered = cache.hits + cache.negative_hits + cache.stale;
    let lookups = answered + cache.misses;
    let share = (answered * 100).checked_div(lookups).map_or_else(String::new, |share| {
        format!(", {share} % of {lookups} lookups answered")
    });
    fact(
        "cache",
        format!("{} of {} keys{share}", cache.entries, cache.max_entries),
        Tone::Plain,
    );
    match limits(node) {
        reached if reached.is_empty() => fact("limits", "none reached".to_owned(), Tone::Plain),
        reached => fact("limits", reached.join(", "), Tone::Warning),
    }
    let denied = denied(node);
    if !denied.is_empty() {
        fact("denied", denied.join(", "), Tone::Warning);
    }
    facts
}

/// The limits that were reached, with their counts.
fn limits(node: &State) -> Vec<String> {
    let limits = node.limits.unwrap_or_default();
    let counts = [
        (limits.calls_refused_busy, "calls refused as too many"),
        (limits.calls_refused_draining, "calls refused while draining"),
        (limits.calls_not_served, "calls of services not served here"),
        (limits.rejected_handshakes, "handshakes failed"),
        (limits.rejected_hellos, "peers turned away"),
        (limits.rejected_busy, "peers refused as too many"),
        (limits.rejected_frames, "frames broken"),
        (limits.slow_streams, "streams too slow"),
        (limits.evicted_connections, "connections closed to make room"),
        (limits.rate_limited, "directory requests too fast"),
        (limits.records_refused, "records refused"),
        (limits.handler_panics, "handlers panicked"),
    ];
    not_zero(&counts)
}

/// What had no right, with its counts.
fn denied(node: &State) -> Vec<String> {
    let access = node.access.clone().unwrap_or_default();
    not_zero(&[
        (access.rejected_grants, "peers without a valid grant"),
        (access.grants_ended, "connections ended with their grants"),
        (access.rejected_renewals, "renewed grants not valid"),
        (access.calls_denied, "calls denied by grants"),
        (access.calls_not_admitted, "calls not admitted by services"),
        (access.records_unproven, "records without right"),
        (access.revocations_refused, "revocations not valid"),
        (access.joins_refused, "requests for a grant refused"),
    ])
}

fn not_zero(counts: &[(u64, &str)]) -> Vec<String> {
    let counted = counts.iter().filter(|(count, _)| *count > 0);
    counted.map(|(count, words)| format!("{count} {words}")).collect()
}

fn served(node: &State) -> Table<8> {
    let holders = |service: &str| {
        let records = node.records.as_ref()?;
        records.published.iter().find(|own| own.service == service)
    };
    Table::new(
        [
            "SERVES", "CALLS", "ERRORS", "REFUSED", "RUNNING", "P50", "P99", "HELD BY",
        ],
        node.serves.iter().map(|served| {
            let calls = served.calls.clone().unwrap_or_default();
            let held_by = holders(&served.service).map_or(0, |own| own.acknowledged_by.len());
            [
                text(&served.service),
                number(calls.ok + calls.errors),
                errors(&calls),
                number(calls.refused),
                number(calls.in_flight),
                number(maybe(calls.p50_us)),
                number(maybe(calls.p99_us)),
                number(held_by),
            ]
        }),
    )
}

fn errors(calls: &CallStats) -> crate::table::Cell {
    let tone = if calls.errors > 0 { Tone::Warning } else { Tone::Plain };
    number(calls.errors).toned(tone)
}

fn called(node: &State) -> Table<8> {
    let rows = node.calls.iter().flat_map(|service| {
        let calls = service.calls.clone().unwrap_or_default();
        let whole = [
            text(&service.service),
            text(count(service.providers.len() as u64, "provider")),
            text(""),
            number(calls.ok + calls.errors),
            errors(&calls),
            number(calls.in_flight),
            number(maybe(calls.p50_us)),
            text(budget(service.recent_calls, service.recent_retries)),
        ];
        let each = service.providers.iter().map(|provider| {
            [
                text(format!("  {}", short(&provider.node_id))),
                state(&provider.state),
                state(&provider.link),
                number(provider.recent_ok + provider.recent_failed),
                number(provider.recent_failed),
                number(provider.in_flight),
                number(maybe(provider.latency_us)),
                text(provider.addresses.first().map_or("", String::as_str)),
            ]
        });
        std::iter::once(whole).chain(each).collect::<Vec<_>>()
    });
    Table::new(
        ["CALLS", "STATE", "LINK", "CALLS", "ERRORS", "RUNNING", "LATENCY", "AT"],
        rows,
    )
}

/// The retries of the last ten seconds.
fn budget(calls: u64, retries: u64) -> String {
    match retries {
        0 => String::new(),
        retries => format!("{retries} retries of {calls} calls lately"),
    }
}

fn peers(node: &State) -> Table<8> {
    Table::new(
        ["PEER", "ADDRESS", "STATE", "OPENED BY", "AGE", "RTT", "LOSS", "CALLS"],
        node.peers.iter().map(|peer| {
            let lost = (peer.lost_packets * 1000).checked_div(peer.sent_packets).unwrap_or(0);
            [
                text(short(&peer.node_id)),
                text(&peer.address),
                state(&peer.presence),
                text(&peer.opened_by),
                number(age(peer.age_ms)),
                number(time(peer.rtt_us)),
                number(format!("{}.{} %", lost / 10, lost % 10)),
                number(format!("{} out, {} in", peer.calls_out, peer.calls_in)),
            ]
        }),
    )
}

fn maybe(micros: Option<u64>) -> String {
    micros.map_or_else(|| "-".to_owned(), time)
}

fn or_nothing(list: &[String]) -> String {
    match list {
        [] => "nothing".to_owned(),
        list => list.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn n5_the_page_shows_everything_that_the_node_says() {
        let expected = "\
node        0101010101010101010101010101010101010101010101010101010101010101
realm       shop
state       serving
program     macula 0.1.0, process 7, up 1h 1m, 2 calls run
listens     0.0.0.0:9443
advertises  https://10.0.0.1:9443
seen at     203.0.113.1:9443 by 2 peers
mesh        2 nodes known, about 3 in all
records     12 of others held (4.0 KiB of 64.0 MiB), 1 published
refused     text.upper by 0303030303: the record expired 3600s ago by the node's clock
cache       2 of 65536 keys, 90 % of 100 lookups answered
limits      5 calls refused as too many
denied      7 calls denied by grants, 1 revocations not valid

SERVES      CALLS  ERRORS  REFUSED  RUNNING    P50   P99  HELD BY
text.upper   1010      10        5        2  800µs  12ms        2

CALLS         STATE        LINK  CALLS  ERRORS  RUNNING  LATENCY  AT
text.count    2 providers          501       1        0    1.2ms  3 retries of 40 calls lately
  0202020202  ready        up       30       0        1    1.1ms  https://10.0.0.2:9443
  0303030303  ejected      down     10       9        0        -  https://10.0.0.3:9443

PEER        ADDRESS        STATE      OPENED BY    AGE    RTT   LOSS        CALLS
0202020202  10.0.0.2:9443  up         here       1h 0m  340µs  0.0 %  1 out, 0 in
0303030303  10.0.0.3:9443  suspected  peer         59s  1.9ms  2.5 %  0 out, 2 in
";
        let page = render(&sample::state(), Look::PLAIN);
        assert_eq!(page, expected, "{page}");
    }
}
