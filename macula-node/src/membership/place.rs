//! This node's own grant: the first one for a token, the next one before the present one ends, and the file it is kept in.
//!
//! **When.** A grant that an issuer signed is renewed at two thirds of its life, a little earlier or later, so that nodes that joined
//! together do not ask together. An issuer that does not answer is asked again with backoff, and others are asked, too: those that the
//! last answer named, and those in the directory. So an absent issuer does no harm until the grant ends (A7). The issuer of the present
//! grant is asked first.
//!
//! **Revoked.** A node whose peers say that it is revoked asks for the order that proves it. With the proof it says so, once, and lets no
//! peer in any more, until it is given a new grant. A peer's word alone changes nothing.
//!
//! **By hand.** A grant that the realm's key signed is not renewed by issuers. When a grant is due its file is read again, so that one
//! that is put there and ends later is used without a restart.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use macula_rpc::{Resolve as _, ResolveOptions, Routers as _};
use macula_transport::{Access, Endpoint, PoolEvents, VisitError, private_file};
use macula_wire::{
    AccessError, Chain, ChainHash, Issuer, JoinRefusal, JoinReply, JoinRequest, JoinToken, MAX_ISSUERS, Member,
    Membership, NodeId, Realm,
};

use super::RENEW_SERVICE;
use crate::{
    BootstrapAddr, NodeEvent,
    directory::{Directory, Reached},
};

/// The most bytes of a grant's file.
const MAX_FILE_BYTES: usize = 16 * 1024;
/// How long a sleep lasts before the clock is read again: a timer stands still while the machine is suspended.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How long a node that joins with a token puts up with a busy issuer.
const BUSY_WITHIN: Duration = Duration::from_secs(60);
/// The first pause after a renewal that failed, and the longest.
const RETRY: Duration = Duration::from_secs(5);
/// How often a node asks at most for the order that revokes it, and how many nodes each time.
const ASK_WHY_EVERY: Duration = Duration::from_secs(30);
const ASKED_WHY: usize = 8;
/// How long a node with a grant and a token waits at its start for the word of the token's issuer about the grant.
const TAKEN_BACK_WITHIN: Duration = Duration::from_secs(3);
const MAX_RETRY: Duration = Duration::from_secs(300);

/// A node got no grant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// No issuer could be asked.
    #[error("no issuer of the realm is known: join with a token, or ask for a new grant")]
    NoIssuer,
    /// An issuer could not be reached.
    #[error("the issuer {issuer} could not be reached")]
    Unreachable {
        /// The issuer.
        issuer: NodeId,
        /// The reason.
        source: Box<VisitError>,
    },
    /// An issuer refused.
    #[error("the issuer {issuer} refused: {reason}")]
    Refused {
        /// The issuer.
        issuer: NodeId,
        /// Its reason.
        reason: JoinRefusal,
    },
    /// An issuer answered something else.
    #[error("the issuer {0} gave an answer that this version does not understand")]
    Malformed(NodeId),
    /// An issuer gave a grant that ends no later than the present one.
    #[error("the issuer {0} gave a grant that ends no later than the present one: its own grant may be about to end")]
    NoLonger(NodeId),
    /// The grant received is not valid here.
    #[error("the grant received cannot be used: compare the clocks of both machines")]
    Grant(#[source] AccessError),
    /// The node's own grant is not valid.
    #[error("the node's grant cannot be used")]
    OwnGrant(#[source] AccessError),
    /// The realm is closed, and nothing lets the node in.
    #[error(
        "the realm {0} is closed and the node has no grant: join with a token (`macula join TOKEN`), or start it with a grant or a token"
    )]
    NoGrant(Realm),
    /// The node was in a closed realm, and its grant is gone. It would start in an open realm, and let every node in.
    #[error(
        "the node was in {} and its grant, {}, is missing: put it back, or join again with a token (`macula join TOKEN`); a node of an open realm needs a data folder or an identity of its own",
        realm.as_ref().map_or("a closed realm".to_owned(), |realm| format!("the closed realm {realm}")),
        file.display()
    )]
    GrantGone {
        /// The realm, as far as it is known.
        realm: Option<Realm>,
        /// Where the grant was.
        file: PathBuf,
    },
    /// The node was in a closed realm and is told to be in an open one.
    #[error(
        "the node is told to be in the open realm {0}, and was in the closed realm {1}: leave its realm out, or give it a data folder or an identity of its own for the open one"
    )]
    Opened(Realm, Realm),
    /// The grant's file cannot be read or is damaged, and there is no other grant.
    #[error("the grant in {} cannot be read: remove the file and join again, or give the node its grant", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a node knows of its membership before it has a network.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Given by the program.
    pub(crate) given: Option<Membership>,
    /// Where the present grant is kept.
    pub(crate) file: Option<PathBuf>,
}

