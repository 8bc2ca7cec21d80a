//! The signature checks of the DHT's messages, on tasks of their own.
//!
//! A task checks one record at a time and then lets others run, so a long message delays a short one by no more than its own length,
//! and the node's other work by no more than one record.

use std::collections::BTreeMap;

use bytes::Bytes;
use macula_dht::{Checks, Declined, Peer, Publication, Received, Response};
use macula_wire::{Admission, Holder, Network, NodeId, Shares};
use tokio::{
    sync::oneshot,
    task::{AbortHandle, JoinSet},
};

/// The most records of peers' publications that are checked at a time: about 50 ms of one core. Replies need no bound of their own,
/// since this node asked for each.
const MAX_CHECKS: u64 = 1024;

/// A message whose checks are done.
pub(super) enum Checked {
    /// A reply to this node.
    Reply(Checks<Received>),
    /// A request of a peer, and the way for its answer.
    Request(Checks<Publication>, oneshot::Sender<Bytes>),
}

/// The checks under way.
pub(super) struct Checking {
    replies: JoinSet<Checks<Received>>,
    requests: JoinSet<(Turn, Checks<Publication>)>,
    shares: Shares<NodeId>,
    waiting: BTreeMap<Turn, Waiting>,
    turns: u64,
}

/// A request under way: its sender, and its place among the sender's.
type Turn = (Holder<NodeId>, u64);

struct Waiting {
    records: u64,
    task: AbortHandle,
    reply: oneshot::Sender<Bytes>,
}

impl Default for Checking {
    fn default() -> Self {
        Self {
            replies: JoinSet::new(),
            requests: JoinSet::new(),
            shares: Shares::new(MAX_CHECKS),
            waiting: BTreeMap::new(),
            turns: 0,
        }
    }
}

impl Checking {
    /// Begins the checks of a reply.
    pub(super) fn reply(&mut self, checks: Checks<Received>) {
        self.replies.spawn(check(checks));
    }

    /// Begins the checks of a request. When too many are under way, it or the one of the largest sender is declined.
    pub(super) fn request(&mut self, from: &Peer, checks: Checks<Publication>, reply: oneshot::Sender<Bytes>) {
        let contact = &from.contact;
        let holder = Holder::new(Network::from(contact.ip()), *contact.node_id());
        let records = checks.left() as u64;
        self.turns += 1;
        loop {
            match self.shares.admit(&holder, records, self.turns) {
                Admission::Granted => break,
                Admission::Evict(largest) => match self.waiting.range((largest, 0)..).next().map(|(turn, _)| *turn) {
                    Some(turn) => self.give_up(&turn),
                    None => return decline(reply),
                },
                Admission::Refused => return decline(reply),
            }
        }
        let turn = (holder, self.turns);
        let task = self.requests.spawn(async move { (turn, check(checks).await) });
        self.waiting.insert(turn, Waiting { records, task, reply });
    }

    fn give_up(&mut self, turn: &Turn) {
        if let Some(waiting) = self.end(turn) {
            waiting.task.abort();
            decline(waiting.reply);
        }
    }

    fn end(&mut self, turn: &Turn) -> Option<Waiting> {
        let waiting = self.waiting.remove(turn)?;
        self.shares.release(&turn.0, waiting.records);
        Some(waiting)
    }

    /// The next message whose checks are done. It waits for ever when there is none under way.
    pub(super) async fn next(&mut self) -> Checked {
        loop {
            tokio::select! {
                biased;
                Some(done) = self.replies.join_next() => {
                    if let Ok(checks) = done {
                        return Checked::Reply(checks);
                    }
                }
                // One that was given up ends with an error.
                Some(done) = self.requests.join_next() => {
                    if let Ok((turn, checks)) = done
                        && let Some(waiting) = self.end(&turn)
                    {
                        return Checked::Request(checks, waiting.reply);
                    }
                }
                else => std::future::pending().await,
            }
        }
    }
}

async fn check<T>(mut checks: Checks<T>) -> Checks<T> {
    while checks.step() {
        tokio::task::yield_now().await;
    }
    checks
}

fn decline(reply: oneshot::Sender<Bytes>) {
    // The peer may have gone.
    let _ = reply.send(Response::Declined(Declined::RateLimited).encode());
}
