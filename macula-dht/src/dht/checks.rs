//! Signature checks apart from the core. They cost far more than everything else that a message asks for, so a shell makes them on
//! a task of their own.
//!
//! **Invariant:** the core has decided before that these checks are within the peer's bounds, and decides afterwards whether a
//! sound record is taken.

use std::time::Instant;

use macula_wire::{Member, Realm, RecordError, ServiceKey, SignedProvider, VerifiedProvider};

use super::local::Local;
use crate::message::peek;

/// The records of a message whose signatures are to be checked, and the rest of the message.
///
/// Call [`Checks::step`] on any thread until nothing is left, and give the value back to the core. It may be dropped when it is of
/// a request: that request then has no answer.
#[derive(Debug)]
#[must_use = "the core waits for the end of it"]
pub struct Checks<T> {
    realm: Realm,
    key: ServiceKey,
    /// The time since the Unix epoch, by which grants are judged.
    seconds: u64,
    /// The records, each with the member of its chain if that was verified before.
    records: Vec<(SignedProvider, Option<Member>)>,
    /// The results for the first of the records.
    results: Vec<Result<VerifiedProvider, RecordError>>,
    /// The rest of the message.
    pub(super) rest: T,
}

impl<T> Checks<T> {
    pub(super) fn new(local: &Local, now: Instant, key: ServiceKey, records: Vec<SignedProvider>, rest: T) -> Self {
        let with_member = |record: SignedProvider| {
            let chain = peek(&record.body).and_then(|peek| peek.chain);
            let member = chain.and_then(|chain| local.verifier.known(&chain).cloned());
            (record, member)
        };
        Self {
            realm: local.realm.clone(),
            key,
            seconds: local.unix_seconds(now),
            results: Vec::with_capacity(records.len()),
            records: records.into_iter().map(with_member).collect(),
            rest,
        }
    }

    /// The number of records that are not checked yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.records.len() - self.results.len()
    }

    /// Checks the next record: up to three signatures, about 0.1 ms. Returns whether another is left.
    pub fn step(&mut self) -> bool {
        if let Some((record, member)) = self.records.get(self.results.len()) {
            let checked = record.verify_apart(&self.realm, &self.key, member.as_ref(), self.seconds);
            self.results.push(checked);
        }
        self.left() > 0
    }

    /// The rest of the message, and the result for each record; checks those that are left.
    pub(super) fn finish(mut self) -> (T, Vec<Result<VerifiedProvider, RecordError>>) {
        while self.step() {}
        (self.rest, self.results)
    }
}
