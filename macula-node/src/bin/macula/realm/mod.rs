//! `macula realm`: closed realms, their keys, grants, tokens, members and revocations (A1, A2, A6, A7).
//!
//! The realm's key stays in a file of the person that made it, off the nodes. It signs the grants of issuers, and may sign those of
//! others. A token comes from an issuer's data folder, without its node being asked.

mod grant;
mod key_file;
mod members;
mod passphrase;
mod revoke;
mod rights;
mod show;
mod token;

use macula_node::RealmName;
use serde_json::json;

use crate::{
    args::{RealmArgs, RealmCommand},
    failure::{Failure, print_line, say},
};
use key_file::KeyFile;
pub(crate) use rights::role;

pub(crate) async fn run(args: RealmArgs) -> Result<(), Failure> {
    match args.command {
        RealmCommand::New(args) => new(&args.name, &args),
        RealmCommand::Show(args) => show::run(&args),
        RealmCommand::Grant(args) => grant::run(&args),
        RealmCommand::Token(args) => token::run(&args),
        RealmCommand::Revoke(args) => revoke::run(&args).await,
        RealmCommand::Members(args) => members::run(&args),
    }
}

fn new(name: &RealmName, args: &crate::args::NewRealmArgs) -> Result<(), Failure> {
    let file = match &args.key {
        Some(file) => file.clone(),
        None => key_file::default_for(name)?,
    };
    let passphrase = args.passphrase.then(passphrase::choose).transpose()?;
    let made = KeyFile::make(&file, name, passphrase.as_ref())?;
    if args.json {
        return print_line(json!({
            "realm": made.to_string(),
            "key_file": file.display().to_string(),
            "encrypted": passphrase.is_some(),
        }));
    }
    print_line(&made)?;
    say(&format!(
        "the realm's key is in {}: keep a copy off this machine; its holder decides which nodes are in the realm",
        file.display()
    ));
    Ok(())
}
