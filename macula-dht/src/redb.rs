//! A [`Backend`] in a file, with redb.
//!
//! One table of records, by key and provider, and one of contacts. A commit is one transaction: after a crash the file holds
//! all of it or nothing. A damaged file is set aside under another name and a new one is made, since the mesh has everything in it.
//!
//! What is left out: trust. The caller verifies the records it loads.

use std::{
    ffi::OsString,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use ::redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable, StorageError, TableDefinition, TableError,
};
use macula_wire::{Holder, Network, NodeId, ServiceKey, SignedProvider, proto};
use prost::Message as _;

use crate::{
    Backend, BackendError, Change, Loaded, StoredContact, StoredRecord,
    message::{contact_from_proto, contact_to_proto},
};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records-v3");
const CONTACTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("contacts-v1");
/// The bytes of the file that redb may keep in memory: the file is written in batches and read once.
const PAGE_CACHE_BYTES: usize = 4 * 1024 * 1024;
/// How many damaged files are kept before the oldest name is used again.
const MAX_SET_ASIDE: u32 = 8;

/// Keeps records and contacts in a file.
#[derive(Debug)]
pub struct RedbBackend {
    database: Database,
}

/// A file that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The backend.
    pub backend: RedbBackend,
    /// Where a damaged file was moved to. Worth a warning.
    pub set_aside: Option<PathBuf>,
}

impl RedbBackend {
    /// Opens the file at `path`, making it if there is none, and setting a damaged one aside.
    ///
    /// # Errors
    /// When the file cannot be read, written or moved, or another process has it open.
    pub fn open(path: &Path) -> Result<Opened, BackendError> {
        match Self::open_sound(path) {
            Ok(backend) => Ok(Opened {
                backend,
                set_aside: None,
            }),
            Err(BackendError::Corrupt(_)) => {
                let aside = set_aside(path).map_err(BackendError::Io)?;
                Self::open_sound(path).map(|backend| Opened {
                    backend,
                    set_aside: Some(aside),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a file and reads all of it once.
    fn open_sound(path: &Path) -> Result<Self, BackendError> {
        guarded(|| {
            let mut database = Database::builder()
                .set_cache_size(PAGE_CACHE_BYTES)
                .create(path)
                .map_err(failed_to_open)?;
            database.check_integrity().map_err(failed_to_open)?;
            let mut backend = Self { database };
            backend.load_all()?;
            Ok(backend)
        })
    }

    fn load_all(&mut self) -> Result<Loaded, BackendError> {
        let read = self.database.begin_read().map_err(failed)?;
        let mut loaded = Loaded::default();
        match read.open_table(RECORDS) {
            Ok(table) => {
                for entry in table.iter().map_err(failed)? {
                    let (place, value) = entry.map_err(failed)?;
                    loaded.records.extend(decode_record(place.value(), value.value()));
                }
            }
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(failed(error)),
        }
        match read.open_table(CONTACTS) {
            Ok(table) => {
                for entry in table.iter().map_err(failed)? {
                    let (_, value) = entry.map_err(failed)?;
                    let contact = proto::Contact::decode(value.value()).ok().and_then(contact_from_proto);
                    loaded.contacts.extend(contact.map(StoredContact));
                }
            }
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(loaded)
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), BackendError> {
        let write = self.database.begin_write().map_err(failed)?;
        {
            let mut records = write.open_table(RECORDS).map_err(failed)?;
            let mut contacts = write.open_table(CONTACTS).map_err(failed)?;
            for change in changes {
                match change {
                    Change::Put(record) => {
                        let place = place(&record.key, &record.node);
                        records.insert(&place[..], &encode_record(record)[..]).map_err(failed)?;
                    }
                    Change::Remove { key, node } => {
                        records.remove(&place(key, node)[..]).map_err(failed)?;
                    }
                    Change::Contacts(known) => {
                        contacts.retain(|_, _| false).map_err(failed)?;
                        for (at, StoredContact(contact)) in (0..).zip(known) {
                            let bytes = contact_to_proto(contact).encode_to_vec();
                            contacts.insert(at, &bytes[..]).map_err(failed)?;
                        }
                    }
                }
            }
        }
        write.commit().map_err(failed)
    }
}

impl Backend for RedbBackend {
    fn load(&mut self) -> Result<Loaded, BackendError> {
        guarded(|| self.load_all())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), BackendError> {
        guarded(|| self.write(changes))
    }
}

/// Runs `act`, taking a panic for damage: redb asserts things of a file's pages that damaged bytes break.
fn guarded<T>(act: impl FnOnce() -> Result<T, BackendError>) -> Result<T, BackendError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
        let error = io::Error::new(
            io::ErrorKind::InvalidData,
            "reading it came upon something that cannot be",
        );
        Err(BackendError::Corrupt(error))
    })
}

fn failed(error: impl Into<::redb::Error>) -> BackendError {
    match error.into() {
        ::redb::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => BackendError::Io(error),
        error => BackendError::Corrupt(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

fn failed_to_open(error: DatabaseError) -> BackendError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => BackendError::InUse,
        // A file cut short ends where redb does not expect it.
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            BackendError::Corrupt(error)
        }
        error => failed(error),
    }
}

/// Moves a damaged file to a free name beside it.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let name = |n: u32| {
        let mut name = OsString::from(path);
        name.push(format!(".damaged-{n}"));
        PathBuf::from(name)
    };
    let free = (1..=MAX_SET_ASIDE)
        .map(name)
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| name(1));
    std::fs::rename(path, &free)?;
    Ok(free)
}

