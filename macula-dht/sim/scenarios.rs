//! The scenarios, one after another.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use macula_dht::{K, Point, QueryId, QueryResult, Stats, Want};
use macula_wire::{NodeId, ServiceKey};

use crate::{
    cpu_seconds,
    net::{Kind, Net, News},
    report::{Report, mean, number, quantile, text},
};

type Progress<'a> = &'a mut dyn FnMut(usize, usize);
type Scenario = fn(&mut Net, &mut Report, Progress<'_>);

/// In this order: the later ones leave the network worse than they found it.
pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("lookups", lookups),
    ("storage", storage),
    ("withdrawal", withdrawal),
    ("kill", kill),
    ("loss", loss),
    ("joins", joins),
    ("sybils", sybils),
    ("partition", partition),
    ("churn", churn),
    ("colluders", colluders),
    ("deaths", deaths),
];

/// How long a lookup may take.
const PATIENCE: Duration = Duration::from_secs(12);
/// The lookups of one measurement.
const LOOKUPS: usize = 500;

/// The results of lookups.
#[derive(Default)]
struct Tally {
    found: usize,
    asked: usize,
    ms: Vec<f64>,
    hops: Vec<f64>,
    /// Of those that found something.
    found_ms: Vec<f64>,
    messages: Vec<f64>,
}

impl Tally {
    fn success(&self) -> f64 {
        100.0 * self.found as f64 / self.asked.max(1) as f64
    }
}

/// An honest living node.
fn anyone(net: &mut Net) -> usize {
    loop {
        let node = net.rng.below(net.nodes.len());
        if net.kinds[node] == Kind::Honest {
            return node;
        }
    }
}

fn service(net: &mut Net) -> ServiceKey {
    ServiceKey::from_bytes(net.rng.bytes())
}

/// Publishes services, three providers each.
fn publish(net: &mut Net, count: usize, progress: Progress<'_>) -> Vec<ServiceKey> {
    let mut services = Vec::new();
    for done in 0..count {
        let key = service(net);
        for _ in 0..3 {
            let node = anyone(net);
            net.advertise(node, key);
        }
        services.push(key);
        net.run(Duration::from_millis(50));
        progress(done + 1, count);
    }
    net.run(Duration::from_secs(5));
    services
}

/// Looks the services up from anywhere, some at a time.
fn look_up(net: &mut Net, services: &[ServiceKey], count: usize, want: Want) -> Tally {
    net.news.clear();
    let mut tally = Tally {
        asked: count,
        ..Tally::default()
    };
    let mut running: HashMap<(u32, QueryId), ()> = HashMap::new();
    for at in 0..count {
        let node = anyone(net);
        if let Some(query) = net.look_up(node, services[at % services.len()], want) {
            running.insert((node as u32, query), ());
        }
        net.run(Duration::from_millis(20));
    }
    net.run(PATIENCE);
    for (result, stats) in finished(net, &running) {
        if let QueryResult::Found(_) = result {
            tally.found += 1;
            tally.hops.push(stats.hops.into());
            tally.found_ms.push(stats.elapsed.as_secs_f64() * 1e3);
        }
        tally.ms.push(stats.elapsed.as_secs_f64() * 1e3);
        tally.messages.push(stats.messages.into());
    }
    tally
}

fn finished(net: &mut Net, running: &HashMap<(u32, QueryId), ()>) -> Vec<(QueryResult, Stats)> {
    let news = std::mem::take(&mut net.news);
    let ended = news.into_iter().filter_map(|news| match news {
        News::Finished(node, query, result, stats) if running.contains_key(&(node, query)) => Some((result, stats)),
        _ => None,
    });
    ended.collect()
}

