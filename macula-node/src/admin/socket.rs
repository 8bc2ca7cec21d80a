//! The Unix socket: made for its owner only, and never taken from a living process.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

/// The admin interface cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Another process serves there.
    #[error("{} is the admin socket of a running node{}; end that node, or give this one another path", path.display(), process(*pid))]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process that has it, where the system tells.
        pid: Option<i32>,
    },
    /// The folder of the socket cannot be made.
    #[error("the folder {} for the admin socket cannot be made", .0.display())]
    Folder(PathBuf, #[source] io::Error),
    /// The socket cannot be made.
    #[error("the admin socket {} cannot be made", .0.display())]
    Socket(PathBuf, #[source] io::Error),
}

fn process(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// Listens at `path`. What is there is replaced when no process answers.
pub(super) async fn listen(path: &Path) -> Result<UnixListener, AdminError> {
    if let Ok(other) = UnixStream::connect(path).await {
        let pid = other.peer_cred().ok().and_then(|peer| peer.pid());
        return Err(AdminError::InUse { path: path.into(), pid });
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| AdminError::Folder(folder.into(), error))?;
    }
    let broken = |error| AdminError::Socket(path.into(), error);
    // Made under another name and then moved: it is never there with more permissions, and replaces a dead one in one step.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(name);
    // Left by a process that had this number.
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(broken)?;
    let placed = fs::set_permissions(&fresh, Permissions::from_mode(0o600)).and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = placed {
        let _ = fs::remove_file(&fresh);
        return Err(broken(error));
    }
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn n5_the_socket_is_its_owners_and_a_dead_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/admin.sock");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let first = listen(&path).await.unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let error = listen(&path).await.unwrap_err();
        assert!(matches!(error, AdminError::InUse { .. }), "{error}");
        let own = std::process::id().to_string();
        assert!(error.to_string().contains(&own), "{error}");
        drop(first);
        let second = listen(&path).await.unwrap();
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(second);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing else is left"
        );
    }

    #[tokio::test]
    async fn n5_a_socket_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let error = listen(&blocked.join("admin.sock")).await.unwrap_err();
        assert!(error.to_string().contains(blocked.to_str().unwrap()), "{error}");
        let long = folder.path().join("x".repeat(120));
        assert!(matches!(listen(&long).await, Err(AdminError::Socket(..))));
    }
}
