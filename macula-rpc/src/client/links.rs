//! Tells the balancers of each provider's link, as the connection pool sees it, and dials providers behind the calls (H5, L2).
//!
//! One task a client follows the pool: a connection opens, falls silent, is heard again, ends. A service whose balancer wants dials has
//! one more task, which ends when the service is no longer called.
//!
//! **Invariant.** The calls that wait are woken after the balancer was told, so they see the news.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures::{
    StreamExt as _,
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use macula_select::Link;
use macula_transport::{DialError, Pool, PoolEvent, PoolEvents, Presence, PresenceWatch};
use macula_wire::{NodeId, ServiceName};

use super::{
    link,
    news::ClientEvent,
    services::{Balanced, Member, Roster, Service, WeakBalanced},
    shared::{Client, WeakClient, now},
};
use crate::keyed::Keyed;

/// The time between two questions for a service's list while one of its providers is silent or not reached.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long a dial behind the calls may take. A provider that is down is dialed again soon.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

impl Client {
    /// Follows the pool from now on, as long as the client lives. Calls ask for it, because they run within a runtime.
    pub(super) fn follow_links(&self) {
        if self.shared.follows_links.swap(true, Relaxed) {
            return;
        }
        let events = &self.shared.pool_events;
        if let Some(events) = events.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tokio::spawn(follow(self.downgrade(), events));
        }
    }

    fn tell_each(&self, tell: impl Fn(&mut Roster) -> bool) {
        let pool = &self.shared.pool;
        let told = |balanced: &Balanced, asker: Option<Asker>| {
            let told = tell(&mut balanced.lock());
            if told {
                balanced.news().notify_waiters();
                dial_behind(balanced, pool, asker);
            }
        };
        told(self.shared.services.routers(), None);
        for (name, service) in self.shared.services.all() {
            told(&service.balanced, Some(Asker::new(self, &name, &service)));
        }
    }

    /// Every node that a list names.
    fn listed(&self) -> Vec<NodeId> {
        let services = self.shared.services.all();
        let mut nodes = self.shared.services.routers().lock().listed();
        nodes.extend(
            services
                .iter()
                .flat_map(|(_, service)| service.balanced.lock().listed()),
        );
        nodes
    }

    /// Has the directory asked for the services that list any of these nodes: they may have other addresses by now.
    fn ask_for(&self, nodes: &HashSet<NodeId, Keyed>) {
        for (name, service) in self.shared.services.all() {
            if service.balanced.lock().lists_any(nodes) {
                Asker::new(self, &name, &service).ask_again();
            }
        }
    }

    fn tell_link(&self, node: &NodeId, link: Link) {
        let now = now();
        self.tell_each(|roster| {
            let member = roster.member(node);
            if let Some(member) = &member {
                roster.balancer.link(now, member, link);
            }
            member.is_some()
        });
    }
}

/// Has the directory asked anew for one service, behind its calls (D12).
#[derive(Clone)]
pub(super) struct Asker {
    client: WeakClient,
    service: ServiceName,
    known: Weak<Service>,
}

impl Asker {
    pub(super) fn new(client: &Client, service: &ServiceName, known: &Arc<Service>) -> Self {
        Self {
            client: client.downgrade(),
            service: service.clone(),
            known: Arc::downgrade(known),
        }
    }

    /// Asks, unless the directory was asked a moment ago.
    fn ask_again(&self) {
        self.ask(now().checked_sub(ASK_AGAIN).unwrap_or_else(now));
    }

    /// Asks, unless the directory was asked after `since`, and takes the list over.
    pub(super) fn ask(&self, since: Instant) {
        let (Some(client), Some(known)) = (self.client.upgrade(), self.known.upgrade()) else {
            return;
        };
        let service = self.service.clone();
        tokio::spawn(async move {
            let Client { shared } = &client;
            let asked = known.refresh.ask(&*shared.resolver, &service, since);
            if let Some(list) = asked.await {
                known.balanced.lock().reconcile(&list, now(), &shared.pool);
                known.balanced.news().notify_waiters();
            }
        });
    }
}

/// The presence of each connected peer, until its connection ends.
#[derive(Default)]
struct Peers {
    changes: FuturesUnordered<Abortable<Change>>,
    ends: HashMap<NodeId, AbortHandle, Keyed>,
    /// Those that are silent.
    silent: HashSet<NodeId, Keyed>,
}

type Change = futures::future::BoxFuture<'static, (NodeId, Presence, PresenceWatch)>;

