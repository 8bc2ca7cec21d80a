//! The peer's right to be here, over the life of a connection (A3).
//!
//! One task a connection: it ends the connection when the peer's grant ends or is revoked, and shows the peer this node's own grant
//! when that was renewed, so that the connection outlives the grant it began with. In an open realm it only waits.

use std::time::Duration;

use bytes::Bytes;
use macula_wire::{
    AccessError, ChainHash,
    proto::{self, control},
};

use super::link::Link;
use crate::error::CloseCode;

/// How long the grant's end is waited for before the clock is read again: a timer stands still while the machine is suspended.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How many grants that are not valid a peer may show on a connection: each costs the checks of its signatures.
const MAX_BAD_RENEWALS: usize = 8;

impl CloseCode {
    /// How a peer that introduces itself is told that its grant is not valid. It takes this as *not a call was read*.
    pub(crate) fn of_access(error: &AccessError) -> Self {
        match error {
            AccessError::Ended(_) => Self::GrantEnded,
            AccessError::Revoked(_) => Self::Revoked,
            AccessError::OtherRealm => Self::Realm,
            _ => Self::NotAMember,
        }
    }

    /// How a member is told that its grant is not valid any more. Its calls may have run, so no code says that it was turned away (X1).
    fn of_lost_access(error: &AccessError) -> Self {
        match error {
            AccessError::Revoked(_) => Self::Revoked,
            _ => Self::GrantEnded,
        }
    }
}

/// Watches over the peer's grant, and this node's own, of which the peer was shown `shown`. It ends with the connection.
pub(crate) async fn keep(link: &Link, mut shown: Option<ChainHash>) {
    let access = &link.shared.config.access;
    if !access.realm().is_closed() {
        return std::future::pending().await;
    }
    let mut changed = access.changed();
    loop {
        let member = link.peer.member();
        if let Err(error) = access.check(&member) {
            link.shared.counters.grants_ended.add();
            link.shared.hushes.ended.say(|unsaid| {
                tracing::warn!(peer = %link.peer.node_id, %error, unsaid, "a connection ends with its peer's grant");
            });
            link.close(CloseCode::of_lost_access(&error), &error.to_string());
            return std::future::pending().await;
        }
        let left = member.not_after().unwrap_or(u64::MAX).saturating_sub(access.now());
        let wait = Duration::from_secs(left.max(1)).min(LOOK_AGAIN);
        let news = access.shown().filter(|(hash, _)| shown != Some(*hash));
        // A peer that takes no control messages must not keep its own grant from being looked at.
        let show = async {
            let Some((hash, chain)) = news else {
                return std::future::pending().await;
            };
            let chain = chain.as_bytes().clone();
            link.tell_surely(control::Kind::Renewed(proto::Renewed { chain })).await;
            hash
        };
        tokio::select! {
            biased;
            change = changed.changed() => {
                if change.is_err() {
                    return std::future::pending().await;
                }
            }
            hash = show => shown = Some(hash),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Takes the grant that the peer has renewed. One that is not valid changes nothing: the connection ends with the one before, or when
/// the peer has shown [`MAX_BAD_RENEWALS`], which `bad` counts.
pub(crate) fn renewed(link: &Link, chain: &Bytes, bad: &mut usize) {
    let admitted = link
        .shared
        .config
        .access
        .admit(&link.peer.node_id, chain, link.peer.role);
    match admitted {
        Ok(member) => link.peer.renew(member),
        Err(error) => {
            link.shared.counters.rejected_renewals.add();
            link.shared.hushes.renewals.say(|unsaid| {
                tracing::warn!(peer = %link.peer.node_id, %error, unsaid, "a peer's renewed grant is not valid");
            });
            *bad += 1;
            if *bad >= MAX_BAD_RENEWALS {
                link.close(CloseCode::of_lost_access(&error), &error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::outcome::{End, Outcome, Progress, outcome},
        error::Lost,
    };

    /// X1: a member's calls may run already, so the end of its membership is never *turned away before a call was read*.
    #[test]
    fn x1_a_member_that_loses_its_grant_is_not_told_that_its_calls_were_not_read() {
        let errors = [
            AccessError::NoGrant,
            AccessError::Malformed,
            AccessError::OtherRealm,
            AccessError::BadSignature,
            AccessError::NotYet(1),
            AccessError::Ended(1),
        ];
        for error in errors {
            let lost = Lost::ClosedByPeer {
                code: CloseCode::of_lost_access(&error),
                reason: "".into(),
            };
            assert_eq!(outcome(End::from(&lost), Progress::Sent), Outcome::Unknown, "{error}");
        }
    }
}