fn lookups(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let services = publish(net, 200, progress);
    // The messages of one core while only lookups run: the measure of the simulation's speed.
    let (cpu, before) = (cpu_seconds(), net.messages);
    let (mut exact, mut tally) = (0, Tally::default());
    let mut running = HashMap::new();
    let mut expected = HashMap::new();
    let count = 4 * LOOKUPS;
    for done in 0..count {
        let (node, target) = (anyone(net), Point::from_bytes(&net.rng.bytes()));
        if let Some(query) = net.find_node(node, target) {
            running.insert((node as u32, query), ());
            expected.insert((node as u32, query), target);
        }
        net.run(Duration::from_millis(5));
        progress(done + 1, count);
    }
    net.run(PATIENCE);
    net.lookup_rate = (net.messages - before) as f64 / (cpu_seconds() - cpu);
    for news in std::mem::take(&mut net.news) {
        let News::Finished(node, query, QueryResult::Nodes(nodes), stats) = news else {
            continue;
        };
        if let Some(target) = expected.get(&(node, query)) {
            let mut closest = net.closest(target, K + 1);
            closest.retain(|&n| n != node);
            closest.truncate(K);
            let closest = closest.iter().map(|&n| net.nodes[n as usize].node_id());
            exact += usize::from(nodes.iter().map(|c| c.node_id()).eq(closest));
            tally.hops.push(stats.hops.into());
            tally.messages.push(stats.messages.into());
            tally.ms.push(stats.elapsed.as_secs_f64() * 1e3);
        }
    }
    let mut first = look_up(net, &services, count, Want::First);
    let mut all = look_up(net, &services, LOOKUPS, Want::All);
    let row = |name: &str, tally: &mut Tally, success: f64| {
        vec![
            text(name),
            number(mean(&tally.hops)),
            number(mean(&tally.messages)),
            number(quantile(&mut tally.ms, 0.5)),
            number(quantile(&mut tally.ms, 0.95)),
            number(success),
        ]
    };
    let rows = vec![
        row("find node", &mut tally, 100.0 * exact as f64 / count as f64),
        {
            let s = first.success();
            row("first provider", &mut first, s)
        },
        {
            let s = all.success();
            row("all providers", &mut all, s)
        },
    ];
    let columns = ["lookup", "hops", "messages", "p50 ms", "p95 ms", "exact or found, %"];
    report.table("lookups", &columns, rows);
    // The median of a mixture of one, two and three steps says less than its parts.
    let rows = [0.0, 1.0, 2.0, 3.0, 4.0].into_iter().filter_map(|hop| {
        let of_hop = first.hops.iter().zip(&first.found_ms).filter(|(hops, _)| **hops == hop);
        let mut ms: Vec<_> = of_hop.map(|(_, ms)| *ms).collect();
        let share = 100.0 * ms.len() as f64 / first.hops.len() as f64;
        let row = |ms: &mut [f64]| {
            vec![
                number(hop),
                number(share),
                number(quantile(ms, 0.5)),
                number(quantile(ms, 0.95)),
            ]
        };
        (!ms.is_empty()).then(|| row(&mut ms))
    });
    let columns = ["hops", "of the lookups, %", "p50 ms", "p95 ms"];
    report.table("first provider, by the hops it took", &columns, rows.collect());
    let series = |tally: &mut Tally| {
        (0..=20)
            .map(|i| (quantile(&mut tally.ms, f64::from(i) / 20.0), f64::from(i) * 5.0))
            .collect()
    };
    let series = [
        ("find node", series(&mut tally)),
        ("first provider", series(&mut first)),
        ("all providers", series(&mut all)),
    ];
    report.plot(
        "dht-latency",
        "How long lookups take",
        "ms",
        "% of lookups done",
        &series,
    );
    let size = mean(&net.nodes.iter().filter_map(|n| n.network_size()).collect::<Vec<_>>());
    report.note(format!(
        "The nodes that have looked around estimate {size:.0} nodes on average."
    ));
}

fn storage(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    // By rights: which nodes are the k closest of each of many keys. Publishing them all would show the same more slowly.
    let count = 20 * net.nodes.len().min(20_000);
    let mut load = vec![0.0; net.nodes.len()];
    for done in 0..count {
        let key = Point::from_bytes(&net.rng.bytes());
        for node in net.closest(&key, K) {
            load[node as usize] += 1.0;
        }
        progress(done + 1, count);
    }
    let average = mean(&load);
    let deviation = mean(&load.iter().map(|l| (l - average).powi(2)).collect::<Vec<_>>()).sqrt();
    let most = quantile(&mut load, 1.0);
    let held = net.nodes.iter().map(|n| n.store().usage().records).sum::<usize>();
    let sizes: Vec<_> = net.nodes.iter().map(|n| n.table().len() as f64).collect();
    let rows = vec![
        vec![
            text("records a key's worth: coefficient of variation"),
            number(deviation / average),
        ],
        vec![text("most loaded node, times the mean"), number(most / average)],
        vec![text("records held in the network now"), number(held as f64)],
        vec![text("contacts a table, mean"), number(mean(&sizes))],
        vec![
            text("contacts a table, least"),
            number(quantile(&mut sizes.clone(), 0.0)),
        ],
    ];
    report.table("storage skew and table health", &["measure", "value"], rows);
}

