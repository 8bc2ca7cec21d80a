//! `macula id`.

use std::path::{Path, PathBuf};

use macula_node::Identity;

use crate::{
    args::{IdAction, IdArgs},
    failure::{Failure, error_line, print_line, say},
    identity::{self, default_file, make_folder_of},
};

pub(crate) fn run(args: &IdArgs) -> Result<(), Failure> {
    let file = file(args)?;
    let shown = file.display();
    let identity = match args.action {
        Some(IdAction::Rotate) => return rotate(&file),
        Some(IdAction::Show) => Identity::load(&file),
        Some(IdAction::New) if file.exists() => {
            return Err(Failure::other(format!(
                "there is an identity in {shown} already: show it with `macula id show`, or name another file with --identity FILE"
            )));
        }
        Some(IdAction::New) | None => {
            make_folder_of(&file)?;
            Identity::load_or_generate(&file)
        }
    };
    print_line(identity.map_err(|error| Failure::other(error_line(&error)))?.node_id())
}

/// Puts a new key in the place of the old one.
fn rotate(file: &Path) -> Result<(), Failure> {
    let failed = |error: &dyn std::error::Error| Failure::other(error_line(error));
    // No node may use the old key: it would be known by both.
    let old = identity::take_existing(file)?;
    let fresh = Identity::generate().map_err(|error| failed(&error))?;
    let mut kept = file.as_os_str().to_owned();
    kept.push(".old");
    old.identity.store(Path::new(&kept)).map_err(|error| failed(&error))?;
    fresh.store(file).map_err(|error| failed(&error))?;
    say(&format!(
        "{} is no longer this node's id; tell the nodes that name it in --bootstrap. The old key is kept in {}",
        old.identity.node_id(),
        Path::new(&kept).display()
    ));
    print_line(fresh.node_id())
}

fn file(args: &IdArgs) -> Result<PathBuf, Failure> {
    let in_data = || args.data.as_ref().map(|folder| folder.join("identity"));
    let file = args.identity.clone().or_else(in_data).or_else(default_file);
    file.ok_or_else(|| {
        Failure::usage("there is no home folder to keep an identity in; name a file with --identity FILE")
    })
}
