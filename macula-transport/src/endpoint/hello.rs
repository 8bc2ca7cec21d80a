//! The introduction: the first message of each side on the control stream, and the check of the peer's.

use std::net::SocketAddr;

use bytes::Bytes;
use macula_wire::{NodeId, proto};
use prost::Message as _;

use crate::{
    access::Access,
    config::{Config, MAX_MESSAGE_BYTES},
    error::{CloseCode, HelloError},
    heads::{DEFAULT_HEAD_BYTES, DEFAULT_METADATA_ENTRIES, MAX_HEAD_BYTES, MAX_METADATA_ENTRIES},
    peer::{PeerInfo, Role, Standing},
};

/// The version of the protocol.
pub(crate) const VERSION: u32 = 1;
/// The largest frame on the control stream, in bytes.
pub(crate) const MAX_CONTROL_BYTES: usize = 8 * 1024;
/// The longest agent name that is sent or kept, in bytes.
pub(crate) const MAX_AGENT_BYTES: usize = 64;
/// The least that a peer accepts in one message, in bytes; a smaller limit in its HELLO counts as this one. A call above the peer's
/// limit fails and is not tried elsewhere, so a peer with a tiny limit could fail every call.
const MIN_PEER_MESSAGE_BYTES: u32 = 64 * 1024;

/// This node's introduction to a peer whose packets come from `peer_addr`.
///
/// # Errors
/// When this node has no valid grant of its closed realm.
pub(crate) fn ours(
    config: &Config,
    endpoints: &[macula_wire::Address],
    peer_addr: SocketAddr,
) -> Result<proto::Hello, HelloError> {
    let saturated = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let own = config.access.own().map_err(HelloError::OwnGrant)?;
    Ok(proto::Hello {
        version: VERSION,
        realm: Bytes::copy_from_slice(config.access.realm().hash().as_bytes()),
        role: config.role.to_wire().into(),
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        max_message_bytes: saturated(config.limits.max_message_bytes),
        max_concurrent_calls: saturated(config.limits.max_concurrent_calls),
        agent: shortened(&config.agent),
        observed: peer_addr.to_string(),
        max_head_bytes: saturated(config.limits.max_head_bytes),
        max_metadata_entries: saturated(config.limits.max_metadata_entries),
        chain: own.chain().map(|chain| chain.as_bytes().clone()).unwrap_or_default(),
    })
}

fn shortened(agent: &str) -> String {
    agent
        .char_indices()
        .take_while(|(at, c)| at + c.len_utf8() <= MAX_AGENT_BYTES)
        .map(|(_, c)| c)
        .collect()
}

/// Whether the peer asks for this node's introduction before it says its own.
pub(crate) fn is_question(frame: &Bytes) -> bool {
    let message = proto::Control::decode(frame.clone());
    matches!(
        message,
        Ok(proto::Control {
            kind: Some(proto::control::Kind::Ask(_))
        })
    )
}

/// The peer's introduction, read and checked.
pub(crate) fn read(
    frame: Bytes,
    access: &Access,
    node_id: NodeId,
    remote_addr: SocketAddr,
) -> Result<PeerInfo, HelloError> {
    let message = proto::Control::decode(frame).map_err(|_| HelloError::Malformed)?;
    let Some(proto::control::Kind::Hello(hello)) = message.kind else {
        return Err(HelloError::Malformed);
    };
    if hello.version != VERSION {
        return Err(HelloError::Version {
            theirs: hello.version,
            ours: VERSION,
        });
    }
    if hello.realm != access.realm().hash().as_bytes()[..] {
        return Err(HelloError::Realm);
    }
    let role = Role::from_wire(hello.role);
    let member = access.admit(&node_id, &hello.chain, role).map_err(HelloError::Access)?;
    if hello.endpoints.len() > macula_wire::MAX_ENDPOINTS {
        return Err(HelloError::Malformed);
    }
    let observed = match hello.observed.as_str() {
        "" => None,
        address => Some(address.parse().map_err(|_| HelloError::Malformed)?),
    };
    // Shown to people: nothing in it may steer a terminal.
    let agent = shortened(&hello.agent).chars().filter(|c| !c.is_control()).collect();
    Ok(PeerInfo {
        node_id,
        role,
        endpoints: hello
            .endpoints
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()?,
        remote_addr,
        observed,
        agent,
        max_message_bytes: hello
            .max_message_bytes
            .clamp(MIN_PEER_MESSAGE_BYTES, MAX_MESSAGE_BYTES as u32) as usize,
        max_head_bytes: (hello.max_head_bytes as usize).clamp(DEFAULT_HEAD_BYTES, MAX_HEAD_BYTES),
        max_metadata_entries: (hello.max_metadata_entries as usize)
            .clamp(DEFAULT_METADATA_ENTRIES, MAX_METADATA_ENTRIES),
        max_concurrent_calls: hello.max_concurrent_calls as usize,
        router: None,
        standing: Standing::new(member),
    })
}