fn withdrawal(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let (mut took, mut acknowledged, mut shown) = (Vec::new(), Vec::new(), 0);
    let count = 50;
    for done in 0..count {
        let (key, node) = (service(net), anyone(net));
        net.advertise(node, key);
        net.run(Duration::from_secs(3));
        net.news.clear();
        let start = net.now;
        net.withdraw(node, key);
        net.run(Duration::from_secs(3));
        for news in std::mem::take(&mut net.news) {
            if let News::Withdrawn {
                node: n,
                acknowledged: a,
                at,
            } = news
                && n as usize == node
            {
                took.push((at - start).as_secs_f64() * 1e3);
                acknowledged.push(a as f64);
            }
        }
        shown += look_up(net, &[key], 5, Want::First).found;
        progress(done + 1, count);
    }
    let rows = vec![
        vec![
            text("until every holder has it, p50 ms"),
            number(quantile(&mut took, 0.5)),
        ],
        vec![
            text("until every holder has it, p99 ms"),
            number(quantile(&mut took, 0.99)),
        ],
        vec![text("holders that acknowledged, mean"), number(mean(&acknowledged))],
        vec![
            text("lookups afterwards that still show it, %"),
            number(100.0 * shown as f64 / (5 * count) as f64),
        ],
    ];
    report.table("withdrawal", &["measure", "value"], rows);
}

fn kill(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let (mut victims, mut published) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let (key, node) = (service(net), anyone(net));
        net.advertise(node, key);
        victims.push((node, key));
        published.push(net.now);
        net.run(Duration::from_secs(3));
    }
    for (node, _) in &victims {
        net.kinds[*node] = Kind::Dead;
    }
    // Published again every 240 s, so each just once until now.
    let issued: Vec<_> = published.iter().map(|at| -(net.now - *at).as_secs_f64()).collect();
    let start = net.now;
    net.news.clear();
    // Every second a node looks each of them up, until long after the last record is due.
    let mut asked: HashMap<(u32, QueryId), (usize, f64)> = HashMap::new();
    let seconds = 310;
    for step in 0..seconds {
        let at = (net.now - start).as_secs_f64();
        for (victim, (_, key)) in victims.iter().enumerate() {
            let node = anyone(net);
            if let Some(query) = net.look_up(node, *key, Want::First) {
                asked.insert((node as u32, query), (victim, at));
            }
        }
        net.run(Duration::from_secs(1));
        progress(step + 1, seconds);
    }
    net.run(PATIENCE);
    // When each was last asked for with success, and how many were at each time.
    let mut last = vec![0.0_f64; victims.len()];
    let mut shown = vec![0_usize; seconds];
    for news in std::mem::take(&mut net.news) {
        if let News::Finished(node, query, QueryResult::Found(_), _) = news
            && let Some(&(victim, at)) = asked.get(&(node, query))
        {
            last[victim] = last[victim].max(at);
            shown[at.round() as usize] += 1;
        }
    }
    let curve: Vec<_> = (0_u32..)
        .zip(&shown)
        .map(|(at, &shown)| (at.into(), 100.0 * shown as f64 / victims.len() as f64))
        .collect();
    let validity = issued.iter().zip(&last).map(|(issued, last)| last - issued);
    let rows = vec![
        vec![
            text("half of the killed are no longer shown after, s"),
            number(quantile(&mut last.clone(), 0.5)),
        ],
        vec![
            text("a killed one was last shown after, s (asked every second)"),
            number(quantile(&mut last.clone(), 1.0)),
        ],
        vec![
            text("the oldest record shown, s since it was published"),
            number(validity.fold(0.0, f64::max)),
        ],
        vec![text("bound: the record's validity, s"), number(300.0)],
    ];
    report.table("staleness after a kill", &["measure", "value"], rows);
    report.plot(
        "dht-staleness",
        "Killed providers still shown",
        "s after the kill",
        "%",
        &[("shown", curve)],
    );
}