impl Peers {
    fn follow(&mut self, node: NodeId, mut watch: PresenceWatch) {
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

    /// Notes whether a peer is believed to be there.
    fn note(&mut self, node: NodeId, presence: Presence) {
        match presence {
            Presence::Up => self.silent.remove(&node),
            Presence::Suspected => self.silent.insert(node),
        };
    }

    fn forget(&mut self, node: &NodeId) {
        self.silent.remove(node);
        if let Some(end) = self.ends.remove(node) {
            end.abort();
        }
    }

    /// The next change; pending while no peer is connected.
    async fn next(&mut self) -> (NodeId, Presence, PresenceWatch) {
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
async fn follow(client: WeakClient, mut events: PoolEvents) {
    let mut peers = Peers::default();
    let mut ask_at = tokio::time::Instant::now();
    loop {
        let has_silent = !peers.silent.is_empty();
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            () = tokio::time::sleep_until(ask_at), if has_silent => {
                let Some(client) = client.upgrade() else { return };
                client.ask_for(&peers.silent);
                ask_at = tokio::time::Instant::now() + ASK_AGAIN;
                continue;
            }
            (node, presence, watch) = peers.next() => {
                let Some(client) = client.upgrade() else { return };
                peers.note(node, presence);
                peers.follow(node, watch);
                let (link, event) = match presence {
                    Presence::Up => (Link::Up, ClientEvent::Heard(node)),
                    Presence::Suspected => (Link::Suspected, ClientEvent::Suspected(node)),
                };
                client.tell_link(&node, link);
                client.shared.services.news.tell(event);
                continue;
            }
        };
        let (Some(event), Some(client)) = (event, client.upgrade()) else {
            return;
        };
        let pool = &client.shared.pool;
        match event {
            PoolEvent::Opened { node, .. } => {
                if let Some(connection) = pool.open(&node) {
                    peers.note(node, Presence::Up);
                    peers.follow(node, connection.watch_presence());
                    client.tell_link(&node, Link::Up);
                }
            }
            PoolEvent::Closed { node, reason } => match pool.open(&node) {
                // The pool has kept the better of two connections.
                Some(connection) => {
                    peers.note(node, connection.presence());
                    peers.follow(node, connection.watch_presence());
                }
                None => {
                    peers.forget(&node);
                    client.tell_link(&node, link::after(&reason));
                }
            },
            PoolEvent::DialFailed { node: Some(node), .. } if pool.open(&node).is_none() => {
                client.tell_link(&node, Link::Down);
            }
            PoolEvent::Missed(_) => {
                let known: HashSet<NodeId, Keyed> = client.listed().into_iter().collect();
                for node in known {
                    if let Some(connection) = pool.open(&node) {
                        peers.follow(node, connection.watch_presence());
                    }
                }
                client.tell_each(|roster| {
                    roster.tell_all(now(), |node| link::of(pool, node));
                    true
                });
            }
            _ => {}
        }
    }
}

/// Makes sure that the dials that the balancer wants are made. A provider that is not reached may have another address by now, so
/// `asker` asks the directory.
pub(super) fn dial_behind(balanced: &Balanced, pool: &Pool, asker: Option<Asker>) {
    let mut roster = balanced.lock();
    if roster.dialing || roster.balancer.next_dial().is_none() {
        return;
    }
    roster.dialing = true;
    tokio::spawn(dial(balanced.downgrade(), pool.clone(), asker));
}

async fn dial(balanced: WeakBalanced, pool: Pool, asker: Option<Asker>) {
    loop {
        let next = {
            let Some(balanced) = balanced.upgrade() else { return };
            let mut roster = balanced.lock();
            let now = now();
            while let Some(member) = roster.balancer.poll_dial(now) {
                tokio::spawn(dial_one(balanced.downgrade(), pool.clone(), member, asker.clone()));
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

async fn dial_one(balanced: WeakBalanced, pool: Pool, member: Member, asker: Option<Asker>) {
    let peer = balanced.upgrade().and_then(|balanced| balanced.lock().peer(member));
    let Some((node, endpoints)) = peer else { return };
    let dialed = tokio::time::timeout(DIAL_TIMEOUT, pool.get(&node, &endpoints)).await;
    let link = match dialed {
        Ok(Ok(_)) => Link::Up,
        Ok(Err(error)) => after_dial(&error),
        Err(_) => Link::Down,
    };
    if let Some(balanced) = balanced.upgrade() {
        tell(&balanced, now(), &member, link);
    }
    if let (Link::Down, Some(asker)) = (link, asker) {
        asker.ask_again();
    }
}

/// The state in which a failed dial leaves the link.
pub(super) fn after_dial(error: &DialError) -> Link {
    match error {
        // It was not dialed.
        DialError::PoolFull { .. } => Link::Idle,
        _ => Link::Down,
    }
}

/// Tells one balancer of a link, and wakes the calls that wait.
pub(super) fn tell(balanced: &Balanced, now: Instant, member: &Member, link: Link) {
    balanced.lock().balancer.link(now, member, link);
    balanced.news().notify_waiters();
}
