//! Which address others should dial, when nobody has said it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use macula_wire::Address;

use crate::BootstrapAddr;

/// A documentation address (RFC 5737, RFC 3849): the way to it is the way to everywhere.
const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

const ANYWHERE_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9);

/// The endpoint to advertise for a socket bound to `bound`: the address itself, or for "every address" the one of the
/// interface that leads to the first bootstrap node.
///
/// Looks at the routing table only: connecting a UDP socket sends nothing.
pub(crate) fn reachable(bound: SocketAddr, bootstrap: &[BootstrapAddr]) -> Option<Address> {
    let ip = if bound.ip().is_unspecified() {
        outgoing(bound, bootstrap)
    } else {
        bound.ip()
    };
    Address::try_from(SocketAddr::new(ip, bound.port())).ok()
}

/// Of the family that the socket is bound in: an address of the other could not be reached.
fn outgoing(bound: SocketAddr, bootstrap: &[BootstrapAddr]) -> IpAddr {
    let peers = bootstrap.iter().filter_map(|address| {
        let ip = address.endpoint.ip()?;
        Some(SocketAddr::new(ip, address.endpoint.port()))
    });
    let (anywhere, here) = match bound {
        SocketAddr::V4(_) => (ANYWHERE, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SocketAddr::V6(_) => (ANYWHERE_V6, IpAddr::V6(Ipv6Addr::LOCALHOST)),
    };
    let same_family = |peer: &SocketAddr| peer.is_ipv4() == bound.is_ipv4();
    peers
        .chain([anywhere])
        .filter(same_family)
        .find_map(towards)
        .unwrap_or(here)
}

fn towards(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    socket
        .local_addr()
        .ok()
        .map(|addr| addr.ip())
        .filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_address_is_advertised_as_it_is() {
        let bound = "127.0.0.1:4000".parse().unwrap();
        assert_eq!(reachable(bound, &[]), "127.0.0.1:4000".parse().ok());
    }

    #[test]
    fn every_address_becomes_the_one_that_leads_to_the_mesh() {
        let bound = "0.0.0.0:4000".parse().unwrap();
        let bootstrap = ["127.0.0.1:9443".parse().unwrap()];
        assert_eq!(reachable(bound, &bootstrap), "127.0.0.1:4000".parse().ok());
        let other_family = ["[::1]:9443".parse().unwrap(), "127.0.0.1:9443".parse().unwrap()];
        assert_eq!(reachable(bound, &other_family), "127.0.0.1:4000".parse().ok());
        let alone = reachable(bound, &[]).unwrap();
        assert!(!alone.ip().unwrap().is_unspecified());
    }
}