impl HelloError {
    /// The code that closes the connection, which tells the peer.
    pub(crate) fn close_code(&self) -> CloseCode {
        match self {
            Self::Realm => CloseCode::Realm,
            Self::Access(error) => CloseCode::of_access(error),
            Self::OwnGrant(_) => CloseCode::NotAMember,
            Self::Version { .. } => CloseCode::Version,
            Self::Malformed | Self::Address(_) | Self::Frame(_) | Self::TimedOut | Self::Lost(_) | Self::Ended => {
                CloseCode::Protocol
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn heard(change: impl FnOnce(&mut proto::Hello)) -> Result<PeerInfo, HelloError> {
        let config = Config::new(crate::identity::Identity::generate().unwrap());
        let mut hello = ours(&config, &[], ([192, 0, 2, 7], 9443).into()).unwrap();
        change(&mut hello);
        let kind = Some(proto::control::Kind::Hello(hello));
        let frame = proto::Control { kind }.encode_to_vec();
        let node = NodeId::from_bytes([1; 32]);
        read(frame.into(), &config.access, node, ([127, 0, 0, 1], 1).into())
    }

    #[test]
    fn an_introduction_is_heard_as_it_was_said() {
        let peer = heard(|hello| hello.endpoints = vec!["https://node1:9443".into()]).unwrap();
        assert_eq!(peer.endpoints, ["node1:9443".parse().unwrap()]);
        assert_eq!((peer.role, peer.max_message_bytes), (Role::Client, 4 << 20));
        assert_eq!(peer.observed, Some(([192, 0, 2, 7], 9443).into()));
        assert!(peer.agent.starts_with("macula/"));
    }

    #[test]
    fn an_introduction_that_says_too_much_or_what_it_cannot_mean_is_refused() {
        let many = vec!["https://node1:9443".to_owned(); macula_wire::MAX_ENDPOINTS + 1];
        assert_eq!(heard(|hello| hello.endpoints = many), Err(HelloError::Malformed));
        let nonsense = vec!["not an endpoint".to_owned()];
        assert!(matches!(
            heard(|hello| hello.endpoints = nonsense),
            Err(HelloError::Address(_))
        ));
        assert_eq!(heard(|hello| hello.realm = Bytes::new()), Err(HelloError::Realm));
        assert_eq!(
            heard(|hello| hello.observed = "node1:9443".into()),
            Err(HelloError::Malformed)
        );
        assert_eq!(heard(|hello| hello.observed.clear()).unwrap().observed, None);
        assert!(matches!(
            heard(|hello| hello.version = 0),
            Err(HelloError::Version { theirs: 0, .. })
        ));
    }

    #[test]
    fn no_peer_is_believed_to_take_next_to_nothing_or_everything() {
        for (said, believed) in [(0, 64 << 10), (u32::MAX, 1 << 28)] {
            let peer = heard(|hello| hello.max_message_bytes = said).unwrap();
            assert_eq!(peer.max_message_bytes, believed);
        }
    }

    #[test]
    fn an_agents_name_is_short_and_steers_no_terminal() {
        let agent = format!("\u{1b}[2J{}", "é".repeat(200));
        let peer = heard(|hello| hello.agent = agent).unwrap();
        assert!(
            peer.agent.len() <= MAX_AGENT_BYTES && !peer.agent.contains('\u{1b}'),
            "{}",
            peer.agent
        );
    }
}
