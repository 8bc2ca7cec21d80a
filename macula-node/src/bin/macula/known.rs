//! The nodes that were trusted on first use, remembered so that it is said once.
//!
//! A file with a line for each, `HOST:PORT NODEID`, beside the default identity or in a node's data folder.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use macula_node::{NodeId, TrustedPeer};

const FILE: &str = "known_nodes";
/// The most that is read of the file, and written to it, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// The nodes that answered at an address before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// It answered there before.
    Same,
    /// No node is known there.
    Nothing,
    /// Other nodes answered there before.
    Others(BTreeSet<NodeId>),
}

/// The nodes known in a folder.
#[derive(Debug)]
pub(crate) struct KnownNodes {
    file: PathBuf,
    known: BTreeSet<(String, NodeId)>,
}

impl KnownNodes {
    /// Reads the file; a missing one is empty. Lines that are not understood are passed over.
    pub(crate) fn read(folder: &Path) -> io::Result<Self> {
        let file = folder.join(FILE);
        let mut text = String::new();
        match fs::File::open(&file) {
            Ok(file) => drop(file.take(MAX_BYTES).read_to_string(&mut text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let line = |line: &str| {
            let (address, id) = line.split_once(' ')?;
            Some((address.to_owned(), id.trim().parse().ok()?))
        };
        let known = text.lines().filter_map(line).collect();
        Ok(Self { file, known })
    }

    /// Remembers a node, and gives the nodes known at its address until now.
    pub(crate) fn meet(&mut self, peer: &TrustedPeer) -> io::Result<Before> {
        let address = address_of(peer);
        let here = self.known.iter().filter(|(known, _)| *known == address);
        let ids: BTreeSet<_> = here.map(|(_, id)| *id).collect();
        if ids.contains(&peer.node_id) {
            return Ok(Before::Same);
        }
        if let Some(folder) = self.file.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.file)?;
        if file.metadata()?.len() < MAX_BYTES {
            // In one write, so that two processes do not mix their lines.
            file.write_all(format!("{address} {}\n", peer.node_id).as_bytes())?;
        }
        self.known.insert((address, peer.node_id));
        Ok(if ids.is_empty() {
            Before::Nothing
        } else {
            Before::Others(ids)
        })
    }
}

/// `HOST:PORT`, an IPv6 address in its brackets.
pub(crate) fn address_of(peer: &TrustedPeer) -> String {
    let address = peer.endpoint.to_string();
    address.strip_prefix("https://").unwrap_or(&address).to_owned()
}
