//! Tells the balancers what the connection pool learns of the way to each provider, and dials providers behind the calls (H5, L2).
//!
//! One task a client follows the pool: a connection opens, falls silent, is heard again, ends. A service whose balancer wants dials has
//! one more task, which ends when the service is no longer called.
//!
//! **Invariant.** The calls that wait are woken after the balancer was told, so they see the news.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{
    StreamExt as _,
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use macula_select::Link;
use macula_transport::{CloseCode, Lost, Pool, PoolEvent, PoolEvents, Presence};
use macula_wire::NodeId;

use super::{
    now,
    services::{Balanced, Member, Roster, WeakBalanced},
};
use crate::keyed::Keyed;

/// How long a dial behind the calls may take. A provider that is down is dialed again soon.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The balancers of a client, and the pool whose connections they share.
pub(super) struct Links {
    pool: Pool,
    balancers: Mutex<Vec<WeakBalanced>>,
    watched: AtomicBool,
}

/// The link that the pool has to a node.
pub(super) fn of(pool: &Pool, node: &NodeId) -> Link {
    match pool.open(node).map(|connection| connection.presence()) {
        Some(Presence::Up) => Link::Up,
        Some(Presence::Suspected) => Link::Suspected,
        None => Link::Idle,
    }
}

/// The state in which the end of a connection leaves the link.
pub(super) fn after(lost: &Lost) -> Link {
    match lost {
        // The peer is there, or ended its process in order, or this side wanted the end: a dial is expected to work.
        Lost::Restarted | Lost::ClosedByPeer { .. } => Link::Idle,
        Lost::ClosedHere(code) => match code {
            CloseCode::Unresponsive => Link::Down,
            _ => Link::Idle,
        },
        Lost::TimedOut => Link::Down,
        _ => Link::Down,
    }
}

/// Whether the peer lives although the connection ended.
pub(super) fn is_there(lost: &Lost) -> bool {
    match lost {
        Lost::Restarted => true,
        Lost::ClosedByPeer { code, .. } | Lost::ClosedHere(code) => *code == CloseCode::Retired,
        _ => false,
    }
}

impl Links {
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            pool,
            balancers: Mutex::default(),
            watched: AtomicBool::new(false),
        }
    }

    /// Tells this balancer, too, from now on.
    pub(super) fn add(&self, balanced: &Balanced) {
        let mut balancers = self.balancers.lock().unwrap_or_else(PoisonError::into_inner);
        balancers.retain(|known| !known.is_gone());
        balancers.push(balanced.downgrade());
    }

    /// Follows the pool from now on. It is called from calls, which run within a runtime.
    pub(super) fn watch(self: &Arc<Self>) {
        if !self.watched.swap(true, Relaxed) {
            tokio::spawn(follow(Arc::downgrade(self), self.pool.events()));
        }
    }

    fn each(&self, tell: impl Fn(&mut Roster) -> bool) {
        let balancers = self.balancers.lock().unwrap_or_else(PoisonError::into_inner);
        for balanced in balancers.iter().filter_map(WeakBalanced::upgrade) {
            let told = tell(&mut balanced.lock());
            if told {
                balanced.news().notify_waiters();
                dial_behind(&balanced, &self.pool);
            }
        }
    }

    fn tell(&self, node: &NodeId, link: Link) {
        let now = now();
        self.each(|roster| {
            let member = roster.member(node);
            if let Some(member) = &member {
                roster.balancer.link(now, member, link);
            }
            member.is_some()
        });
    }
}

/// The presence of each connected peer, until its connection ends.
#[derive(Default)]
struct Peers {
    changes: FuturesUnordered<Abortable<Change>>,
    ends: HashMap<NodeId, AbortHandle, Keyed>,
}

type Change = futures::future::BoxFuture<'static, (NodeId, Presence, macula_transport::PresenceWatch)>;