fn loss(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let services = publish(net, 50, &mut |_, _| {});
    let mut rows = Vec::new();
    for (done, loss) in [0.05, 0.2].into_iter().enumerate() {
        net.loss = loss;
        let mut tally = look_up(net, &services, LOOKUPS, Want::First);
        let mut all = look_up(net, &services, LOOKUPS, Want::All);
        rows.push(vec![
            number(loss * 100.0),
            number(tally.success()),
            number(quantile(&mut tally.ms, 0.95)),
            number(all.success()),
            number(quantile(&mut all.ms, 0.95)),
        ]);
        net.loss = 0.0;
        progress(done + 1, 2);
    }
    report.table(
        "message loss",
        &["lost, %", "first found, %", "p95 ms", "all found, %", "p95 ms, all"],
        rows,
    );
}

fn joins(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let services = publish(net, 100, &mut |_, _| {});
    let count = (net.nodes.len() / 20).clamp(20, 500);
    let mut newcomers = Vec::new();
    for done in 0..count {
        let node = net.add();
        let through = anyone(net);
        net.join(node, through);
        newcomers.push(node);
        net.run(Duration::from_millis(100));
        progress(done + 1, count);
    }
    net.run(Duration::from_secs(15));
    let messages = mean(
        &newcomers
            .iter()
            .map(|&n| net.nodes[n].counters().sent as f64)
            .collect::<Vec<_>>(),
    );
    net.sort();
    let joined = net.news.iter().filter(|news| matches!(news, News::Joined)).count();
    let (mut should, mut hold) = (0, 0);
    for key in &services {
        for node in net.closest(&key.into(), K) {
            if newcomers.contains(&(node as usize)) {
                should += 1;
                hold += usize::from(net.nodes[node as usize].store().get(net.now, key).next().is_some());
            }
        }
    }
    let sizes: Vec<_> = newcomers.iter().map(|&n| net.nodes[n].table().len() as f64).collect();
    let handed: u64 = net.nodes.iter().map(|n| n.counters().handed_over).sum();
    let found = look_up(net, &services, LOOKUPS, Want::First).success();
    let rows = vec![
        vec![text("newcomers"), number(count as f64)],
        vec![text("joined"), number(joined as f64)],
        vec![text("requests a newcomer sent, mean"), number(messages)],
        vec![text("contacts of a newcomer after 15 s, mean"), number(mean(&sizes))],
        vec![text("places among the k closest they took"), number(should as f64)],
        vec![
            text("of these, records handed over before the next round, %"),
            number(100.0 * hold as f64 / should.max(1) as f64),
        ],
        vec![text("records handed over in all"), number(handed as f64)],
        vec![text("found afterwards, %"), number(found)],
    ];
    report.table("joins and hand-over", &["measure", "value"], rows);
}

