use macula_dht::Contact;
use macula_wire::{Holder, Network, SignedProvider};
use proptest::prelude::*;

use super::*;

fn record(key: u8, node: u8, expires_ms: u64) -> StoredRecord {
    StoredRecord {
        key: ServiceKey::from_bytes([key; 32]),
        node: NodeId::from_bytes([node; 32]),
        record: SignedProvider {
            body: vec![key, node].into(),
            signature: vec![0; 64].into(),
            chain: vec![node; 3].into(),
        },
        deliverer: Holder::new(Network::Unknown, NodeId::from_bytes([node; 32])),
        expires_ms,
        held_until_ms: expires_ms,
    }
}

fn contact(node: u8) -> StoredContact {
    let endpoint = format!("10.0.0.{node}:1").parse().unwrap();
    StoredContact(Contact::new(NodeId::from_bytes([node; 32]), [endpoint]))
}

fn change(key: u8, node: u8, expires_ms: Option<u64>) -> Change {
    let record = record(key, node, expires_ms.unwrap_or_default());
    match expires_ms {
        Some(_) => Change::Put(record),
        None => Change::Remove {
            key: record.key,
            node: record.node,
        },
    }
}

fn apply(file: &mut BTreeMap<(ServiceKey, NodeId), StoredRecord>, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put(record) => drop(file.insert((record.key, record.node), record.clone())),
            Change::Remove { key, node } => drop(file.remove(&(*key, *node))),
            Change::Contacts(_) => {}
        }
    }
}

proptest! {
    /// However batches are merged, and however many writes fail and are repeated: in the end the file holds the records that the core
    /// said last.
    #[test]
    fn merged_and_repeated_writes_end_in_the_last_state(
        steps in prop::collection::vec((0..3_u8, 0..3_u8, prop::option::of(0..9_u64), 0..4_u8), 0..60),
    ) {
        let (mut waiting, mut file, mut told) = (Waiting::default(), BTreeMap::new(), BTreeMap::new());
        let mut failed = None;
        for (key, node, expires, then) in steps {
            let batch = [change(key, node, expires)];
            apply(&mut told, &batch);
            waiting.add(&batch).unwrap();
            match then {
                0 => failed = failed.or_else(|| Some(waiting.take())),
                1 => if let Some(batch) = failed.take() { waiting.put_back(batch) },
                2 if failed.is_none() => apply(&mut file, &waiting.take()),
                _ => {}
            }
        }
        failed.into_iter().for_each(|batch| waiting.put_back(batch));
        apply(&mut file, &waiting.take());
        prop_assert!(waiting.is_empty());
        prop_assert_eq!(file, told);
    }
}

#[test]
fn what_waits_is_bounded() {
    let mut waiting = Waiting::default();
    let place = |n: usize| {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        Change::Remove {
            key: ServiceKey::from_bytes(key),
            node: NodeId::from_bytes([0; 32]),
        }
    };
    let changes: Vec<_> = (0..MAX_WAITING).map(place).collect();
    waiting.add(&changes).unwrap();
    assert!(matches!(waiting.add(&[place(MAX_WAITING)]), Err(BackendError::Behind)));
    waiting.put_back(vec![place(MAX_WAITING)]);
    assert_eq!(waiting.records.len(), MAX_WAITING);
    assert_eq!(waiting.take().len(), MAX_BATCH);
    waiting.add(&[place(MAX_WAITING)]).unwrap();
}

#[test]
fn later_contacts_are_the_ones_kept() {
    let mut waiting = Waiting::default();
    waiting.add(&[Change::Contacts(vec![contact(1)])]).unwrap();
    let failed = waiting.take();
    waiting.add(&[Change::Contacts(vec![contact(2)])]).unwrap();
    waiting.put_back(failed);
    assert_eq!(waiting.take(), [Change::Contacts(vec![contact(2)])]);
}

#[tokio::test]
async fn what_is_handed_over_is_in_the_file_when_it_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("directory.redb");
    let mut keeper = Keeper::start(file.clone(), Some(open_directory(&file).unwrap())).unwrap();
    assert_eq!(keeper.load().unwrap(), Loaded::default());
    // More than one transaction's worth, so that the end waits for several.
    let records: Vec<_> = (0..=u8::MAX)
        .flat_map(|k| (0..20).map(move |n| record(k, n, 7)))
        .collect();
    assert!(records.len() > MAX_BATCH);
    let changes: Vec<_> = records.iter().cloned().map(Change::Put).collect();
    keeper.commit(&changes).unwrap();
    keeper.commit(&[Change::Contacts(vec![contact(1)])]).unwrap();
    let closed = keeper.closed();
    drop(keeper);
    closed.await;
    // It can be opened again, so it was closed.
    let loaded = open_directory(&file).unwrap().load().unwrap();
    assert_eq!(loaded.contacts, [contact(1)]);
    assert_eq!(loaded.records, records);
}

/// The folder vanished, or the disk is full: the node goes on, and its end does not wait.
#[tokio::test]
async fn a_file_that_cannot_be_written_ends_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("directory.redb");
    let backend = open_directory(&file).unwrap();
    let mut writer = Writer {
        shared: Arc::default(),
        file: folder.path().join("gone").join("directory.redb"),
        backend: None,
        failed: None,
    };
    assert!(matches!(
        writer.write(&[change(1, 1, Some(1))]),
        Err(BackendError::Io(_))
    ));
    assert!(writer.backend.is_none());
    // In order again.
    writer.file = file;
    drop(backend);
    writer.write(&[change(1, 1, Some(1))]).unwrap();
    let shared = Arc::clone(&writer.shared);
    let mut waiting = shared.lock();
    waiting.closing = true;
    drop(waiting);
    writer.run();
}
