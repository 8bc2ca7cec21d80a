//! Tells the balancers of each provider's link, as the connection pool sees it, and dials providers behind the calls (H5, L2).
//!
//! One task a client follows the pool: a connection opens, falls silent, is heard again, ends. A service whose balancer wants dials has
//! one more task, which ends when the service is no longer called.
//!
//! **Invariant.** The calls that wait are woken after the balancer was told, so they see the news.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
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
use tokio::{sync::Notify, task::JoinHandle};

use super::{
    link_state,
    news::ClientEvent,
    services::{Balanced, Member, Roster, Service, WeakBalanced},
    shared::{Client, WeakClient, now},
};
use crate::{Provider, keyed::Keyed};

/// The time between two questions for a service's list while one of its providers is silent or not reached.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long the calls that wait on a silent connection have to go elsewhere, before the node counts as heard over another one.
const CALLS_LEAVE: Duration = Duration::from_millis(100);
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
        let told = |balanced: &Balanced, asker: Option<Refresher>| {
            let told = tell(&mut balanced.lock());
            if told {
                balanced.news().notify_waiters();
                dial_behind(balanced, pool, asker);
            }
        };
        told(self.shared.services.routers(), None);
        for (name, service) in self.shared.services.all() {
            told(&service.balanced, Some(Refresher::new(self, &name, &service)));
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
                Refresher::new(self, &name, &service).ask_again();
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

/// Has the directory asked again for one service, behind its calls (D12).
#[derive(Clone)]
pub(super) struct Refresher {
    client: WeakClient,
    service: ServiceName,
    known: Weak<Service>,
}

impl Refresher {
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

    /// Asks, unless the directory was asked at `since` or later, and takes the list over. A separate task asks, so that a call
    /// that stops waiting does not cancel it for the others.
    pub(super) fn ask(&self, since: Instant) -> JoinHandle<Option<Arc<[Provider]>>> {
        let Self { client, service, known } = self.clone();
        tokio::spawn(async move {
            let (client, known) = (client.upgrade()?, known.upgrade()?);
            let Client { shared } = &client;
            let list = known.refresh.ask(&*shared.resolver, &service, since).await?;
            known.balanced.lock().reconcile(&list, now(), &shared.pool);
            known.balanced.news().notify_waiters();
            Some(list)
        })
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

type Change = futures::future::BoxFuture<'static, (NodeId, Presence)>;

impl Peers {
    fn follow(&mut self, node: NodeId, mut watch: PresenceWatch) {
        let (end, registration) = AbortHandle::new_pair();
        let change: Change = Box::pin(async move { (node, watch.changed().await) });
        self.changes.push(Abortable::new(change, registration));
        if let Some(before) = self.ends.insert(node, end) {
            before.abort();
        }
    }

    /// Notes whether a peer is believed to be there. Returns whether that is new.
    fn note(&mut self, node: NodeId, presence: Presence) -> bool {
        match presence {
            Presence::Up => self.silent.remove(&node),
            Presence::Suspected => self.silent.insert(node),
        }
    }

    fn forget(&mut self, node: &NodeId) {
        self.silent.remove(node);
        if let Some(end) = self.ends.remove(node) {
            end.abort();
        }
    }

    /// Looks at the connection over which calls go to a node, follows it, and tells the balancers. `None` without a connection.
    fn look(&mut self, client: &Client, node: NodeId) -> Option<Presence> {
        let connection = client.shared.pool.open(&node)?;
        // Before the look: the watch tells of what happens after it.
        self.follow(node, connection.watch_presence());
        let presence = connection.presence();
        client.tell_link(&node, link_state::over(presence));
        if self.note(node, presence) {
            client.shared.services.news.tell(match presence {
                Presence::Up => ClientEvent::Heard(node),
                Presence::Suspected => ClientEvent::Suspected(node),
            });
        }
        Some(presence)
    }

    /// The presence of a node over one connection has changed.
    fn changed(&mut self, client: &Client, node: NodeId, presence: Presence) {
        let found = self.look(client, node);
        if (presence, found) == (Presence::Suspected, Some(Presence::Up)) {
            // It is heard over another connection. The calls that wait on the silent one have to know.
            client.tell_link(&node, Link::Suspected);
            let later: Change = Box::pin(async move {
                tokio::time::sleep(CALLS_LEAVE).await;
                (node, Presence::Up)
            });
            let (_, registration) = AbortHandle::new_pair();
            self.changes.push(Abortable::new(later, registration));
        }
    }

    /// The next node whose presence has changed, and to what; pending while no peer is connected.
    async fn next(&mut self) -> (NodeId, Presence) {
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
            (node, presence) = peers.next() => {
                let Some(client) = client.upgrade() else { return };
                peers.changed(&client, node, presence);
                continue;
            }
        };
        let (Some(event), Some(client)) = (event, client.upgrade()) else {
            return;
        };
        let pool = &client.shared.pool;
        match event {
            PoolEvent::Opened { node, .. } => {
                peers.look(&client, node);
            }
            // Unless the node has another connection.
            PoolEvent::Closed { node, reason } if peers.look(&client, node).is_none() => {
                peers.forget(&node);
                client.tell_link(&node, link_state::after(&reason));
            }
            PoolEvent::DialFailed { node: Some(node), .. } if pool.open(&node).is_none() => {
                client.tell_link(&node, Link::Down);
            }
            PoolEvent::Missed(_) => {
                let known: BTreeSet<NodeId> = client.listed().into_iter().collect();
                for node in known {
                    if let Some(connection) = pool.open(&node) {
                        peers.follow(node, connection.watch_presence());
                    }
                }
                client.tell_each(|roster| {
                    roster.tell_all(now(), |node| link_state::of(pool, node));
                    true
                });
            }
            _ => {}
        }
    }
}

/// Makes sure that the dials that the balancer wants are made in time. A provider that is not reached may have another address by now,
/// so `asker` asks the directory.
pub(super) fn dial_behind(balanced: &Balanced, pool: &Pool, asker: Option<Refresher>) {
    let mut roster = balanced.lock();
    if !roster.wants_dial() {
        return;
    }
    if roster.dials_at.is_some() {
        balanced.sooner().notify_one();
        return;
    }
    roster.dials_at = roster.balancer.next_dial();
    tokio::spawn(dial(
        balanced.downgrade(),
        balanced.sooner().clone(),
        pool.clone(),
        asker,
    ));
}

async fn dial(balanced: WeakBalanced, sooner: Arc<Notify>, pool: Pool, asker: Option<Refresher>) {
    loop {
        let next = {
            let Some(balanced) = balanced.upgrade() else { return };
            let mut roster = balanced.lock();
            let now = now();
            while let Some(member) = roster.balancer.poll_dial(now) {
                tokio::spawn(dial_one(balanced.downgrade(), pool.clone(), member, asker.clone()));
            }
            let next = roster.balancer.next_dial();
            roster.dials_at = next.map(|at| at.max(now + Duration::from_millis(1)));
            roster.dials_at
        };
        let Some(at) = next else { return };
        tokio::select! {
            biased;
            () = sooner.notified() => {}
            () = tokio::time::sleep_until(at.into()) => {}
        }
    }
}

async fn dial_one(balanced: WeakBalanced, pool: Pool, member: Member, asker: Option<Refresher>) {
    let peer = balanced.upgrade().and_then(|balanced| balanced.lock().peer(member));
    let Some((node, endpoints)) = peer else { return };
    let dialed = tokio::time::timeout(DIAL_TIMEOUT, pool.get(&node, &endpoints)).await;
    let link = match dialed {
        Ok(Ok(connection)) => link_state::over(connection.presence()),
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
