use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn contact(id: [u8; 32]) -> Contact {
    Contact::new(NodeId::from_bytes(id), ["node:1".parse().unwrap()])
}

#[derive(Debug, Clone)]
enum Event {
    Answer(Vec<[u8; 32]>),
    Overdue,
    Fail,
}

fn event() -> impl Strategy<Value = Event> {
    // A small id space, so that replies repeat contacts.
    let id = (any::<u8>(), any::<u8>()).prop_map(|(a, b)| {
        let mut id = [0; 32];
        (id[0], id[31]) = (a, b % 4);
        id
    });
    prop_oneof![
        4 => prop::collection::vec(id, 0..25).prop_map(Event::Answer),
        1 => Just(Event::Overdue),
        2 => Just(Event::Fail),
    ]
}

proptest! {
    /// In flight ≤ α, each peer once, candidates ≤ 128, and an end, under arbitrary replies.
    #[test]
    fn lookup_laws_hold_under_arbitrary_replies(
        target: [u8; 32],
        seeds in prop::collection::vec(any::<[u8; 32]>(), 0..30),
        events in prop::collection::vec((event(), any::<prop::sample::Index>()), 1..400),
    ) {
        let own = NodeId::from_bytes([0; 32]);
        let mut lookup = Lookup::new(own, Point::from_bytes(&target));
        lookup.add(seeds.into_iter().map(contact), 0);
        let (mut asked, mut overdue, mut waiting) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let mut events = events.iter().cycle();
        let mut steps = 0;
        loop {
            while let Some((next, _)) = lookup.next(|_| false) {
                prop_assert!(asked.insert(*next.node_id()), "asked twice");
                prop_assert!(*next.node_id() != own);
                waiting.push(*next.node_id());
            }
            prop_assert!(lookup.fresh() <= ALPHA && waiting.len() <= MAX_OUTSTANDING);
            prop_assert!(lookup.candidates.len() <= MAX_CANDIDATES);
            prop_assert!(lookup.candidates.is_sorted_by(|a, b| a.distance(lookup.target()) < b.distance(lookup.target())));
            steps += 1;
            prop_assert!(steps < 5_000, "no end");
            if lookup.is_finished() {
                break;
            }
            prop_assert!(!waiting.is_empty(), "neither finished nor waiting");
            let (event, pick) = events.next().unwrap();
            let at = pick.index(waiting.len());
            match event {
                Event::Answer(contacts) => {
                    let peer = waiting.remove(at);
                    lookup.on_answer(&peer);
                    lookup.add(contacts.iter().copied().map(contact), 1);
                }
                // A node that stays silent after that has failed.
                Event::Overdue if !overdue.insert(waiting[at]) => lookup.on_failure(&waiting.remove(at)),
                Event::Overdue => lookup.on_overdue(&waiting[at]),
                Event::Fail => lookup.on_failure(&waiting.remove(at)),
            }
        }
    }
}

#[test]
fn an_answer_of_a_peer_that_was_not_asked_counts_for_nothing() {
    let mut lookup = Lookup::new(NodeId::from_bytes([0; 32]), Point::from_bytes(&[1; 32]));
    lookup.add([contact([2; 32])], 0);
    lookup.on_answer(&NodeId::from_bytes([2; 32]));
    assert_eq!(lookup.answered(), 0);
    assert!(!lookup.is_finished());
}

#[test]
fn an_overdue_peer_holds_nothing_up_once_k_others_answered() {
    let mut lookup = Lookup::new(NodeId::from_bytes([0xff; 32]), Point::from_bytes(&[0; 32]));
    lookup.add((1..=21).map(|n| contact([n; 32])), 0);
    while !lookup.is_finished() {
        let mut asked = Vec::new();
        while let Some((next, _)) = lookup.next(|_| false) {
            asked.push(*next.node_id());
        }
        for node in asked {
            if node.as_bytes()[0] == 1 {
                lookup.on_overdue(&node)
            } else {
                lookup.on_answer(&node)
            }
        }
    }
    assert_eq!(lookup.closest().count(), K);
    assert_eq!(lookup.closest().next().unwrap().node_id().as_bytes()[0], 2);
}

#[test]
fn with_too_few_others_an_overdue_peer_is_waited_for() {
    let mut lookup = Lookup::new(NodeId::from_bytes([0xff; 32]), Point::from_bytes(&[0; 32]));
    lookup.add([contact([1; 32])], 0);
    let (node, _) = lookup.next(|_| false).unwrap();
    lookup.on_overdue(node.node_id());
    assert!(!lookup.is_finished());
    lookup.on_failure(node.node_id());
    assert!(lookup.is_finished());
}

/// A peer names twenty ports of a host that has no part in the mesh.
#[test]
fn x12_a_silent_subnet_is_not_asked_on_the_word_of_a_peer() {
    let asked = |ip: &str, answers: bool| {
        let mut lookup = Lookup::new(NodeId::from_bytes([0; 32]), Point::from_bytes(&[0; 32]));
        let at = |n: u8| {
            let endpoint = format!("{ip}:{}", 1000 + u16::from(n));
            Contact::new(NodeId::from_bytes([n; 32]), [endpoint.parse().unwrap()])
        };
        lookup.add((1..=20).map(at), 1);
        let mut asked = 0;
        while let Some((contact, _)) = lookup.next(|_| false) {
            asked += 1;
            if answers && asked == 2 {
                lookup.on_answer(contact.node_id());
            } else {
                lookup.on_overdue(contact.node_id());
            }
        }
        asked
    };
    assert_eq!(asked("203.0.113.5", false), MAX_SILENT);
    assert_eq!(asked("203.0.113.5", true), 20);
    assert_eq!(asked("10.0.0.1", false), 20, "a private subnet is a site");
}
