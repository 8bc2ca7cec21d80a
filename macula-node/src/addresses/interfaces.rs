//! The addresses of this machine's network interfaces, as the operating system lists them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use crate::BootstrapAddr;

/// Documentation addresses (RFC 5737, RFC 3849): the route to them is the default route.
const ANYWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// The addresses of the interfaces that are up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interfaces {
    /// The addresses that lead to the bootstrap nodes and along the default route, the best first.
    pub(crate) routed: Vec<IpAddr>,
    /// Every address.
    pub(crate) all: Vec<IpAddr>,
}

/// Reads the interfaces. Sends nothing: connecting a UDP socket only looks into the routing table.
pub(crate) fn read(bootstrap: &[BootstrapAddr]) -> io::Result<Interfaces> {
    let up = if_addrs::get_if_addrs()?
        .into_iter()
        .filter(if_addrs::Interface::is_oper_up);
    let peers = bootstrap.iter().filter_map(|address| {
        let ip = address.endpoint.ip()?;
        Some(SocketAddr::new(ip, address.endpoint.port()))
    });
    Ok(Interfaces {
        routed: peers.chain(ANYWHERE).filter_map(source_towards).collect(),
        all: up.map(|interface| interface.ip()).collect(),
    })
}

/// Whether this machine can open IPv6 sockets.
pub(crate) fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

/// The address that packets to `peer` leave from, when there is a route.
fn source_towards(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interfaces_include_loopback_and_the_route_to_a_peer() {
        let read = read(&["127.0.0.1:9443".parse().unwrap()]).unwrap();
        assert_eq!(read.routed[0], IpAddr::from(Ipv4Addr::LOCALHOST));
        assert!(read.all.contains(&Ipv4Addr::LOCALHOST.into()), "{:?}", read.all);
    }
}
