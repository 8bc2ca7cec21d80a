//! The answers to nodes that ask for a grant, or that carry a revocation (A6, A7).
//!
//! **What an issuer gives.** A token's bearer gets a grant on the token's terms. A member whose grant an issuer signed, this one or
//! another, gets the next one on the same terms, also when its grant has ended less than [`LATE`] ago. A grant that the realm's key
//! itself signed is not renewed: its end was chosen by hand. Neither a revoked node nor a member of a revoked issuer gets anything; any
//! node, issuer or not, answers the renewal of such a grant with the order that takes it back.
//!
//! **Nothing waits for strangers.** Tokens are looked up for strangers, whose networks have a limit each. A renewal proves its member, and
//! an order its signer; both proofs cost less than the handshake before them. So renewals have a limit for each member, and an order needs
//! none: what is no news costs no more than a refusal, and its signer has so many orders at most.
//!
//! **A token's use is counted before the grant leaves.** The same node with the same token costs no further use, so an answer that was
//! lost can be asked for again.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use macula_rpc::{Request, Status};
use macula_transport::{Access, Hush, Identity, Visitor};
use macula_wire::{
    Address, Chain, Effect, Heeded, Issuer, JoinRefusal, JoinReply, JoinRequest, Member, Network, NodeId,
    SignedRevocations, Terms, TokenId, TokenSecret,
};
use tokio::sync::watch;

use super::{
    folder::{IssuerFolder, Unusable},
    limiter::Limiter,
    spread::Spread,
};

/// How long a grant lasts that an issuer signs, unless it is told otherwise.
pub const DEFAULT_GRANT_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest life of a grant that an issuer signs: between its renewal and its end every service is published again.
pub const MIN_GRANT_LIFE: Duration = Duration::from_secs(15 * 60);
/// How long after its end a grant is renewed still, in seconds: a week, so that an issuer may be away for some days.
const LATE: u64 = 7 * 24 * 60 * 60;

/// Answers visitors. Every node of a closed realm has one; only an issuer's gives grants.
pub(crate) struct Doorkeeper {
    access: Access,
    identity: Identity,
    spread: Spread,
    /// Where tokens and members are kept; without it only renewals are answered.
    folder: Option<IssuerFolder>,
    /// How long a grant lasts, in seconds.
    life: u64,
    /// Of strangers, by their network.
    strangers: Mutex<Limiter<Network>>,
    /// Of members that renew, by their key: no stranger takes from their share.
    members: Mutex<Limiter<NodeId>>,
    endpoints: watch::Receiver<Arc<[Address]>>,
    /// Held while a token is looked at and used: two nodes must not take one use.
    files: Mutex<()>,
    /// Requests for a grant that were refused, and the log's part of them.
    refused: AtomicU64,
    hush: Hush,
}

impl Doorkeeper {
    pub(crate) fn new(
        access: Access,
        identity: Identity,
        spread: Spread,
        folder: Option<IssuerFolder>,
        life: Duration,
        endpoints: watch::Receiver<Arc<[Address]>>,
        now: Instant,
    ) -> Self {
        Self {
            access,
            identity,
            spread,
            folder,
            life: life.as_secs(),
            strangers: Mutex::new(Limiter::new(now)),
            members: Mutex::new(Limiter::new(now)),
            endpoints,
            files: Mutex::new(()),
            refused: AtomicU64::new(0),
            hush: Hush::default(),
        }
    }

