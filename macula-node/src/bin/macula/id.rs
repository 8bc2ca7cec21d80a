//! `macula id`.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use macula_node::Identity;

use crate::{
    args::IdArgs,
    failure::{Failure, chain, print_line},
};

pub(crate) fn run(args: &IdArgs) -> Result<(), Failure> {
    let file = match (&args.identity, &args.data) {
        (Some(file), _) => file.clone(),
        (None, Some(folder)) => {
            make(folder)?;
            folder.join("identity")
        }
        (None, None) => default_file()?,
    };
    let identity = Identity::load_or_generate(&file).map_err(|error| Failure::other(chain(&error)))?;
    print_line(identity.node_id())
}

fn default_file() -> Result<PathBuf, Failure> {
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    let folder = home.map(|home| home.join(".macula")).ok_or_else(|| {
        Failure::usage("there is no home folder to keep an identity in; name a file with --identity FILE")
    })?;
    make(&folder)?;
    Ok(folder.join("identity"))
}

fn make(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Failure::other(format!("the folder {} could not be made: {error}", folder.display())))
}
