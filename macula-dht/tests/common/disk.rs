//! A store's disk in memory.

use std::{cell::RefCell, rc::Rc};

use macula_dht::{Backend, BackendError, Change, Loaded, StoredRecord};

/// Keeps the records that it is given; none is ever removed.
#[derive(Clone, Default)]
pub(crate) struct Disk(Rc<RefCell<Vec<StoredRecord>>>);

impl Disk {
    pub(crate) fn keep(&self, records: impl IntoIterator<Item = StoredRecord>) {
        self.0.borrow_mut().extend(records);
    }
}

impl Backend for Disk {
    fn load(&mut self) -> Result<Loaded, BackendError> {
        Ok(Loaded {
            records: self.0.borrow().clone(),
            ..Loaded::default()
        })
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), BackendError> {
        self.keep(changes.iter().filter_map(|change| match change {
            Change::Put(record) => Some(record.clone()),
            _ => None,
        }));
        Ok(())
    }
}
