//! Where the admin socket is when its path is not given, so that the command line finds it.
//!
//! A node takes the first of these folders that it can make and that is its own (its data folder as it is), and the command line looks in all of them:
//! `$RUNTIME_DIRECTORY` (systemd's), `$XDG_RUNTIME_DIR/macula`, `/run/macula`, the node's data folder, `macula-UID` in the folder for
//! temporary files. [`RUNTIME_VARIABLE`] names one folder in place of all. A socket is named after its node, so nodes share a folder.
//!
//! **Invariant.** The socket of a dead process is removed by the look that finds it, so a folder holds no more of them than nodes have
//! died since.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder},
    io::ErrorKind,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use macula_wire::NodeId;

/// The environment variable that names the only folder in which nodes put their sockets and the command line looks.
pub const RUNTIME_VARIABLE: &str = "MACULA_RUNTIME";

/// The longest path of a Unix socket that every system takes, in bytes; a few are left for the name that it is made under.
const MAX_PATH_BYTES: usize = 90;
/// The nodes that are found in one folder, at most.
const MAX_SOCKETS: usize = 256;

/// The variables and the user that decide.
#[derive(Debug, Clone, Default)]
struct Surroundings {
    only: Option<PathBuf>,
    service: Option<PathBuf>,
    session: Option<PathBuf>,
    system: PathBuf,
    temporary: PathBuf,
    uid: u32,
}

impl Surroundings {
    fn of_process() -> Self {
        let folder = |variable: &str| {
            let value = std::env::var_os(variable).filter(|value| !value.is_empty())?;
            Some(PathBuf::from(value)).filter(|path| path.is_absolute())
        };
        // systemd separates several by colons.
        let first = |path: PathBuf| {
            let text = path.to_str()?;
            text.split(':').next().map(PathBuf::from)
        };
        let uid = rustix::process::getuid().as_raw();
        Self {
            only: folder(RUNTIME_VARIABLE),
            service: folder("RUNTIME_DIRECTORY").and_then(first),
            session: folder("XDG_RUNTIME_DIR").map(|folder| folder.join("macula")),
            system: "/run/macula".into(),
            temporary: std::env::temp_dir().join(format!("macula-{uid}")),
            uid,
        }
    }

    /// The folders in order, and how far each is to be trusted.
    fn folders<'a>(&'a self, data: Option<&'a Path>) -> Vec<(&'a Path, Trust)> {
        if let Some(only) = &self.only {
            return vec![(only, Trust::Named)];
        }
        let first = self.service.iter().chain(&self.session).chain([&self.system]);
        let found = first.map(|folder| (folder.as_path(), Trust::Found));
        let data = data.map(|folder| (folder, Trust::Named));
        found.chain(data).chain([(&*self.temporary, Trust::Found)]).collect()
    }
}

/// Whether a folder has to prove that it is this user's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// The operator named it. A volume of a container often belongs to root and is writable for a group.
    Named,
    /// It was found by its name, under which another user may have made it.
    Found,
}

/// Where a node with this data folder puts its socket.
#[must_use]
pub fn default_socket(node: &NodeId, data: Option<&Path>) -> PathBuf {
    place(&Surroundings::of_process(), node, data)
}

fn place(around: &Surroundings, node: &NodeId, data: Option<&Path>) -> PathBuf {
    let name = format!("{}.sock", node.short());
    let usable = |(folder, trust): &(&Path, Trust)| {
        let fits = folder.as_os_str().len() + name.len() < MAX_PATH_BYTES;
        fits && make(folder, *trust, around.uid)
    };
    let folder = around.folders(data).into_iter().find(usable);
    let folder = folder.map_or(&*around.temporary, |(folder, _)| folder);
    // Nodes that were killed leave their sockets.
    let _removed = living(folder, around.uid);
    folder.join(name)
}

/// Makes a folder for its owner; whether it is there, and this user's own if that matters.
fn make(folder: &Path, trust: Trust, uid: u32) -> bool {
    // The check decides: it may have been there.
    let _ = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    let own = |metadata: fs::Metadata| metadata.is_dir() && metadata.uid() == uid && metadata.mode() & 0o022 == 0;
    match trust {
        Trust::Named => fs::metadata(folder).is_ok_and(|metadata| metadata.is_dir()),
        // A link could be another user's.
        Trust::Found => fs::symlink_metadata(folder).is_ok_and(own),
    }
}

/// The sockets of the nodes that run on this host and that this user may ask, sorted by path. `data` is a data folder to look in.
///
/// A socket of another user is left out, unless this user is root: what it says could not be trusted.
#[must_use]
pub fn sockets(data: Option<&Path>) -> Vec<PathBuf> {
    find(&Surroundings::of_process(), data)
}

fn find(around: &Surroundings, data: Option<&Path>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (folder, _) in around.folders(data) {
        found.extend(living(folder, around.uid));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The sockets in a folder that a process has. The dead ones of this user are removed.
fn living(folder: &Path, uid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let is_alive = |path: &PathBuf| {
        let is_socket = |it: fs::Metadata| it.file_type().is_socket() && (uid == 0 || it.uid() == uid);
        let is_ours =
            path.extension() == Some(&OsString::from("sock")) && fs::symlink_metadata(path).is_ok_and(is_socket);
        if !is_ours {
            return false;
        }
        // A socket listens before it has its name, so one that refuses has lost its process.
        let is_dead = UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        if is_dead {
            // Another look may have removed it.
            let _ = fs::remove_file(path);
        }
        !is_dead
    };
    paths.filter(is_alive).take(MAX_SOCKETS).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};

    use super::*;

    fn around(root: &Path) -> Surroundings {
        Surroundings {
            session: Some(root.join("session/macula")),
            system: root.join("system"),
            temporary: root.join("temporary"),
            uid: rustix::process::getuid().as_raw(),
            ..Surroundings::default()
        }
    }

    #[test]
    fn n5_the_socket_is_found_where_a_node_puts_it() {
        let root = tempfile::tempdir().unwrap();
        let (around, data) = (around(root.path()), root.path().join("data"));
        let [a, b, c] = [1, 2, 3].map(|byte| NodeId::from_bytes([byte; 32]));
        let at = |node| place(&around, node, Some(&data));
        assert!(at(&a).starts_with(root.path().join("session/macula")));
        assert_ne!(at(&a), at(&b), "nodes share a folder");
        assert_eq!(find(&around, Some(&data)), Vec::<PathBuf>::new());
        let _listening = UnixListener::bind(at(&a)).unwrap();
        fs::write(at(&b), "no socket").unwrap();
        let dead = at(&c);
        drop(UnixListener::bind(&dead).unwrap());
        assert_eq!(find(&around, None), [at(&a)]);
        assert!(!dead.exists() && at(&b).exists());
    }

    #[test]
    fn n5_a_folder_that_others_can_write_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let (mut around, node) = (around(root.path()), NodeId::from_bytes([1; 32]));
        let open = root.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        around.session = Some(open);
        around.system = root.path().join("x".repeat(MAX_PATH_BYTES));
        let data = root.path().join("data");
        fs::create_dir(&data).unwrap();
        // As Kubernetes makes a volume for a group.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(place(&around, &node, Some(&data)).starts_with(&data));
        assert!(place(&around, &node, None).starts_with(root.path().join("temporary")));
        around.only = Some(root.path().join("only"));
        assert!(place(&around, &node, Some(&data)).starts_with(root.path().join("only")));
    }
}
