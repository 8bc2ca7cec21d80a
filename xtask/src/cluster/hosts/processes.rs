//! Processes on the loopback interface.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use super::host::{Counter, Hosts, Launch, NetFault, Place, Side, Started};
use crate::cluster::scenario::Family;

#[derive(Debug)]
pub(super) struct Processes {
    program: PathBuf,
    ip: IpAddr,
    count: u16,
}

impl Processes {
    pub(super) fn new(program: &Path, family: Family) -> Self {
        Self {
            program: program.to_path_buf(),
            ip: match family {
                Family::V4 | Family::Mixed => Ipv4Addr::LOCALHOST.into(),
                Family::V6 => Ipv6Addr::LOCALHOST.into(),
            },
            count: 0,
        }
    }
}

impl Hosts for Processes {
    fn add(&mut self, _side: Side) -> Result<Place> {
        self.count += 1;
        Ok(Place {
            number: self.count,
            ip: self.ip,
            other: None,
            // A free port, which the node keeps when it starts again.
            listen: SocketAddr::new(self.ip, 0).to_string(),
        })
    }

    fn start(&mut self, _place: &Place, launch: &Launch) -> Result<Started> {
        let env = launch.env.iter().map(|(name, value)| (name, value));
        Started::spawn(Command::new(&self.program).args(&launch.args).envs(env), &launch.log)
    }

    fn afflict(&mut self, _place: &mut Place, fault: NetFault) -> Result<()> {
        bail!("processes share one loopback interface, on which {fault:?} is not possible")
    }

    fn counters(&self, _place: &Place, _fault: NetFault) -> Result<Vec<Counter>> {
        Ok(Vec::new())
    }

    fn addresses(&self, place: &Place) -> Result<Vec<IpAddr>> {
        Ok(vec![place.ip])
    }
}
