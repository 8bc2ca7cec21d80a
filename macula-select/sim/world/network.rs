//! The network between clients and servers, as a transport sees it: connections, dials, silence.
//!
//! A client suspects a server that was silent for [`SUSPECTED_AFTER`] after something was sent to it, and gives its
//! connection up after [`LOST_AFTER`]. Both are told to the balancer, or not, for comparison.

use macula_select::{Fate, Link, Loss};

use super::{Event, Job, Nanos, World};
use crate::cluster::{MILLISECOND, Mode, Reception, SECOND};

const ROUND_TRIP: Nanos = MILLISECOND;
const SUSPECTED_AFTER: Nanos = 100 * MILLISECOND;
const LOST_AFTER: Nanos = SECOND;
const DIAL_TIMEOUT: Nanos = SECOND;
/// How soon an idle connection with attempts in flight sends something.
const KEEP_ALIVE: Nanos = 200 * MILLISECOND;
const LOOK_EVERY: Nanos = 20 * MILLISECOND;

/// What the network is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    /// Whether the balancers are told of links.
    pub(crate) told: bool,
    /// A server with more requests waiting acknowledges nothing: its process has no time for it.
    pub(crate) silent_above: usize,
}

/// A client's way to a server.
#[derive(Default)]
pub(super) struct Way {
    open: bool,
    dialing: bool,
    watched: bool,
    silent_since: Option<Nanos>,
    /// Attempts that wait for the dial.
    waiting: Vec<Job>,
    /// Attempts on the connection.
    sent: Vec<Job>,
}

impl World {
    fn way(&mut self, client: usize, provider: u16) -> &mut Way {
        &mut self.ways[client * usize::from(self.setup.providers) + usize::from(provider)]
    }

    fn tell(&mut self, client: usize, provider: u16, link: Link) {
        let now = self.instant();
        if self.setup.network.is_some_and(|network| network.told) {
            self.clients[client].link(now, &provider, link);
        }
    }

    fn is_silent(&self, provider: u16) -> bool {
        let server = &self.servers[usize::from(provider)];
        let above = self.setup.network.map_or(usize::MAX, |network| network.silent_above);
        server.is_cut_off() || server.waiting() > above
    }

    /// Sends an attempt, or has it wait for a dial.
    pub(super) fn send(&mut self, to: u16, job: Job) {
        let client = self.client_of(job);
        if self.setup.network.is_none() || self.way(client, to).open {
            return self.put_on_the_wire(client, to, job);
        }
        self.way(client, to).waiting.push(job);
        self.dial(client, to);
    }

    fn dial(&mut self, client: usize, to: u16) {
        let way = self.way(client, to);
        if way.dialing || way.open {
            return;
        }
        way.dialing = true;
        let takes = match self.servers[usize::from(to)].is_cut_off() {
            true => DIAL_TIMEOUT,
            false => ROUND_TRIP,
        };
        self.at(self.now + takes, Event::Dialed(client, to));
    }

    /// Dials what the balancer asks for.
    pub(super) fn dial_behind(&mut self, client: usize) {
        if !self.setup.network.is_some_and(|network| network.told) {
            return;
        }
        let now = self.instant();
        while let Some(provider) = self.clients[client].poll_dial(now) {
            self.dial(client, provider);
        }
    }

    pub(super) fn dialed(&mut self, client: usize, to: u16) {
        let cut_off = self.servers[usize::from(to)].is_cut_off();
        let way = self.way(client, to);
        way.dialing = false;
        way.open = !cut_off;
        let waiting = std::mem::take(&mut way.waiting);
        self.tell(client, to, if cut_off { Link::Down } else { Link::Up });
        for job in waiting {
            match cut_off {
                true => self.answer(job, Fate::NotSent),
                false => self.put_on_the_wire(client, to, job),
            }
        }
        self.drive_all_of(client);
    }

    fn put_on_the_wire(&mut self, client: usize, to: u16, job: Job) {
        self.count_attempt(to);
        if self.setup.network.is_some() {
            self.way(client, to).sent.push(job);
            if self.is_silent(to) {
                self.watch(client, to, SUSPECTED_AFTER);
            }
        }
        self.arrive_at(to, job);
    }

    fn arrive_at(&mut self, to: u16, job: Job) {
        match self.servers[usize::from(to)].arrive(job, &mut self.random) {
            Reception::Started(time) => self.at(self.now + time, Event::Served(to, job)),
            Reception::Quiet => {}
            Reception::Answer(fate, after) => self.answer_later(job, fate, after),
        }
    }

    /// An attempt is over for its client.
    pub(super) fn forget(&mut self, to: u16, job: Job) {
        if self.setup.network.is_some() {
            let client = self.client_of(job);
            let way = self.way(client, to);
            way.sent.retain(|sent| *sent != job);
            way.waiting.retain(|waiting| *waiting != job);
        }
    }

    /// Takes back an attempt that still waits for its dial.
    pub(super) fn take_back(&mut self, to: u16, job: Job) -> bool {
        let client = self.client_of(job);
        let way = self.way(client, to);
        let before = way.waiting.len();
        way.waiting.retain(|waiting| *waiting != job);
        way.waiting.len() < before
    }

    fn watch(&mut self, client: usize, provider: u16, after: Nanos) {
        let way = self.way(client, provider);
        if !way.watched && way.open {
            way.watched = true;
            self.at(self.now + after, Event::Look(client, provider));
        }
    }

    /// Has the server been heard?
    pub(super) fn look(&mut self, client: usize, provider: u16) {
        let (silent, now) = (self.is_silent(provider), self.now);
        let cut_off = self.servers[usize::from(provider)].is_cut_off();
        let way = self.way(client, provider);
        way.watched = false;
        if !way.open {
            return;
        }
        match (silent, way.silent_since) {
            (false, None) => {}
            (false, Some(_)) => {
                way.silent_since = None;
                self.tell(client, provider, Link::Up);
            }
            (true, Some(since)) if cut_off && now - since >= LOST_AFTER => self.lose(client, provider),
            (true, known) => {
                if known.is_none() {
                    way.silent_since = Some(now);
                    self.tell(client, provider, Link::Suspected);
                    self.drive_all_of(client);
                }
                self.watch(client, provider, LOOK_EVERY);
            }
        }
    }

    fn lose(&mut self, client: usize, provider: u16) {
        let way = self.way(client, provider);
        way.open = false;
        way.silent_since = None;
        let sent = std::mem::take(&mut way.sent);
        self.tell(client, provider, Link::Down);
        for job in sent {
            self.answer(job, Fate::Unknown(Loss::ConnectionLost));
        }
        self.drive_all_of(client);
    }

    /// A server's mode changes, and with it what its clients hear of it.
    pub(super) fn change(&mut self, provider: u16, mode: Mode) {
        let before = self.servers[usize::from(provider)].set_mode(mode);
        if self.setup.network.is_none() {
            return;
        }
        for client in 0..self.clients.len() {
            match (before, mode) {
                (_, Mode::Silent | Mode::Killed) if !self.way(client, provider).sent.is_empty() => {
                    self.watch(client, provider, KEEP_ALIVE + SUSPECTED_AFTER);
                }
                (Mode::Killed, _) if self.way(client, provider).open => self.lose(client, provider),
                _ => {}
            }
        }
        let (requests, replies) = self.servers[usize::from(provider)].what_was_held();
        for job in requests {
            self.arrive_at(provider, job);
        }
        for (job, fate) in replies {
            self.answer(job, fate);
        }
    }
}