fn sybils(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let mut rows = Vec::new();
    // A large network takes long to simulate, and shows the same.
    let trials = if net.nodes.len() > 20_000 { 3 } else { 10 };
    for (round, count) in [20, 50, 100].into_iter().enumerate() {
        let (mut found, mut asked, mut honest) = (0, 0, Vec::new());
        for trial in 0..trials {
            let key = service(net);
            let point = Point::from(&key).to_bytes();
            let first = net.nodes.len();
            for n in 0..count {
                // The id is the key's but for its end: closer than any honest node by far.
                let mut id = point;
                id[30..].copy_from_slice(&(n as u16 + 1).to_be_bytes());
                net.add_sybil(NodeId::from_bytes(id));
            }
            net.sort();
            // They are known to those around the key, as if they had been there for long.
            let around: Vec<_> = net
                .closest(&(&key).into(), 200)
                .into_iter()
                .map(|n| n as usize)
                .collect();
            for node in around {
                if net.kinds[node] == Kind::Honest {
                    for n in 0..K {
                        net.introduce(node, first + n);
                    }
                }
            }
            let provider = anyone(net);
            // A node that has been around has looked around.
            acclimatise(net, provider);
            net.advertise(provider, key);
            net.run(Duration::from_secs(8));
            let held =
                (0..first).filter(|&n| n != provider && net.nodes[n].store().get(net.now, &key).next().is_some());
            honest.push(held.count() as f64);
            let tally = look_up_experienced(net, key, 10);
            found += tally.found;
            asked += tally.asked;
            for n in first..net.nodes.len() {
                net.kinds[n] = Kind::Dead;
            }
            net.sort();
            progress(round * trials + trial + 1, 3 * trials);
        }
        rows.push(vec![
            number(count as f64),
            number(mean(&honest)),
            number(100.0 * honest.iter().filter(|&&n| n > 0.0).count() as f64 / honest.len() as f64),
            number(100.0 * found as f64 / f64::from(asked as u32)),
        ]);
    }
    let columns = [
        "Sybils next to the key",
        "honest holders, mean",
        "publications that survive, %",
        "lookups that find it, %",
    ];
    report.table("Sybils ground to surround a key", &columns, rows);
}

/// Lets a node look around, as it would in its first hours.
fn acclimatise(net: &mut Net, node: usize) {
    for _ in 0..10 {
        let target = Point::from_bytes(&net.rng.bytes());
        net.find_node(node, target);
    }
    net.run(Duration::from_secs(4));
}

/// Looks a key up from nodes that have been around.
fn look_up_experienced(net: &mut Net, key: ServiceKey, count: usize) -> Tally {
    let mut running = HashMap::new();
    let nodes: Vec<_> = (0..count).map(|_| anyone(net)).collect();
    for _ in 0..10 {
        for &node in &nodes {
            let target = Point::from_bytes(&net.rng.bytes());
            net.find_node(node, target);
        }
    }
    net.run(Duration::from_secs(4));
    net.news.clear();
    for node in nodes {
        if let Some(query) = net.look_up(node, key, Want::First) {
            running.insert((node as u32, query), ());
        }
    }
    net.run(PATIENCE);
    let found = finished(net, &running)
        .iter()
        .filter(|(r, _)| matches!(r, QueryResult::Found(_)))
        .count();
    Tally {
        asked: count,
        found,
        ..Tally::default()
    }
}

fn partition(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let services = publish(net, 50, &mut |_, _| {});
    for node in 0..net.nodes.len() {
        net.side[node] = net.rng.below(2) == 0;
    }
    let mut curve = Vec::new();
    let mut at = 0.0;
    let mut measure = |net: &mut Net, at: &mut f64| {
        *at += 15.0;
        curve.push((*at, look_up(net, &services, 200, Want::First).success()));
    };
    for step in 0..8 {
        measure(net, &mut at);
        progress(step + 1, 16);
    }
    net.side.fill(false);
    for step in 8..16 {
        measure(net, &mut at);
        progress(step + 1, 16);
    }
    let cut: Vec<_> = curve[..8].iter().map(|(_, s)| *s).collect();
    let healed: Vec<_> = curve[8..].iter().map(|(_, s)| *s).collect();
    let rows = vec![
        vec![text("found while the network is cut in two, %"), number(mean(&cut))],
        vec![
            text("found in the first quarter minute after it healed, %"),
            number(healed[0]),
        ],
        vec![text("found from then on, %"), number(mean(&healed[1..]))],
    ];
    report.table("partition and heal", &["measure", "value"], rows);
    report.plot(
        "dht-partition",
        "A network cut in two, and healed",
        "s",
        "% found",
        &[("found", curve)],
    );
}