impl Kept {
    /// The membership in the file, if there is one.
    pub(crate) fn read(file: &Path) -> Result<Option<Membership>, MembershipError> {
        let unread = |source: Box<dyn std::error::Error + Send + Sync>| MembershipError::File {
            path: file.to_owned(),
            source,
        };
        let bytes = match private_file::read(file, MAX_FILE_BYTES) {
            Err(private_file::ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|error| unread(error.into()))?,
        };
        let text = std::str::from_utf8(&bytes).map_err(|error| unread(error.into()))?;
        text.parse()
            .map(Some)
            .map_err(|error: macula_wire::LineError| unread(error.into()))
    }

    /// Checks that a node which keeps its grant in `file` may start in this open realm: it was in no closed one.
    pub(crate) fn check_open(file: &Path, realm: &Realm) -> Result<(), MembershipError> {
        match Self::last_realm(file) {
            None => Ok(()),
            Some(Some(last)) if *realm != Realm::default() => Err(MembershipError::Opened(realm.clone(), last)),
            Some(realm) => Err(MembershipError::GrantGone {
                realm,
                file: file.to_owned(),
            }),
        }
    }

    /// Checks that the grant is in `file` which is all that lets a node into this closed realm.
    pub(crate) fn check_closed(file: &Path, realm: &Realm) -> Result<(), MembershipError> {
        let is_of_realm = |kept: Membership| kept.realm == *realm;
        match (Self::read(file)?.is_some_and(is_of_realm), Self::last_realm(file)) {
            (true, _) => Ok(()),
            (false, Some(Some(last))) if last == *realm => Err(MembershipError::GrantGone {
                realm: Some(last),
                file: file.to_owned(),
            }),
            (false, _) => Err(MembershipError::NoGrant(realm.clone())),
        }
    }

    /// The closed realm that a node whose grant is kept in `file` was in last; `Some(None)` when it is known only that there was one.
    fn last_realm(file: &Path) -> Option<Option<Realm>> {
        if let Ok(Some(kept)) = Self::read(file) {
            return kept.realm.is_closed().then_some(Some(kept.realm));
        }
        let Ok(bytes) = private_file::read(&realm_file(file), MAX_FILE_BYTES) else {
            // Of nodes that did not note their realm.
            let folder = file.parent()?;
            let is_of_closed = folder.join("revocations").is_file() || folder.join("members").is_dir();
            return is_of_closed.then_some(None);
        };
        let realm = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| text.trim().parse::<Realm>().ok());
        Some(realm.filter(Realm::is_closed))
    }

    /// Uses the grant, of those given and kept, that is valid the longest, and gives the issuers that renew it. When all have ended, the
    /// last one is given back for renewal. A file that cannot be read is an error only when nothing else lets the node in.
    pub(crate) fn choose(
        &self,
        access: &Access,
        has_token: bool,
    ) -> Result<(Option<Membership>, Vec<Issuer>), MembershipError> {
        let kept = match self.file.as_deref().map(Self::read).transpose() {
            Ok(kept) => kept.flatten(),
            Err(error) if self.given.is_some() || has_token => {
                unread(&error);
                None
            }
            Err(error) => return Err(error),
        };
        let all = [self.given.clone(), kept].into_iter().flatten();
        let mut of_realm: Vec<_> = all.filter(|it| it.realm == *access.realm()).collect();
        let end = |it: &Membership| {
            let member = it.chain.verify_late(access.realm(), access.now(), u64::MAX).ok();
            member.and_then(|member| member.not_after())
        };
        of_realm.sort_by_key(|it| std::cmp::Reverse(end(it)));
        let issuers = of_realm.iter().flat_map(|it| it.issuers.clone()).collect();
        let (mut ended, mut wrong) = (None, None);
        for membership in of_realm {
            match access.set_grant(&membership.chain) {
                Ok(_) => return Ok((None, issuers)),
                Err(AccessError::Ended(_)) => ended = ended.or(Some(membership)),
                Err(error) => wrong = wrong.or(Some(error)),
            }
        }
        match (ended, wrong.filter(|_| !has_token)) {
            (None, Some(error)) => Err(MembershipError::OwnGrant(error)),
            (ended, _) => Ok((ended, issuers)),
        }
    }
}

