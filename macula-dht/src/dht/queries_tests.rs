use macula_wire::{Advertisement, SecretKey, ServiceKey, VerifiedProvider};

use super::*;
use crate::{
    Want,
    dht::{
        checks::Checks,
        search::MAX_CHECKS_PER_ANSWER,
        testing::{EPOCH_MS, contact, local, local_with},
    },
};

const KEY: ServiceKey = ServiceKey::from_bytes([3; 32]);

fn outputs(queries: &mut Queries) -> Vec<QueryOutput> {
    std::iter::from_fn(|| queries.poll_output()).collect()
}

fn record(n: u32, local: &Local) -> SignedProvider {
    let mut secret = [7; 32];
    secret[..4].copy_from_slice(&n.to_be_bytes());
    let signer = SecretKey::from_bytes(&secret);
    let advertisement = Advertisement::new(["10.0.0.9:4433".parse().unwrap()]);
    let record = VerifiedProvider::sign(&signer, &local.realm.hash(), &KEY, 1, EPOCH_MS, &advertisement);
    record.unwrap().to_signed()
}

fn search(queries: &mut Queries, local: &mut Local, now: Instant, want: Want) -> QueryId {
    let goal = Goal::Providers(Search::new(KEY, want));
    let id = queries.start(local, now, KEY.into(), goal).unwrap();
    queries.pump(local, now, id);
    id
}

fn providers(records: Vec<SignedProvider>) -> Response {
    Response::Providers {
        records,
        closest: Vec::new(),
        more: false,
    }
}

/// Takes an answer, and checks its records as a shell does. Returns `false` when one is forged.
fn take(
    queries: &mut Queries,
    local: &mut Local,
    now: Instant,
    step: Step,
    peer: &Contact,
    response: Response,
) -> bool {
    let Some((answer, selection)) = queries.handle_answer(local, step, peer.clone(), response) else {
        return true;
    };
    let checked = match selection {
        Some(selection) => Checks::new(local, now, selection.key, selection.unknown, ()).finish().1,
        None => Vec::new(),
    };
    queries.handle_checked(local, now, answer, checked)
}

#[test]
fn a_search_for_the_first_provider_ends_with_the_first_answer() {
    let now = Instant::now();
    let (mut queries, mut local) = (Queries::default(), local_with(now, 10));
    let id = search(&mut queries, &mut local, now, Want::First);
    let asked = outputs(&mut queries);
    let [QueryOutput::Ask { step, to, .. }, ..] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(asked.len(), crate::ALPHA);
    let answer = providers(vec![record(1, &local)]);
    assert!(take(&mut queries, &mut local, now, *step, to, answer));
    let ended = outputs(&mut queries);
    assert!(
        matches!(&ended[..], [
            QueryOutput::Event(Event::Providers { .. }),
            QueryOutput::Event(Event::Finished { query, result: QueryResult::Found(found), .. }),
        ] if *query == id && found.len() == 1),
        "{ended:?}"
    );
    // Answers that come later change nothing.
    for output in &asked[1..] {
        let QueryOutput::Ask { step, to, .. } = output else {
            continue;
        };
        let answer = providers(vec![record(2, &local)]);
        assert!(take(&mut queries, &mut local, now, *step, to, answer));
    }
    assert!(outputs(&mut queries).is_empty());
}

#[test]
fn a_forged_record_fails_its_peer_and_the_lookup_goes_on() {
    let now = Instant::now();
    let (mut queries, mut local) = (Queries::default(), local_with(now, 10));
    search(&mut queries, &mut local, now, Want::All);
    let asked = outputs(&mut queries);
    let QueryOutput::Ask { step, to, .. } = &asked[0] else {
        panic!("{asked:?}")
    };
    let mut forged = record(1, &local);
    forged.signature = record(2, &local).signature;
    assert!(!take(&mut queries, &mut local, now, *step, to, providers(vec![forged])));
    assert!(
        matches!(outputs(&mut queries)[..], [QueryOutput::Ask { .. }]),
        "another peer is asked"
    );
}