fn churn(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let services = publish(net, 100, &mut |_, _| {});
    // A tenth of the network comes and goes; sessions are Pareto distributed with a median of five minutes.
    let count = (net.nodes.len() / 10).min(1000);
    let session = |net: &mut Net| {
        Duration::from_secs_f64(150.0 / net.rng.unit().max(1e-3).powf(1.0)).min(Duration::from_secs(7200))
    };
    let mut leaving: Vec<(Instant, usize)> = Vec::new();
    let (mut left, mut joined) = (0, 0);
    for _ in 0..count {
        let node = anyone(net);
        let end = net.now + session(net);
        leaving.push((end, node));
    }
    let mut curve = Vec::new();
    let (start, steps) = (net.now, 40);
    for step in 0..steps {
        let due: Vec<_> = leaving.extract_if(.., |(at, _)| *at <= net.now).collect();
        for (_, node) in due {
            net.kinds[node] = Kind::Dead;
            left += 1;
            let newcomer = net.add();
            let through = anyone(net);
            net.join(newcomer, through);
            joined += 1;
            let end = net.now + session(net);
            leaving.push((end, newcomer));
        }
        net.run(Duration::from_secs(15));
        let tally = look_up(net, &services, 50, Want::First);
        curve.push(((net.now - start).as_secs_f64(), tally.success()));
        progress(step + 1, steps);
    }
    let success: Vec<_> = curve.iter().map(|(_, s)| *s).collect();
    let rows = vec![
        vec![text("nodes that left without a word"), number(f64::from(left))],
        vec![text("nodes that joined"), number(f64::from(joined))],
        vec![text("found, mean %"), number(mean(&success))],
        vec![
            text("found, worst quarter minute %"),
            number(quantile(&mut success.clone(), 0.0)),
        ],
    ];
    report.table("churn, heavy-tailed sessions", &["measure", "value"], rows);
    report.plot("dht-churn", "Lookups under churn", "s", "% found", &[("found", curve)]);
    net.sort();
}

fn colluders(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let services = publish(net, 100, &mut |_, _| {});
    let mut rows = Vec::new();
    for (done, share) in [0.2, 0.3, 0.5].into_iter().enumerate() {
        // From honest to colluding, keeping the nodes that have already changed.
        let living: Vec<_> = (0..net.nodes.len()).filter(|&n| net.kinds[n] != Kind::Dead).collect();
        let mut missing =
            (share * living.len() as f64) as usize - living.iter().filter(|&&n| net.kinds[n] == Kind::Colluder).count();
        while missing > 0 {
            let node = anyone(net);
            net.kinds[node] = Kind::Colluder;
            missing -= 1;
        }
        net.sort();
        let mut tally = look_up(net, &services, LOOKUPS, Want::First);
        rows.push(vec![
            number(share * 100.0),
            number(tally.success()),
            number(mean(&tally.messages)),
            number(quantile(&mut tally.ms, 0.5)),
            number(quantile(&mut tally.ms, 0.95)),
        ]);
        progress(done + 1, 3);
    }
    report.table(
        "colluding nodes",
        &["colluding, %", "found, %", "messages", "p50 ms", "p95 ms"],
        rows,
    );
    for kind in &mut net.kinds {
        *kind = if *kind == Kind::Colluder { Kind::Honest } else { *kind };
    }
    net.sort();
}

fn deaths(net: &mut Net, report: &mut Report, progress: Progress<'_>) {
    let services = publish(net, 200, &mut |_, _| {});
    let living: Vec<_> = (0..net.nodes.len()).filter(|&n| net.kinds[n] == Kind::Honest).collect();
    let mut rows = Vec::new();
    for (done, share) in [0.25, 0.5, 0.75, 0.9].into_iter().enumerate() {
        while net.kinds.iter().filter(|&&kind| kind == Kind::Honest).count()
            > ((1.0 - share) * living.len() as f64) as usize
        {
            let node = anyone(net);
            net.kinds[node] = Kind::Dead;
        }
        // The dead do not publish again, and there is no time to repair anything.
        let mut tally = look_up(net, &services, LOOKUPS.min(net.nodes.len() / 20).max(50), Want::First);
        rows.push(vec![
            number(share * 100.0),
            number(tally.success()),
            number(quantile(&mut tally.ms, 0.5)),
            number(quantile(&mut tally.ms, 0.95)),
        ]);
        progress(done + 1, 4);
    }
    report.table(
        "dead at once, unrepaired",
        &["dead, %", "found, %", "p50 ms", "p95 ms"],
        rows,
    );
}
