use macula_wire::NodeId;

use super::*;
use crate::dht::testing::{contact, local, local_with};

fn outputs(joining: &mut Joining) -> Vec<JoinOutput> {
    std::iter::from_fn(|| joining.poll_output()).collect()
}

fn joining() -> Joining {
    Joining::new(Rng::new(1))
}

#[test]
fn an_attempt_is_one_lookup_and_later_seeds_widen_it() {
    let now = Instant::now();
    let (mut joining, mut local) = (joining(), local(now));
    joining.bootstrap(&mut local, now, [contact(1).into()]);
    let first = outputs(&mut joining);
    assert!(matches!(&first[..], [JoinOutput::LookUp { through }] if through[..] == [contact(1)]));
    joining.handle_lookup(&local, now, Some(QueryId(7)));
    joining.bootstrap(&mut local, now, [contact(2).into()]);
    let second = outputs(&mut joining);
    assert!(
        matches!(&second[..], [JoinOutput::Widen { query: QueryId(7), through }] if through[..] == [contact(2)]),
        "{second:?}"
    );
}

#[test]
fn a_failed_attempt_is_repeated_later_each_time() {
    let mut now = Instant::now();
    let (mut joining, mut local) = (joining(), local(now));
    joining.bootstrap(&mut local, now, [contact(1).into()]);
    let mut waits = Vec::new();
    for _ in 0..8 {
        assert!(matches!(outputs(&mut joining)[..], [JoinOutput::LookUp { .. }]));
        joining.handle_lookup(&local, now, Some(QueryId(1)));
        joining.handle_lookup_done(&local, now, 0);
        let [JoinOutput::Failed { retry_in }] = outputs(&mut joining)[..] else {
            panic!("the attempt has failed");
        };
        waits.push(retry_in);
        now += retry_in;
        joining.handle_timeout(&local, now);
    }
    let most = local.config.max_join_backoff;
    assert!(waits.iter().all(|wait| *wait <= most), "{waits:?}");
    assert!(
        waits[7] >= most / 2 && waits[0] <= local.config.join_backoff,
        "{waits:?}"
    );
}

#[test]
fn an_address_of_this_node_itself_is_no_way_in() {
    let now = Instant::now();
    let (mut joining, mut local) = (joining(), local(now));
    let address: Address = "mesh.example:4433".parse().unwrap();
    joining.bootstrap(&mut local, now, [address.clone().into()]);
    let [JoinOutput::Identify { id, .. }] = outputs(&mut joining)[..] else {
        panic!("the address is asked");
    };
    let own = Contact::new(local.own, [address]);
    assert!(joining.handle_identified(&mut local, now, id, [own]));
    assert!(matches!(
        outputs(&mut joining)[..],
        [JoinOutput::Joined { contacts: 0 }]
    ));
    assert!(local.ways_in.is_empty());
    assert!(!joining.handle_identified(&mut local, now, id, []), "it was answered");
}

#[test]
fn refreshes_run_two_at_a_time_and_each_end_starts_the_next() {
    let now = Instant::now();
    let (mut joining, mut local) = (joining(), local_with(now, 30));
    // It shares fifteen bits with this node: as many buckets are farther away.
    let mut near = *local.own.as_bytes();
    near[1] ^= 1;
    let near = Contact::new(NodeId::from_bytes(near), []);
    let _ = local.table.insert(now, near, Duration::from_secs(60));
    joining.handle_lookup_done(&local, now, 5);
    let first = outputs(&mut joining);
    let refreshes = first
        .iter()
        .filter(|output| matches!(output, JoinOutput::Refresh { .. }));
    assert_eq!(refreshes.count(), MAX_REFRESHES);
    assert!(matches!(first.last(), Some(JoinOutput::Joined { .. })));
    let mut ended = MAX_REFRESHES;
    for _ in 0..300 {
        joining.handle_refreshed(&local, true);
        ended += outputs(&mut joining).len();
    }
    assert_eq!(ended, 15);
}

#[test]
fn a_lost_mesh_is_looked_for_again() {
    let now = Instant::now();
    let (mut joining, mut local) = (joining(), local(now));
    local.ways_in.remember(contact(3));
    joining.handle_timeout(&local, now);
    assert!(matches!(outputs(&mut joining)[..], [JoinOutput::Failed { .. }]));
    let later = local.clock.instant(joining.poll_timeout());
    joining.handle_timeout(&local, later);
    assert!(matches!(&outputs(&mut joining)[..], [JoinOutput::LookUp { through }] if through[..] == [contact(3)]));
}
