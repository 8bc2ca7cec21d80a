//! Sequences of newcomers, answers and failures: the closest are those that brute force finds.
#![no_main]

use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use macula_dht::{Contact, Diversity, K, Point, RoutingTable};
use macula_wire::NodeId;

#[derive(Debug, Arbitrary)]
enum Step {
    Insert { prefix: [u8; 3], ip: Option<[u8; 2]> },
    Answer { prefix: [u8; 3] },
    Fail { prefix: [u8; 3] },
    Wait { seconds: u16 },
    Closest { target: [u8; 3], count: u8 },
}

fn id(prefix: [u8; 3]) -> NodeId {
    let mut id = [0; 32];
    id[..3].copy_from_slice(&prefix);
    NodeId::from_bytes(id)
}

fuzz_target!(|steps: Vec<Step>| {
    let mut now = Instant::now();
    let own = NodeId::from_bytes([0; 32]);
    let mut table = RoutingTable::new(own, Diversity::default(), now);
    for step in steps.into_iter().take(1000) {
        match step {
            Step::Insert { prefix, ip } => {
                let mut contact = Contact::new(id(prefix), []);
                if let Some([net, host]) = ip {
                    contact = contact.observed_at([203, 0, net, host].into());
                }
                table.insert(now, contact, Duration::from_secs(60));
            }
            Step::Answer { prefix } => table.note_answer(now, &id(prefix)),
            Step::Fail { prefix } => {
                table.note_failure(&id(prefix));
            }
            Step::Wait { seconds } => now += Duration::from_secs(seconds.into()),
            Step::Closest { target, count } => {
                let target = Point::from(id(target));
                let mut expected: Vec<_> = table.iter().map(|c| *c.node_id()).collect();
                expected.sort_by_key(|node| Point::from(node).distance(&target));
                expected.truncate(count.into());
                let closest: Vec<_> = table.closest(&target, count.into()).map(|c| *c.node_id()).collect();
                assert_eq!(closest, expected);
            }
        }
        assert!(!table.contains(&own));
        assert_eq!(table.iter().count(), table.len());
        assert!(table.bucket_sizes().all(|(_, size)| size <= K));
    }
});