#[test]
fn a_lookup_without_a_contact_ends_at_once() {
    let now = Instant::now();
    let (mut queries, mut local) = (Queries::default(), local(now));
    let errand = Goal::Errand(Errand::Join);
    let id = queries.start(&mut local, now, Point::MIN, errand).unwrap();
    queries.pump(&mut local, now, id);
    let ended = outputs(&mut queries);
    assert!(matches!(&ended[..], [QueryOutput::Done { query, answered: 0, .. }] if *query == id));
}

#[test]
fn a_caller_cannot_drop_the_lookup_of_another_core() {
    let now = Instant::now();
    let (mut queries, mut local) = (Queries::default(), local_with(now, 10));
    let errand = Goal::Errand(Errand::Refresh);
    let id = queries.start(&mut local, now, Point::MIN, errand).unwrap();
    queries.drop_caller(id);
    queries.pump(&mut local, now, id);
    assert_eq!(outputs(&mut queries).len(), crate::ALPHA);
    queries.drop_errand(id);
    queries.pump(&mut local, now, id);
    assert!(outputs(&mut queries).is_empty());
}

/// An answer of many records is looked at in parts, so one answer never keeps this node busy for long.
#[test]
fn x12_signature_checks_are_bounded_for_one_answer() {
    let now = Instant::now();
    let (mut queries, mut local) = (Queries::default(), local_with(now, 1));
    search(&mut queries, &mut local, now, Want::All);
    let asked = outputs(&mut queries);
    let [QueryOutput::Ask { step, to, .. }] = &asked[..] else {
        panic!("{asked:?}")
    };
    let mut records: Vec<_> = (1..=80).map(|n| record(n, &local)).collect();
    // The record after the bound is not looked at yet. It would fail its peer.
    let forged = records[MAX_CHECKS_PER_ANSWER].signature.clone();
    records[MAX_CHECKS_PER_ANSWER].signature = records[0].signature.clone();
    assert!(take(
        &mut queries,
        &mut local,
        now,
        *step,
        to,
        providers(records.clone())
    ));
    let next = outputs(&mut queries);
    let last = provider_of(&records[MAX_CHECKS_PER_ANSWER - 1]);
    assert!(
        matches!(&next[..], [
            QueryOutput::Event(Event::Providers { batch, .. }),
            QueryOutput::Ask { request: Request::FindProviders { after, .. }, .. },
        ] if batch.len() == MAX_CHECKS_PER_ANSWER && *after == last),
        "{next:?}"
    );
    // The pages that follow hold the rest.
    records[MAX_CHECKS_PER_ANSWER].signature = forged;
    for page in [&records[32..], &records[64..]] {
        assert!(take(&mut queries, &mut local, now, *step, to, providers(page.to_vec())));
    }
    let ended = outputs(&mut queries);
    assert!(
        matches!(ended.last(), Some(QueryOutput::Event(Event::Finished { result: QueryResult::Found(found), .. }))
            if found.len() == 80),
        "{ended:?}"
    );
}

/// Liars with endless made-up providers cost a bounded number of checks, and the last honest peer is still heard.
#[test]
fn x12_signature_checks_are_bounded_for_one_lookup() {
    let now = Instant::now();
    let (mut queries, mut local) = (Queries::default(), local_with(now, 20));
    search(&mut queries, &mut local, now, Want::All);
    let honest = record(1_000_000, &local);
    let mut made_up = 0;
    let mut found = Vec::new();
    while let Some(output) = queries.poll_output() {
        match output {
            QueryOutput::Ask { step, to, .. } => {
                let records = if to == contact(20) {
                    vec![honest.clone()]
                } else {
                    let page = (made_up..made_up + 32).map(|n| record(n, &local)).collect();
                    made_up += 32;
                    page
                };
                let more = records.len() > 1;
                let response = Response::Providers {
                    records,
                    closest: Vec::new(),
                    more,
                };
                assert!(take(&mut queries, &mut local, now, step, &to, response));
            }
            QueryOutput::Event(Event::Finished {
                result: QueryResult::Found(all),
                ..
            }) => found = all,
            QueryOutput::Event(_) | QueryOutput::Done { .. } => {}
        }
    }
    assert!(
        found
            .iter()
            .any(|record| Some(*record.node_id()) == provider_of(&honest))
    );
    assert!(found.len() <= 20 * 32 + 256, "{} signatures were checked", found.len());
}