fn place(key: &ServiceKey, node: &NodeId) -> [u8; 64] {
    let mut place = [0; 64];
    place[..32].copy_from_slice(key.as_bytes());
    place[32..].copy_from_slice(node.as_bytes());
    place
}

/// When it expires, until when its place is held, the network and the id of the peer that delivered it, the length of the body, the body,
/// the signature of 64 bytes, the chain.
fn encode_record(record: &StoredRecord) -> Vec<u8> {
    let length = u32::try_from(record.record.body.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    [
        &record.expires_ms.to_be_bytes()[..],
        &record.held_until_ms.to_be_bytes(),
        &encode_network(record.deliverer.network),
        record.deliverer.peer.as_bytes(),
        &length,
        &record.record.body,
        &record.record.signature,
        &record.record.chain,
    ]
    .concat()
}

fn decode_record(place: &[u8], value: &[u8]) -> Option<StoredRecord> {
    let (key, node) = place.split_at_checked(32)?;
    let (expires_ms, rest) = value.split_first_chunk()?;
    let (held_until_ms, rest) = rest.split_first_chunk()?;
    let (network, rest) = rest.split_first_chunk()?;
    let (peer, rest) = rest.split_at_checked(NodeId::LEN)?;
    let (length, rest) = rest.split_first_chunk()?;
    let (body, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    let (signature, chain) = rest.split_at_checked(64)?;
    Some(StoredRecord {
        key: ServiceKey::from_slice(key)?,
        node: NodeId::from_slice(node)?,
        record: SignedProvider {
            body: body.to_vec().into(),
            signature: signature.to_vec().into(),
            chain: chain.to_vec().into(),
        },
        deliverer: Holder::new(decode_network(*network)?, NodeId::from_slice(peer)?),
        expires_ms: u64::from_be_bytes(*expires_ms),
        held_until_ms: u64::from_be_bytes(*held_until_ms),
    })
}

/// Reads any bytes as a record, writes it and reads it again.
///
/// # Panics
/// When the two differ.
#[cfg(feature = "fuzzing")]
pub fn fuzz_record(data: &[u8]) {
    let (place, value) = data.split_at(data.len().min(64));
    if let Some(read) = decode_record(place, value) {
        let again = decode_record(place, &encode_record(&read));
        assert_eq!(again.as_ref(), Some(&read));
    }
}

/// The kind of a network, and its address, filled up with zeros.
fn encode_network(network: Network) -> [u8; 9] {
    match network {
        Network::Unknown => [0; 9],
        Network::V4([a, b, c]) => [4, a, b, c, 0, 0, 0, 0, 0],
        Network::V6([a, b, c, d, e, f, g, h]) => [6, a, b, c, d, e, f, g, h],
    }
}

fn decode_network(bytes: [u8; 9]) -> Option<Network> {
    match bytes {
        [0, ..] => Some(Network::Unknown),
        [4, a, b, c, ..] => Some(Network::V4([a, b, c])),
        [6, rest @ ..] => Some(Network::V6(rest)),
        _ => None,
    }
}
