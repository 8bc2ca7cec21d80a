//! The passages that one peer has passed on, each checked once (A5, A8).
//!
//! **Invariants:** a passage is remembered only after all of its signatures were checked; what may change, its date and the revocations,
//! is asked for each call. A peer pushes out only the passages that it has brought itself, and their memory is charged to it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use macula_wire::{AccessError, Member, NodeId, Passage, ServiceName};
use tokio::time::Instant;

use crate::{connection::link::Link, share::budget::Charge};

/// The most passages of a connection that are remembered: callers times services behind one router. Beyond it the one known longest is
/// checked again.
const MAX_KNOWN_PASSAGES: usize = 1024;
/// How many bytes one takes in memory beside its own.
const ENTRY_BYTES: u64 = 512;

/// The passages of a connection that were checked.
#[derive(Debug, Default)]
pub(crate) struct Passages(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by_hash: BTreeMap<[u8; 32], Checked>,
    /// The one known longest first.
    order: VecDeque<[u8; 32]>,
}

#[derive(Debug)]
struct Checked {
    passage: Passage,
    member: Member,
    _memory: Charge,
}

/// Why a call is not passed on.
#[derive(Debug)]
pub(crate) enum NotPassed {
    /// Something is wrong with the passage.
    Denied(AccessError),
    /// Too many passages are new at this moment.
    Busy,
}

impl Passages {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member whose call of `service` the router `router` passes on by this passage, which came over `link`.
    pub(crate) fn member(
        &self,
        link: &Link,
        passage: &Bytes,
        router: &NodeId,
        service: &ServiceName,
    ) -> Result<Member, NotPassed> {
        let access = &link.shared.config.access;
        let hash = Passage::hash(passage, router, service);
        let known = self.lock().by_hash.get(&hash).map(|known| {
            known.passage.check_at(access.realm(), access.now())?;
            Ok(known.member.clone())
        });
        if let Some(known) = known {
            let member = known.map_err(NotPassed::Denied)?;
            access.check(&member).map_err(NotPassed::Denied)?;
            return Ok(member);
        }
        // Copied, because a slice would keep the packets that it came in for as long as it is remembered.
        let read = Passage::read(&Bytes::copy_from_slice(passage)).map_err(NotPassed::Denied)?;
        if !link.shared.checks.take(Instant::now().into_std(), &link.peer.holder()) {
            return Err(NotPassed::Busy);
        }
        let member = access.pass(&read, router, service).map_err(NotPassed::Denied)?;
        if let Ok(memory) = link.memory.take(ENTRY_BYTES + passage.len() as u64) {
            let checked = Checked {
                passage: read,
                member: member.clone(),
                _memory: memory,
            };
            self.lock().add(hash, checked);
        }
        Ok(member)
    }
}

impl Known {
    fn add(&mut self, hash: [u8; 32], checked: Checked) {
        if self.by_hash.insert(hash, checked).is_none() {
            self.order.push_back(hash);
        }
        if self.order.len() > MAX_KNOWN_PASSAGES
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_hash.remove(&oldest);
        }
    }
}
