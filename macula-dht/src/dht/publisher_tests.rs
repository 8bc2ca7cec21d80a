use macula_wire::SecretKey;

use super::*;
use crate::dht::testing::{contact, local, local_with, signer};

const KEY: ServiceKey = ServiceKey::from_bytes([3; 32]);

fn advertisement() -> Advertisement {
    Advertisement::new(["10.0.0.9:4433".parse().unwrap()])
}

/// A publisher whose lookups find `closest`, each at once.
struct Bench {
    publisher: Publisher<SecretKey>,
    local: Local,
    closest: Vec<Contact>,
    lookups: u64,
    events: Vec<Event>,
}

impl Bench {
    fn new(now: Instant, closest: impl IntoIterator<Item = u16>) -> Self {
        Self {
            publisher: Publisher::new(signer()),
            local: local(now),
            closest: closest.into_iter().map(contact).collect(),
            lookups: 0,
            events: Vec::new(),
        }
    }

    /// Lets time pass until `end`.
    fn run(&mut self, start: Instant, end: Instant, mut answer: impl FnMut(&Contact) -> Option<Outcome>) {
        let mut now = start;
        loop {
            self.drive(now, &mut answer);
            let due = self.publisher.poll_timeout().map(|tick| self.local.clock.instant(tick));
            let Some(due) = due.filter(|due| *due <= end) else {
                break;
            };
            now = due.max(now);
            self.publisher.handle_timeout(&mut self.local, now);
        }
    }

    /// Performs outputs; `answer` is the outcome at a target, or `None` to leave it waiting.
    fn drive(&mut self, now: Instant, mut answer: impl FnMut(&Contact) -> Option<Outcome>) {
        let Self { publisher, local, .. } = self;
        while let Some(output) = publisher.poll_output() {
            match output {
                PublisherOutput::LookUp { job, targets } => {
                    let queries: Vec<_> = (self.lookups..).map(QueryId).take(targets.len()).collect();
                    self.lookups += targets.len() as u64;
                    publisher.handle_lookups(local, now, job, &queries);
                    for (query, target) in queries.into_iter().zip(targets) {
                        let mut lookup = Lookup::new(local.own, target);
                        lookup.add(self.closest.iter().cloned(), 0);
                        while let Some((asked, _)) = lookup.next(|_| false) {
                            lookup.on_answer(asked.node_id());
                        }
                        publisher.handle_lookup_done(local, now, job, query, &lookup, false);
                    }
                }
                PublisherOutput::DropLookup(_) => {}
                PublisherOutput::Store { job, to, .. } => {
                    if let Some(outcome) = answer(&to) {
                        publisher.handle_outcome(local, now, job, to, Some(outcome));
                    }
                }
                PublisherOutput::Event(event) => self.events.push(event),
            }
        }
    }
}

/// One holder is slow, and the service is advertised again before any publication of it has ended.
#[test]
fn a_holder_is_remembered_once_however_often_a_service_is_advertised_anew() {
    let now = Instant::now();
    let mut bench = Bench::new(now, 1..=20);
    let slow = |to: &Contact| (*to != contact(1)).then_some(Outcome::Stored);
    for _ in 0..100 {
        let Bench { publisher, local, .. } = &mut bench;
        publisher.advertise(local, now, KEY, None, advertisement()).unwrap();
        bench.drive(now, slow);
    }
    assert_eq!(bench.publisher.services[&KEY].holders.len(), 19);
    bench.publisher.withdraw(&mut bench.local, now, KEY);
    bench.drive(now, slow);
    assert!(bench.publisher.jobs.values().all(|job| job.former.len() <= 20));
}

#[test]
fn of_many_former_holders_the_latest_are_remembered() {
    let mut known = Vec::new();
    for round in 0..10 {
        remember_holders(&mut known, (100 * round..100 * round + 120).map(contact));
    }
    let latest: Vec<_> = (1020 - MAX_FORMER as u16..1020).map(contact).collect();
    assert_eq!(known, latest);
}

/// D5: a service is published again before its record expires, and not once it is withdrawn.
#[test]
fn d5_a_service_is_published_anew_until_it_is_withdrawn() {
    let start = Instant::now();
    let mut bench = Bench::new(start, 1..=20);
    let Bench { publisher, local, .. } = &mut bench;
    publisher.advertise(local, start, KEY, None, advertisement()).unwrap();
    let mut now = start;
    for _ in 0..3 {
        bench.drive(now, |_| Some(Outcome::Stored));
        let due = bench.publisher.poll_timeout().unwrap();
        now = bench.local.clock.instant(due);
        bench.publisher.handle_timeout(&mut bench.local, now);
    }
    assert_eq!(now - start, 3 * (advertisement().ttl() - REFRESH_AHEAD));
    bench.publisher.withdraw(&mut bench.local, now, KEY);
    bench.drive(now, |_| Some(Outcome::Stored));
    assert_eq!(bench.publisher.poll_timeout(), None);
    let acknowledged = bench.events.iter().map(|event| match event {
        Event::Advertised { acknowledged, .. } | Event::Withdrawn { acknowledged, .. } => *acknowledged,
        other => panic!("{other:?}"),
    });
    // The publication that was under way ended without an event.
    assert_eq!(acknowledged.collect::<Vec<_>>(), [20, 20, 20, 20]);
}

/// A thousand services without a node to publish to end one by one, and the stack does not grow with them.
#[test]
fn services_without_a_mesh_are_due_again() {
    let now = Instant::now();
    let mut bench = Bench::new(now, []);
    for n in 0..1000_u32 {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let Bench { publisher, local, .. } = &mut bench;
        publisher
            .advertise(local, now, ServiceKey::from_bytes(key), None, advertisement())
            .unwrap();
    }
    bench.drive(now, |_| None);
    assert_eq!(bench.events.len() as u64, PACE_BURST + 1, "the rest keeps to the pace");
    let end = now + Duration::from_secs(5);
    bench.run(now, end, |_| None);
    assert_eq!(bench.events.len(), 1000);
    assert!(bench.publisher.jobs.is_empty());
    assert!(bench.publisher.poll_timeout() > Some(bench.local.tick(end)));
}

/// Without room for a lookup a withdrawal goes to the nodes that hold the record.
#[test]
fn a_withdrawal_without_a_lookup_reaches_the_holders() {
    let now = Instant::now();
    let mut bench = Bench::new(now, 1..=5);
    bench.local = local_with(now, 5);
    let Bench { publisher, local, .. } = &mut bench;
    publisher.advertise(local, now, KEY, None, advertisement()).unwrap();
    bench.drive(now, |_| Some(Outcome::Stored));
    let Bench { publisher, local, .. } = &mut bench;
    publisher.withdraw(local, now, KEY);
    let Some(PublisherOutput::LookUp { job, .. }) = publisher.poll_output() else {
        panic!("a withdrawal looks for the closest");
    };
    publisher.handle_lookups(local, now, job, &[]);
    let mut told = Vec::new();
    bench.drive(now, |to| {
        told.push(to.clone());
        Some(Outcome::Stored)
    });
    told.sort_by_key(|to| *to.node_id());
    assert_eq!(told, (1..=5).map(contact).collect::<Vec<_>>());
}
