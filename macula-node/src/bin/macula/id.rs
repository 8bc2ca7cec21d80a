//! `macula id`.

use std::path::PathBuf;

use macula_node::Identity;

use crate::{
    args::{IdAction, IdArgs},
    failure::{Failure, chain, print_line},
    identity::{default_file, make_folder_of},
};

pub(crate) fn run(args: &IdArgs) -> Result<(), Failure> {
    let file = file(args)?;
    let shown = file.display();
    let identity = match args.action {
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
    print_line(identity.map_err(|error| Failure::other(chain(&error)))?.node_id())
}

fn file(args: &IdArgs) -> Result<PathBuf, Failure> {
    let in_data = || args.data.as_ref().map(|folder| folder.join("identity"));
    let file = args.identity.clone().or_else(in_data).or_else(default_file);
    file.ok_or_else(|| {
        Failure::usage("there is no home folder to keep an identity in; name a file with --identity FILE")
    })
}