impl Peers {
    fn follow(&mut self, node: NodeId, mut watch: macula_transport::PresenceWatch) {
        let (end, registration) = AbortHandle::new_pair();
        let change: Change = Box::pin(async move {
            let presence = watch.changed().await;
            (node, presence, watch)
        });
        self.changes.push(Abortable::new(change, registration));
        if let Some(before) = self.ends.insert(node, end) {
            before.abort();
        }
    }

    fn forget(&mut self, node: &NodeId) {
        if let Some(end) = self.ends.remove(node) {
            end.abort();
        }
    }

    /// The next change; pending while no peer is connected.
    async fn next(&mut self) -> (NodeId, Presence, macula_transport::PresenceWatch) {
        loop {
            match self.changes.next().await {
                Some(Ok(change)) => return change,
                // Its connection has ended.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// Follows the pool until its endpoint or the client is gone.
async fn follow(links: Weak<Links>, mut events: PoolEvents) {
    let mut peers = Peers::default();
    loop {
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            (node, presence, watch) = peers.next() => {
                let Some(links) = links.upgrade() else { return };
                peers.follow(node, watch);
                links.tell(&node, match presence {
                    Presence::Up => Link::Up,
                    Presence::Suspected => Link::Suspected,
                });
                continue;
            }
        };
        let (Some(event), Some(links)) = (event, links.upgrade()) else {
            return;
        };
        match event {
            PoolEvent::Opened { node, .. } => {
                if let Some(connection) = links.pool.open(&node) {
                    peers.follow(node, connection.watch_presence());
                    links.tell(&node, Link::Up);
                }
            }
            PoolEvent::Closed { node, reason } => match links.pool.open(&node) {
                // The pool has kept the better of two connections.
                Some(connection) => peers.follow(node, connection.watch_presence()),
                None => {
                    peers.forget(&node);
                    links.tell(&node, after(&reason));
                }
            },
            PoolEvent::DialFailed { node: Some(node), .. } if links.pool.open(&node).is_none() => {
                links.tell(&node, Link::Down);
            }
            PoolEvent::Missed(_) => {
                let pool = &links.pool;
                links.each(|roster| {
                    roster.tell_all(|node| of(pool, node));
                    true
                });
            }
            _ => {}
        }
    }
}

/// Makes sure that the dials that the balancer wants are made.
pub(super) fn dial_behind(balanced: &Balanced, pool: &Pool) {
    let mut roster = balanced.lock();
    if roster.dialing || roster.balancer.next_dial().is_none() {
        return;
    }
    roster.dialing = true;
    tokio::spawn(dial(balanced.downgrade(), pool.clone()));
}

async fn dial(balanced: WeakBalanced, pool: Pool) {
    loop {
        let next = {
            let Some(balanced) = balanced.upgrade() else { return };
            let mut roster = balanced.lock();
            let now = now();
            while let Some(member) = roster.balancer.poll_dial(now) {
                tokio::spawn(dial_one(balanced.downgrade(), pool.clone(), member));
            }
            let next = roster.balancer.next_dial();
            roster.dialing = next.is_some();
            next
        };
        match next {
            Some(at) => tokio::time::sleep_until(at.max(now() + Duration::from_millis(1)).into()).await,
            None => return,
        }
    }
}

async fn dial_one(balanced: WeakBalanced, pool: Pool, member: Member) {
    let peer = balanced.upgrade().and_then(|balanced| balanced.lock().peer(member));
    let Some((node, endpoints)) = peer else { return };
    let dialed = tokio::time::timeout(DIAL_TIMEOUT, pool.get(&node, &endpoints)).await;
    let link = match dialed {
        Ok(Ok(_)) => Link::Up,
        Ok(Err(_)) | Err(_) => Link::Down,
    };
    if let Some(balanced) = balanced.upgrade() {
        tell(&balanced, now(), &member, link);
    }
}

/// Tells one balancer of a link, and wakes the calls that wait.
pub(super) fn tell(balanced: &Balanced, now: Instant, member: &Member, link: Link) {
    balanced.lock().balancer.link(now, member, link);
    balanced.news().notify_waiters();
}
