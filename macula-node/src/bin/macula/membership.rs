//! How the commands get into a closed realm: with the grant or token on the command line, or the one that `macula join` has kept.
//!
//! A grant stands beside the identity that it is of: `identity.grant` beside `identity`. It is of use with that key only, so a command
//! that uses a grant uses that identity, too.

use std::path::{Path, PathBuf};

use macula_node::{
    JoinToken, Membership, Node, NodeBuilder, Realm, Revocations, SignedRevocations, private_file, realm_file,
};
use serde_json::json;

use crate::{
    args::{AccessArgs, JoinArgs},
    failure::{Failure, error_line, print_line},
    identity::{self, Taken, default_file, make_folder_of, user_folder},
};

/// The most bytes of a grant's file.
const MAX_FILE_BYTES: usize = 16 * 1024;

/// Where the grant of the identity in this file is kept.
pub(crate) fn grant_file(identity: &Path) -> PathBuf {
    let mut name = identity.as_os_str().to_owned();
    name.push(".grant");
    name.into()
}

/// A grant as it is typed: the line itself, or a file that holds it.
pub(crate) fn from_line_or_file(text: &str) -> Result<Membership, Failure> {
    let text = text.trim();
    if text.starts_with("macula_") {
        return text
            .parse()
            .map_err(|error: macula_node::LineError| Failure::usage(error_line(&error)));
    }
    // A file that a secret store lays out is often readable by its group; the grant in it is no secret.
    let text = std::fs::read_to_string(text)
        .map_err(|error| Failure::usage(format!("{text} is neither a grant nor a file with one: {error}")))?;
    text.parse()
        .map_err(|error: macula_node::LineError| Failure::usage(error_line(&error)))
}

/// The grant that a node keeps in this file, if there is one.
pub(crate) fn read_file(file: &Path) -> Result<Option<Membership>, Failure> {
    let damaged = |error: &dyn std::error::Error| Failure::other(format!("{}: {}", file.display(), error_line(error)));
    match private_file::read(file, MAX_FILE_BYTES) {
        Err(private_file::ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(damaged(&error)),
        Ok(bytes) => {
            let text = std::str::from_utf8(&bytes).map_err(|error| damaged(&error))?;
            let membership = text.parse().map_err(|error: macula_node::LineError| damaged(&error))?;
            Ok(Some(membership))
        }
    }
}

/// A token as it is typed: the line itself, or a file that holds it.
fn token(text: &str) -> Result<JoinToken, Failure> {
    let text = text.trim();
    let wrong = |error: macula_node::LineError| Failure::usage(error_line(&error));
    if text.starts_with("macula_") {
        return text.parse().map_err(wrong);
    }
    let text = std::fs::read_to_string(text)
        .map_err(|error| Failure::usage(format!("the token is neither a token nor a file with one: {error}")))?;
    text.parse().map_err(wrong)
}

/// Gives a node the realm, and the grant or token of the command line.
pub(crate) fn apply(args: &AccessArgs, realm: Option<Realm>, mut builder: NodeBuilder) -> Result<NodeBuilder, Failure> {
    if let Some(realm) = realm {
        builder = builder.realm(realm);
    }
    if let Some(text) = &args.grant {
        builder = builder.membership(from_line_or_file(text)?);
    }
    if let Some(text) = &args.token {
        builder = builder.token(token(text)?);
    }
    Ok(builder)
}

/// As [`apply`], for a command that comes and goes: with the identity that its grant is of. The identity is taken while it is kept.
///
/// A data folder gives its node's identity and grant, unless the node runs and has them itself.
pub(crate) fn apply_to_client(
    args: &AccessArgs,
    identity: Option<&Path>,
    data: Option<&Path>,
    realm: Option<Realm>,
    builder: NodeBuilder,
) -> Result<(NodeBuilder, Option<Taken>), Failure> {
    let builder = apply(args, realm, builder)?;
    let has_grant = |file: &PathBuf| args.grant.is_some() || grant_file(file).exists();
    let of_user = || default_file().filter(|file| args.token.is_none() && has_grant(file));
    // An identity without a grant is a node's: in an open realm a command has a key of its own.
    let of_data = data.map(|folder| folder.join("identity")).filter(has_grant);
    let file = match (identity, of_data) {
        (Some(file), _) => Some(file.to_owned()).filter(|file| args.token.is_some() || has_grant(file)),
        (None, Some(file)) => match (identity::take(&file), of_user()) {
            // Its node runs.
            (Err(_), Some(of_user)) => Some(of_user),
            (taken, _) => return with_grant(builder, taken?, &file),
        },
        (None, None) => of_user(),
    };
    match file {
        Some(file) => with_grant(builder, identity::take(&file)?, &file),
        None => Ok((builder, None)),
    }
}

fn with_grant(mut builder: NodeBuilder, taken: Taken, file: &Path) -> Result<(NodeBuilder, Option<Taken>), Failure> {
    builder = builder.identity(taken.identity.clone()).grant_file(grant_file(file));
    Ok((builder, Some(taken)))
}

/// The revocations in a node's data folder.
pub(crate) fn revocations(data: &Path, realm: &Realm, now: u64) -> Revocations {
    let mut known = Revocations::new(realm.clone());
    let file = std::fs::read(data.join("revocations")).unwrap_or_default();
    let mut rest = &file[..];
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let Some((list, after)) = after.split_at_checked(u32::from_be_bytes(*length) as usize) else {
            break;
        };
        if let Ok(list) = SignedRevocations::decode(list.to_vec().into()) {
            // What the node took, it has checked.
            let _ = known.merge(&list, now);
        }
        rest = after;
    }
    known
}

/// `macula join`: gets the first grant for the identity that `macula node` will use, and keeps it beside it.
pub(crate) async fn join(args: JoinArgs) -> Result<(), Failure> {
    let token = token(&args.token)?;
    let in_data = || args.data.as_ref().map(|folder| folder.join("identity"));
    let file = args.identity.clone().or_else(in_data).or_else(default_file);
    let file = file.ok_or_else(|| {
        Failure::usage("there is no home folder to keep an identity in; name a file with --identity FILE")
    })?;
    make_folder_of(&file)?;
    let taken = identity::take(&file)?;
    let kept = grant_file(&file);
    // Beside the grant that is there: the token is to be used though that one is valid, and it is lost only when there is another.
    let fresh = grant_file(&kept);
    let realm = token.realm.clone();
    let node = Node::builder()
        .client()
        .identity(taken.identity.clone())
        .grant_file(&fresh)
        .token(token)
        .start()
        .await?;
    let member = node.access().own();
    node.shutdown().await;
    std::fs::rename(realm_file(&fresh), realm_file(&kept))
        .and_then(|()| std::fs::rename(&fresh, &kept))
        .map_err(|error| Failure::other(format!("the grant could not be kept in {}: {error}", kept.display())))?;
    let member = member.map_err(|error| Failure::other(error_line(&error)))?;
    if args.json {
        return print_line(json!({
            "realm": realm.to_string(),
            "node_id": member.node_id().to_string(),
            "not_after": member.not_after(),
            "grant_file": kept.display().to_string(),
        }));
    }
    let folder = user_folder();
    let is_default = file.parent() == folder.as_deref() && args.identity.is_none() && args.data.is_none();
    let option = match (&args.data, is_default) {
        (_, true) => String::new(),
        (Some(data), _) => format!(" --data {}", data.display()),
        (None, _) => format!(" --identity {}", file.display()),
    };
    print_line(format!(
        "{} is a member of {realm}; start it with `macula node{option}`",
        member.node_id()
    ))
}