    /// Answers a visitor; `None` for what is no request.
    pub(crate) async fn answer(self: Arc<Self>, visitor: Visitor, body: Bytes, now: Instant) -> Option<Bytes> {
        let request = JoinRequest::decode(body).ok()?;
        let shown = match &request {
            JoinRequest::Renew(chain) => self.shown(&visitor.node_id, chain),
            JoinRequest::Join { .. } | JoinRequest::Revoke(_) => None,
        };
        let admitted = match (&request, &shown) {
            (JoinRequest::Revoke(_), _) => true,
            (_, Some(member)) => lock(&self.members).admit(*member.node_id(), now),
            (_, None) => lock(&self.strangers).admit(Network::of(visitor.remote_addr.ip()), now),
        };
        if !admitted {
            self.note_refusal(&visitor, JoinRefusal::Busy);
            return Some(JoinReply::Refused(JoinRefusal::Busy).encode());
        }
        // Blocking: writes files.
        let work = tokio::task::spawn_blocking(move || self.reply(&visitor, request, shown));
        Some(work.await.ok()?.encode())
    }

    /// The member that the node is by its own grant, when that has not ended longer than [`LATE`] ago.
    fn shown(&self, node_id: &NodeId, chain: &Chain) -> Option<Member> {
        let member = chain.verify_late(self.access.realm(), self.access.now(), LATE).ok()?;
        (member.node_id() == node_id).then_some(member)
    }