/// Where a node that keeps its grant in a file notes its closed realm, so that it does not start in an open one when the grant is lost.
#[must_use]
pub fn realm_file(grant: &Path) -> PathBuf {
    let mut name = grant.as_os_str().to_owned();
    name.push(".realm");
    name.into()
}

/// A node's place in its realm, to be kept.
pub(crate) struct Place {
    access: Access,
    transport: Arc<Endpoint>,
    issuers: Vec<Issuer>,
    file: Option<PathBuf>,
    /// Draws the jitter.
    random: u64,
}

impl Place {
    pub(crate) fn new(transport: &Arc<Endpoint>, issuers: Vec<Issuer>, file: Option<PathBuf>, random: u64) -> Self {
        Self {
            access: transport.access().clone(),
            transport: Arc::clone(transport),
            issuers,
            file,
            random: random | 1,
        }
    }

    /// Gets the node a grant, when it has none that is valid: the next one for one that has `ended`, or the first one for a token.
    /// A node with neither has to be given one.
    pub(crate) async fn enter(
        &mut self,
        ended: Option<Membership>,
        token: Option<&JoinToken>,
    ) -> Result<(), MembershipError> {
        if self.access.own().is_ok() {
            // A token beside a grant is a new one when the grant was taken back, of which this node may not have heard.
            let is_taken_back = match token.filter(|token| self.access.now() < token.not_after) {
                Some(token) => self.is_taken_back(&token.issuer).await,
                None => false,
            };
            if !is_taken_back {
                self.keep().await;
                return Ok(());
            }
        }
        let renewed = match ended {
            Some(ended) => self.renew(&ended.chain, Vec::new()).await.map(|_| ()),
            None => Err(MembershipError::NoIssuer),
        };
        match (renewed, token) {
            (Ok(()), _) | (Err(MembershipError::NoIssuer), None) => Ok(()),
            (Err(error), None) => Err(error),
            (Err(_), Some(token)) => {
                let request = JoinRequest::Join {
                    token: token.id,
                    secret: token.secret.clone(),
                };
                self.ask_patiently(&token.issuer, &request).await
            }
        }
    }

    /// Whether an issuer proves that this node's grant was taken back.
    async fn is_taken_back(&mut self, issuer: &Issuer) -> bool {
        let Some(chain) = self.last_grant() else { return false };
        let request = JoinRequest::Renew(chain);
        // Without an answer, and with every other one, the grant is as good as before.
        let _ = tokio::time::timeout(TAKEN_BACK_WITHIN, self.ask(issuer, &request)).await;
        self.access.own().is_err()
    }

    /// Asks some nodes for the order that takes this node's grant back, as a peer says that there is one.
    async fn ask_why(&self, routers: &Reached, bootstrap: &[BootstrapAddr]) {
        let Some(chain) = self.last_grant() else { return };
        let request = JoinRequest::Renew(chain).encode();
        let routers = routers.routers().into_iter();
        let routers = routers.map(|router| (Some(router.node_id), router.endpoints.to_vec()));
        let bootstrap = bootstrap.iter().map(|at| (at.node_id, vec![at.endpoint.clone()]));
        let issuers = self.issuers.iter();
        let issuers = issuers.map(|issuer| (Some(issuer.node_id), issuer.endpoints.clone()));
        for (node_id, endpoints) in routers.chain(bootstrap).chain(issuers).take(ASKED_WHY) {
            let visit = self.transport.visit(node_id, &endpoints, request.clone());
            let reply = visit.await.ok().and_then(|(_, reply)| JoinReply::decode(reply).ok());
            if let Some(JoinReply::Revoked(orders)) = reply {
                // The order proves itself.
                let _ = self.access.revoke(&orders);
                if self.access.own().is_err() {
                    return;
                }
            }
        }
    }

