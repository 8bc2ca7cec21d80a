//! The node that runs on this host: found by its admin socket.

use std::path::{Path, PathBuf};

use macula_node::admin::{self, Admin, AdminClient};
use tonic::{Code, Status};

use crate::{
    args::AdminArgs,
    failure::{Failure, error_line, say},
    version,
};

/// The value of `--admin` that stands for no socket.
const OFF: &str = "off";

/// Serves the admin interface of a node that is being started. A socket that was not asked for may fail.
pub(crate) async fn serve(args: &AdminArgs, node: &macula_node::Node) -> Result<Option<Admin>, Failure> {
    let data = args.folder.as_deref();
    let (path, asked) = match &args.admin {
        Some(path) if path.as_os_str() == OFF => return Ok(None),
        Some(path) => (path.clone(), true),
        None => (admin::default_socket(&node.id(), data), false),
    };
    match Admin::serve(node, version::build(), path).await {
        Ok(admin) => {
            tracing::info!(path = %admin.path().display(), "the admin interface is served");
            Ok(Some(admin))
        }
        Err(error) if asked => Err(Failure::other(error_line(&error))),
        Err(error) => {
            say(&format!(
                "{}; `macula status` will not find this node",
                error_line(&error)
            ));
            Ok(None)
        }
    }
}

/// Which nodes run here.
pub(crate) enum Running {
    None,
    One(PathBuf),
    Several(Vec<PathBuf>),
}

/// Finds the nodes that run here and that this user may ask.
pub(crate) fn running(args: &AdminArgs) -> Running {
    match &args.admin {
        Some(path) if path.as_os_str() == OFF => return Running::None,
        Some(path) => return Running::One(path.clone()),
        None => {}
    }
    let mut found = admin::sockets(args.folder.as_deref());
    match found.len() {
        0 => Running::None,
        1 => Running::One(found.remove(0)),
        _ => Running::Several(found),
    }
}

/// The node that runs here, to be asked.
pub(crate) async fn node(args: &AdminArgs) -> Result<AdminClient, Failure> {
    match running(args) {
        Running::One(path) => connect(&path).await,
        Running::None => Err(Failure::other(
            "no node of this user runs on this host: start one with `macula node`, or name its socket with --admin PATH",
        )),
        Running::Several(paths) => Err(several(&paths)),
    }
}

/// Several nodes could be meant.
pub(crate) fn several(paths: &[PathBuf]) -> Failure {
    let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    Failure::usage(format!(
        "{} nodes run on this host; name one with --admin PATH: {}",
        paths.len(),
        shown.join(", ")
    ))
}

pub(crate) async fn connect(path: &Path) -> Result<AdminClient, Failure> {
    admin::connect(path)
        .await
        .map_err(|error| Failure::other(error_line(&error)))
}

/// A request that the node did not answer.
pub(crate) fn unanswered(status: &Status) -> Failure {
    Failure::other(match status.code() {
        Code::Unimplemented => "the running node is of another version and does not know this request".to_owned(),
        _ => format!("the running node did not answer: {}", status.message()),
    })
}