    /// How many requests for a grant were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn note_refusal(&self, visitor: &Visitor, reason: JoinRefusal) {
        self.refused.fetch_add(1, Relaxed);
        self.hush.say(|unsaid| {
            tracing::warn!(node = %visitor.node_id, from = %visitor.remote_addr, %reason, unsaid, "a node got no grant");
        });
    }

    /// Answers a member that calls the service. Which member that is, its connection knows.
    pub(crate) async fn called(door: Option<Arc<Self>>, request: Request) -> Result<Bytes, Status> {
        let (Some(door), Some(peer)) = (door, request.peer()) else {
            return Err(Status::unavailable("the issuer does not answer yet"));
        };
        let visitor = Visitor::new(peer.node_id, peer.remote_addr);
        let now = tokio::time::Instant::now().into_std();
        let reply = door.answer(visitor, request.into_payload(), now).await;
        reply.ok_or_else(|| Status::invalid_argument("the message is no request of a member"))
    }

    fn reply(&self, visitor: &Visitor, request: JoinRequest, shown: Option<Member>) -> JoinReply {
        let node_id = &visitor.node_id;
        let replied = match request {
            JoinRequest::Revoke(orders) => match self.access.revoke(&orders) {
                Ok(news) => {
                    if news {
                        tracing::info!(from = %visitor.remote_addr, "a revocation was handed in");
                    }
                    return self.heeded(&orders);
                }
                Err(error) => {
                    self.spread.note_refusal(&visitor.node_id, &error);
                    return JoinReply::Refused(JoinRefusal::BadOrders);
                }
            },
            JoinRequest::Join { token, secret } => self.join(node_id, &token, &secret),
            JoinRequest::Renew(_) => {
                if let Some(orders) = shown.as_ref().and_then(|member| self.access.proof_against(member)) {
                    self.note_refusal(visitor, JoinRefusal::Revoked);
                    return JoinReply::Revoked(orders);
                }
                self.renew(shown.filter(|member| member.issuer().is_some()))
            }
        };
        match replied {
            Ok(chain) => JoinReply::Admitted {
                chain,
                issuers: vec![Issuer {
                    node_id: self.identity.node_id(),
                    endpoints: self.endpoints.borrow().to_vec(),
                }],
            },
            Err(Unusable::Refused(refusal)) => {
                self.note_refusal(visitor, refusal);
                JoinReply::Refused(refusal)
            }
            Err(Unusable::Folder(error)) => {
                tracing::error!(node = %node_id, error = &error as &dyn std::error::Error, "a node got no grant");
                JoinReply::Refused(JoinRefusal::Busy)
            }
        }
    }

    /// What this node says of orders that it has taken.
    fn heeded(&self, orders: &SignedRevocations) -> JoinReply {
        // Written before the sender hears of it, so that an order that is said to be kept outlives this node.
        let kept = self.spread.keep();
        let (effect, readmitted) = self.access.effect(orders).unwrap_or((Effect::Unknown, Vec::new()));
        let own = self.access.member();
        JoinReply::Heeded(Heeded {
            kept,
            chain: own.and_then(|own| own.chain().cloned()),
            effect,
            readmitted,
        })
    }

    fn join(&self, node_id: &NodeId, id: &TokenId, secret: &TokenSecret) -> Result<Chain, Unusable> {
        let own = self.issuer()?;
        let folder = self.folder.as_ref().ok_or(JoinRefusal::UnknownToken)?;
        let _files = lock(&self.files);
        let now = self.access.now();
        let token = folder.token(id, secret, now)?;
        let known = folder.member(node_id)?;
        let chain = self.grant(&own, node_id, (&token.terms, token.made_at), None, now)?;
        if known.as_ref().is_none_or(|known| known.token != Some(*id)) {
            folder.use_up(id, &token)?;
        }
        folder.keep_member(node_id, known.as_ref(), Some(*id), &chain, now)?;
        tracing::info!(node = %node_id, token = %id, "a node joined the realm");
        Ok(chain)
    }

    fn renew(&self, renewed: Option<Member>) -> Result<Chain, Unusable> {
        let own = self.issuer()?;
        let now = self.access.now();
        let member = renewed.ok_or(JoinRefusal::NotRenewable)?;
        let node_id = member.node_id();
        let terms = Terms::of(&member).ok_or(JoinRefusal::NotRenewable)?;
        let chain = self.grant(&own, node_id, (&terms, member.admitted_at()), Some(&member), now)?;
        if let Some(folder) = &self.folder {
            let _files = lock(&self.files);
            let known = folder.member(node_id)?;
            folder.keep_member(node_id, known.as_ref(), None, &chain, now)?;
        }
        tracing::debug!(node = %node_id, "a grant was renewed");
        Ok(chain)
    }

    /// This node's own grant, when it lets it issue now.
    fn issuer(&self) -> Result<Member, JoinRefusal> {
        let own = self.access.own().map_err(|_| JoinRefusal::NoIssuer)?;
        own.issue().is_some().then_some(own).ok_or(JoinRefusal::NoIssuer)
    }

    /// Signs a grant of terms that were given at a time: the first one of a node, or the next one of the member `renewed`.
    fn grant(
        &self,
        own: &Member,
        node_id: &NodeId,
        (terms, given_at): (&Terms, u64),
        renewed: Option<&Member>,
        now: u64,
    ) -> Result<Chain, JoinRefusal> {
        let begin = now.max(own.not_before());
        let end = begin.saturating_add(self.life).min(own.not_after().unwrap_or(u64::MAX));
        let grant = terms.grant(self.access.realm(), *node_id, begin..=end);
        let mut grant = grant.with_admitted_at(given_at.min(begin));
        if let Some(renewed) = renewed {
            grant = grant.with_admitted_by(renewed.renewed_by(own.node_id()));
        }
        let chain = grant.issue(own, &self.identity);
        let chain = chain.map_err(|_| JoinRefusal::BeyondIssuer)?;
        let member = chain.verify(self.access.realm(), now);
        let member = member.map_err(|_| JoinRefusal::BeyondIssuer)?;
        match self.access.check_unrevoked(&member) {
            Ok(()) => Ok(chain),
            Err(_) => Err(JoinRefusal::Revoked),
        }
    }

    /// Keeps the addresses of this node for its tokens as they change, until the node is gone.
    pub(crate) async fn keep_addresses(folder: IssuerFolder, mut endpoints: watch::Receiver<Arc<[Address]>>) {
        loop {
            let now = endpoints.borrow_and_update().clone();
            let folder = folder.clone();
            let kept = tokio::task::spawn_blocking(move || folder.set_addresses(&now)).await;
            if let Ok(Err(error)) = kept {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "the issuer's addresses are not kept: new tokens may name old ones"
                );
            }
            if endpoints.changed().await.is_err() {
                return;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