    /// Asks an issuer, and again while it is busy: nodes that start together come faster than it admits a network's nodes.
    async fn ask_patiently(&mut self, issuer: &Issuer, request: &JoinRequest) -> Result<(), MembershipError> {
        let give_up = tokio::time::Instant::now() + BUSY_WITHIN;
        loop {
            let asked = self.ask(issuer, request).await.map(|_| ());
            let pause = Duration::from_millis(500 + self.random(2500));
            match &asked {
                Err(MembershipError::Refused {
                    reason: JoinRefusal::Busy,
                    ..
                }) if tokio::time::Instant::now() + pause < give_up => tokio::time::sleep(pause).await,
                Ok(()) | Err(_) => return asked,
            }
        }
    }

    async fn renew(&mut self, chain: &Chain, found: Vec<Issuer>) -> Result<Member, MembershipError> {
        let mut issuers = self.issuers.clone();
        for issuer in found {
            // The directory knows where an issuer is now.
            issuers.retain(|known| known.node_id != issuer.node_id);
            issuers.push(issuer);
        }
        issuers.retain(|issuer| issuer.node_id != self.transport.node_id());
        let mut failed = MembershipError::NoIssuer;
        let request = JoinRequest::Renew(chain.clone());
        // A member is out with any issuer that ever renewed its grant, so another one is asked only when its own does not answer.
        let (realm, now) = (self.access.realm(), self.access.now());
        let own = chain.verify_late(realm, now, u64::MAX).ok();
        let own = own.and_then(|member| member.issuer().copied());
        let mut first = issuers.iter().position(|issuer| Some(issuer.node_id) == own);
        while !issuers.is_empty() {
            let random = self.random(issuers.len() as u64) as usize;
            let at = first.take().unwrap_or(random);
            match self.ask(&issuers.swap_remove(at), &request).await {
                Ok(member) => return Ok(member),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Asks one issuer, and uses the grant that it gives.
    async fn ask(&mut self, issuer: &Issuer, request: &JoinRequest) -> Result<Member, MembershipError> {
        let node_id = issuer.node_id;
        let visit = self.transport.visit(Some(node_id), &issuer.endpoints, request.encode());
        let (_, reply) = visit.await.map_err(|error| MembershipError::Unreachable {
            issuer: node_id,
            source: Box::new(error),
        })?;
        match JoinReply::decode(reply) {
            Ok(JoinReply::Admitted { chain, issuers }) => {
                // Every peer has seen this node's earlier grants, and could hand one of them out.
                let given = chain.verify(self.access.realm(), self.access.now());
                if given.map_err(MembershipError::Grant)?.not_after() <= self.end() {
                    return Err(MembershipError::NoLonger(node_id));
                }
                let member = self.access.set_grant(&chain).map_err(MembershipError::Grant)?;
                self.learn(issuers);
                self.keep().await;
                Ok(member)
            }
            Ok(JoinReply::Refused(reason)) => Err(MembershipError::Refused {
                issuer: node_id,
                reason,
            }),
            Ok(JoinReply::Revoked(orders)) => {
                // The order proves itself, whatever the issuer says.
                let _ = self.access.revoke(&orders);
                Err(MembershipError::Refused {
                    issuer: node_id,
                    reason: JoinRefusal::Revoked,
                })
            }
            Ok(JoinReply::Heeded(_)) | Err(_) => Err(MembershipError::Malformed(node_id)),
        }
    }

    /// Remembers issuers, the latest first.
    fn learn(&mut self, issuers: Vec<Issuer>) {
        for issuer in issuers.into_iter().rev() {
            self.issuers.retain(|known| known.node_id != issuer.node_id);
            self.issuers.insert(0, issuer);
        }
        self.issuers.truncate(MAX_ISSUERS);
    }

    /// Keeps the present grant in its file.
    async fn keep(&self) {
        let (Some(file), Ok(own)) = (self.file.clone(), self.access.own()) else {
            return;
        };
        let Some(chain) = own.chain().cloned() else { return };
        let membership = Membership {
            realm: self.access.realm().clone(),
            chain,
            issuers: self.issuers.clone(),
        };
        let (line, realm) = (format!("{membership}\n"), format!("{}\n", membership.realm));
        let written = tokio::task::spawn_blocking(move || {
            let note = realm_file(&file);
            let is_noted = private_file::read(&note, MAX_FILE_BYTES).is_ok_and(|noted| *noted == realm.as_bytes());
            let noted = is_noted || private_file::write(&note, realm.as_bytes()).is_ok();
            tracing::debug!(noted, "the realm is noted beside the grant");
            private_file::write(&file, line.as_bytes()).map_err(|error| (file, error))
        });
        if let Ok(Err((file, error))) = written.await {
            tracing::warn!(file = %file.display(), %error, "the node's grant is not kept: after a restart the node may have to join again");
        }
    }

    /// Renews the grant for as long as the node runs.
    pub(crate) async fn stay(mut self, directory: Directory, routers: Reached, bootstrap: Vec<BootstrapAddr>) {
        let mut changed = self.access.changed();
        let mut events = self.transport.pool().events();
        let mut asked_why: Option<tokio::time::Instant> = None;
        let mut revoked = None;
        let mut grant = self.grant();
        let mut pause = RETRY;
        let mut warned = false;
        loop {
            self.tell_rotation(&mut grant, &directory);
            self.tell_revocation(&mut revoked, &directory);
            let now = self.access.now();
            let due_in = self.access.own().ok().map(|own| due_in(&own, now));
            if let Some(due_in) = due_in.filter(|due_in| !due_in.is_zero()) {
                (pause, warned) = (RETRY, false);
                tokio::select! {
                    // A grant was given by hand, or a revocation came: the due time may be another.
                    change = changed.changed() => if change.is_err() { return },
                    () = tokio::time::sleep(due_in.min(LOOK_AGAIN)) => {}
                    () = said_revoked(&mut events) => {
                        let now = tokio::time::Instant::now();
                        if asked_why.is_none_or(|then| now >= then + ASK_WHY_EVERY) {
                            asked_why = Some(now);
                            self.ask_why(&routers, &bootstrap).await;
                        }
                    }
                }
                continue;
            }
            match self.next_grant(&directory).await {
                Ok(()) => {
                    self.tell_rotation(&mut grant, &directory);
                    (pause, warned) = (RETRY, false);
                    // A grant may be due as soon as it is there: that of an issuer whose own is about to end.
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => {
                    say(&error, warned);
                    warned = true;
                    let jitter = Duration::from_millis(self.random(1 + pause.as_millis() as u64 / 2));
                    tokio::select! {
                        change = changed.changed() => if change.is_err() { return },
                        () = tokio::time::sleep(pause / 2 + jitter) => {}
                    }
                    pause = (2 * pause).min(MAX_RETRY);
                }
            }
        }
    }

    /// Tells the node's readers when its grant is another than `known`.
    fn tell_rotation(&self, known: &mut Option<ChainHash>, directory: &Directory) {
        let present = self.grant();
        if let (true, Some(own)) = (*known != present, self.access.member()) {
            let ends = own.not_after().unwrap_or_default();
            directory.news().tell(NodeEvent::Rotated {
                issuer: own.issuer().copied(),
                valid_for: Duration::from_secs(ends.saturating_sub(self.access.now())),
            });
        }
        *known = present;
    }

    /// Says once that this node is revoked, and tells its readers. With a new grant it may be said again.
    fn tell_revocation(&self, known: &mut Option<NodeId>, directory: &Directory) {
        let present = match self.access.own() {
            Err(AccessError::Revoked(node_id)) => Some(node_id),
            Ok(_) | Err(_) => None,
        };
        if let (None, Some(node_id)) = (&known, present) {
            if node_id == self.transport.node_id() {
                tracing::error!(
                    "this node was revoked: it is out of its realm until it is given a new grant or a new token"
                );
            } else {
                tracing::error!(issuer = %node_id, "this node is out of its realm, because an issuer of its grants was revoked: join another issuer with a new token");
            }
            directory.news().tell(NodeEvent::Revoked(node_id));
        }
        *known = present;
    }

    async fn next_grant(&mut self, directory: &Directory) -> Result<(), MembershipError> {
        // A file that cannot be read is no reason to fall out of the realm: an issuer is asked, and its grant replaces the file.
        match self.longer_in_file().await {
            Ok(None) => {}
            Ok(Some(given)) => match self.access.set_grant(&given.chain) {
                Ok(_) => {
                    self.learn(given.issuers);
                    return Ok(());
                }
                Err(error) => say(&MembershipError::Grant(error), false),
            },
            Err(error) => unread(&error),
        }
        let Some(chain) = self.last_grant() else {
            return Err(MembershipError::NoIssuer);
        };
        let found = self.issuers_in(directory).await;
        self.renew(&chain, found).await.map(|_| ())
    }

    /// The grant in the file, when it is valid for longer than the present one. The file may be older: it could not be written then.
    async fn longer_in_file(&self) -> Result<Option<Membership>, MembershipError> {
        let Some(file) = self.file.clone() else { return Ok(None) };
        let Ok(read) = tokio::task::spawn_blocking(move || Kept::read(&file)).await else {
            return Ok(None);
        };
        let (realm, now) = (self.access.realm(), self.access.now());
        let end = |chain: &Chain| chain.verify(realm, now).ok().and_then(|member| member.not_after());
        let last = self.last_grant();
        let is_news = |given: &Membership| given.realm == *realm && last.as_ref() != Some(&given.chain);
        Ok(read?.filter(|given| is_news(given) && end(&given.chain) > self.end()))
    }

    /// The last grant's hash, valid or not.
    fn grant(&self) -> Option<ChainHash> {
        self.access.member()?.chain_hash().copied()
    }

    /// When the present grant ends; `None` when it has ended or was revoked.
    fn end(&self) -> Option<u64> {
        self.access.own().ok()?.not_after()
    }

    /// The last grant, valid or not.
    fn last_grant(&self) -> Option<Chain> {
        self.access.member()?.chain().cloned()
    }

    /// The issuers that the directory knows, as far as it answers.
    async fn issuers_in(&self, directory: &Directory) -> Vec<Issuer> {
        let Ok(service) = RENEW_SERVICE.parse() else {
            return Vec::new();
        };
        let found = directory.resolve(&service, ResolveOptions::default()).await;
        let providers = found.map(|found| found.providers).unwrap_or_default();
        let issuer = |provider: &macula_rpc::Provider| Issuer {
            node_id: provider.node_id,
            endpoints: provider.endpoints.to_vec(),
        };
        providers.iter().take(MAX_ISSUERS).map(issuer).collect()
    }

    /// A number below `bound`: Marsaglia's xorshift, because which issuer is asked first is no secret.
    fn random(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }
}

/// Waits until a peer says that this node is revoked.
async fn said_revoked(events: &mut PoolEvents) {
    while let Some(event) = events.next().await {
        if event.says_revoked() {
            return;
        }
    }
    std::future::pending().await
}

/// How long until a grant is due: two thirds of its life, less up to a tenth of it.
fn due_in(own: &Member, now: u64) -> Duration {
    let Some(end) = own.not_after() else { return LOOK_AGAIN };
    let life = end.saturating_sub(own.not_before());
    // Drawn from the grant itself, so that each look gives the same time.
    let early = own.chain_hash().map_or(0, |hash| u64::from(hash.as_bytes()[0])) * life / 2560;
    let due = own.not_before() + life * 2 / 3 - early;
    Duration::from_secs(due.saturating_sub(now))
}

/// Says that the grant's file is damaged, and that the node does without it.
fn unread(error: &MembershipError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(
        error,
        "the node goes on without the grant in its file: the next grant that it gets replaces it"
    );
}

fn say(error: &MembershipError, again: bool) {
    let error = error as &dyn std::error::Error;
    if again {
        tracing::debug!(error, "the node's grant is not renewed yet");
    } else {
        tracing::warn!(error, "the node's grant is not renewed yet; the node goes on asking");
    }
}

#[cfg(test)]
mod tests {
    use macula_wire::{Grant, RealmKey, RealmName};

    use super::*;

    #[test]
    fn a7_grants_of_one_moment_are_due_apart_before_two_thirds_of_their_life() -> Result<(), Box<dyn std::error::Error>>
    {
        let key = RealmKey::from_bytes(&[9; 32]);
        let realm = key.realm(RealmName::new("shop")?);
        let mut due = Vec::new();
        for n in 0..100 {
            let grant = Grant::new(&realm, NodeId::from_bytes([n; 32]), 1_000_000..=1_090_000);
            let member = grant.sign(&key)?.verify(&realm, 1_000_000)?;
            due.push(due_in(&member, 1_000_000).as_secs());
            assert_eq!(due_in(&member, 1_070_000), Duration::ZERO);
        }
        assert!(due.iter().all(|due| (51_000..=60_000).contains(due)), "{due:?}");
        due.sort_unstable();
        assert!(due[90] - due[10] > 5_000, "all at once: {due:?}");
        Ok(())
    }
}
