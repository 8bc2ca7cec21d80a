//! Writes the directory's changes to disk, in a thread of its own: a disk may be slow, and the core's task serves peers.
//!
//! The core hands over a batch about once a second. Batches that arrive during a write are merged, so that only the last state of a
//! record is written. **Invariant:** at most [`MAX_WAITING`] records wait; a batch that does not fit is refused whole.
//!
//! When a write fails, the file is closed. The failed batch waits for the next attempt, which opens the file again.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use macula_dht::{Backend, BackendError, Change, Loaded, RedbBackend, StoredContact, StoredRecord};
use macula_wire::{NodeId, ServiceKey};
use tokio::sync::watch;

use super::folder::open_directory;

/// Records that wait to be written at a time: more than a full store has.
const MAX_WAITING: usize = 262_144;
/// The most changes of one transaction.
const MAX_BATCH: usize = 4096;
/// How long after a failure the file is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Keeps the directory's records and contacts, as the [`Backend`] of its core. When it is dropped, the waiting changes are written and
/// the file is closed.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Inbox>,
    /// The content of the file, until the core takes it.
    loaded: Option<Result<Loaded, BackendError>>,
    /// Gone when the thread has ended.
    thread: watch::Receiver<()>,
}

#[derive(Debug, Default)]
struct Inbox {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// The changes to write next.
#[derive(Debug, Default)]
struct Waiting {
    /// The last state of each record; `None` when it is gone.
    records: BTreeMap<(ServiceKey, NodeId), Option<StoredRecord>>,
    contacts: Option<Vec<StoredContact>>,
    /// The keeper was dropped: no more changes come.
    closing: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.contacts.is_none()
    }

    /// Adds changes, which are later than the waiting ones.
    fn add(&mut self, changes: &[Change]) -> Result<(), BackendError> {
        if self.records.len() + changes.len() > MAX_WAITING {
            return Err(BackendError::Behind);
        }
        for change in changes {
            match change {
                Change::Put(record) => drop(self.records.insert((record.key, record.node), Some(record.clone()))),
                Change::Remove { key, node } => drop(self.records.insert((*key, *node), None)),
                Change::Contacts(contacts) => self.contacts = Some(contacts.clone()),
            }
        }
        Ok(())
    }

    /// Takes one transaction's worth.
    fn take(&mut self) -> Vec<Change> {
        let mut batch = Vec::new();
        while batch.len() < MAX_BATCH
            && let Some(((key, node), record)) = self.records.pop_first()
        {
            batch.push(record.map_or(Change::Remove { key, node }, Change::Put));
        }
        batch.extend(self.contacts.take().map(Change::Contacts));
        batch
    }

    /// Puts back a batch that could not be written; changes that came since win.
    fn put_back(&mut self, batch: Vec<Change>) {
        for change in batch {
            let (place, record) = match change {
                Change::Put(record) => ((record.key, record.node), Some(record)),
                Change::Remove { key, node } => ((key, node), None),
                Change::Contacts(contacts) => {
                    self.contacts.get_or_insert(contacts);
                    continue;
                }
            };
            let full = self.records.len() >= MAX_WAITING;
            match self.records.entry(place) {
                Entry::Vacant(free) if !full => drop(free.insert(record)),
                Entry::Vacant(_) | Entry::Occupied(_) => {}
            }
        }
    }
}

impl Keeper {
    /// Starts keeping in `file`, which `backend` has open; without it, the file could not be opened and is tried again.
    pub(super) fn start(file: PathBuf, mut backend: Option<RedbBackend>) -> io::Result<Self> {
        let loaded = backend.as_mut().map_or_else(|| Ok(Loaded::default()), Backend::load);
        let shared = Arc::new(Inbox::default());
        let (running, thread) = watch::channel(());
        let writer = Writer {
            shared: Arc::clone(&shared),
            file,
            failed: backend.is_none().then(Instant::now),
            backend,
        };
        std::thread::Builder::new().name("macula-data".into()).spawn(move || {
            writer.run();
            drop(running);
        })?;
        Ok(Self {
            shared,
            loaded: Some(loaded),
            thread,
        })
    }

    /// Waits until the file is closed. That happens some time after this keeper is dropped.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let mut thread = self.thread.clone();
        async move { while thread.changed().await.is_ok() {} }
    }
}

impl Backend for Keeper {
    fn load(&mut self) -> Result<Loaded, BackendError> {
        self.loaded.take().unwrap_or_else(|| Ok(Loaded::default()))
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), BackendError> {
        let added = self.shared.lock().add(changes);
        self.shared.changed.notify_one();
        added
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_one();
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of the thread.
struct Writer {
    shared: Arc<Inbox>,
    file: PathBuf,
    /// The file, while it is in order.
    backend: Option<RedbBackend>,
    /// When writing last failed, unless it has succeeded since.
    failed: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        while let Some((batch, closing)) = self.next() {
            match self.write(&batch) {
                Ok(()) => {
                    if self.failed.take().is_some() {
                        tracing::warn!(file = %self.file.display(), "the directory is kept again");
                    }
                    tracing::debug!(changes = batch.len(), "kept");
                }
                Err(error) => {
                    // The next attempt opens the file again.
                    self.backend = None;
                    if self.failed.replace(Instant::now()).is_none() {
                        let reason = error_chain(&error);
                        tracing::warn!(
                            file = %self.file.display(), %reason,
                            "the directory cannot be kept; the node goes on without, and tries again every {TRY_AGAIN_AFTER:?}"
                        );
                    }
                    if closing {
                        return;
                    }
                    self.shared.lock().put_back(batch);
                }
            }
        }
    }

    /// Waits for the next batch, and says whether the keeper was dropped; `None` at the end.
    fn next(&self) -> Option<(Vec<Change>, bool)> {
        let mut waiting = self.shared.lock();
        loop {
            let pause = self
                .failed
                .and_then(|failed| TRY_AGAIN_AFTER.checked_sub(failed.elapsed()));
            if waiting.closing && waiting.is_empty() {
                return None;
            }
            waiting = match pause {
                Some(pause) if !waiting.closing => {
                    let woken = self.shared.changed.wait_timeout(waiting, pause);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                _ if waiting.is_empty() => {
                    let woken = self.shared.changed.wait(waiting);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
                _ => return Some((waiting.take(), waiting.closing)),
            };
        }
    }

    fn write(&mut self, batch: &[Change]) -> Result<(), BackendError> {
        let backend = match &mut self.backend {
            Some(backend) => backend,
            empty => empty.insert(open_directory(&self.file)?),
        };
        backend.commit(batch)
    }
}

/// An error with its causes, which a log line shows beside it.
fn error_chain(error: &BackendError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
