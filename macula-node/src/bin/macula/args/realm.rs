//! The options of `macula realm` and `macula join`, and how a command gets into a closed realm.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use macula_node::{Address, BootstrapAddr, GrantRole, MAX_GRANT_SECS, MIN_GRANT_LIFE, NodeId, Pattern, RealmName};

use crate::realm::role;

/// The proof that a command may be in a closed realm.
#[derive(Debug, Args)]
pub(crate) struct AccessArgs {
    /// A grant of a closed realm: the line that `macula realm grant` prints, or a file that holds it. It says which realm.
    ///
    /// Without it the grant of `macula join` is used, which stands beside the identity.
    #[arg(long, value_name = "GRANT|FILE", env = "MACULA_GRANT")]
    pub(crate) grant: Option<String>,
    /// A token of a closed realm: the line that `macula realm token` prints, or a file that holds it. It gets a grant when there is none.
    #[arg(
        long,
        value_name = "TOKEN|FILE",
        env = "MACULA_TOKEN",
        hide_env_values = true,
        hide_default_value = true
    )]
    pub(crate) token: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The token: the line that `macula realm token` prints, or a file that holds it.
    #[arg(env = "MACULA_TOKEN", hide_env_values = true)]
    pub(crate) token: String,
    /// The identity file of the node that joins, made if missing [default: the data folder's, or ~/.macula/identity].
    #[arg(long, value_name = "FILE", env = "MACULA_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
    /// The data folder of the node that joins, made if missing.
    #[arg(long, value_name = "DIR", env = "MACULA_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RealmArgs {
    #[command(subcommand)]
    pub(crate) command: RealmCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RealmCommand {
    /// Makes a closed realm: its key, in a file of its own. Prints the realm's name with its public key.
    New(NewRealmArgs),
    /// Prints a realm's name with its public key, or the content of a grant or token.
    Show(ShowArgs),
    /// Signs a grant with the realm's key and prints it; no node is needed.
    ///
    /// The issuers of a realm get their grants so, with --issue. They let other nodes in with tokens.
    Grant(GrantArgs),
    /// Prints a token that lets nodes in. It is made in the data folder of an issuer, whose node may run.
    Token(TokenArgs),
    /// Takes the grants of a node back: signs an order and hands it to nodes of the realm, which pass it on.
    Revoke(RevokeArgs),
    /// Lists the nodes that this realm's key or this issuer has let in.
    Members(MembersArgs),
}

/// Where the realm's key is.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// The file of the realm's key [default: the only one in ~/.macula/realms].
    #[arg(long, value_name = "FILE", env = "MACULA_REALM_KEY")]
    pub(crate) key: Option<PathBuf>,
}

/// What a node may do.
#[derive(Debug, Args)]
pub(crate) struct RightsArgs {
    /// Services that the node may provide: `NAME`, `PREFIX.*` or `*`; may be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) serve: Vec<Pattern>,
    /// Services that the node may call; may be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) call: Vec<Pattern>,
    /// A label of the node, which services may ask of their callers; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
    /// What the node may be: a `client`, which looks up, publishes and calls, or a `node`, which also stores records for others.
    #[arg(long, value_name = "ROLE", default_value = "node", value_parser = role)]
    pub(crate) role: GrantRole,
}

#[derive(Debug, Args)]
pub(crate) struct NewRealmArgs {
    /// The realm's name.
    pub(crate) name: RealmName,
    /// The file for the realm's key [default: ~/.macula/realms/NAME.key].
    #[arg(long, value_name = "FILE", env = "MACULA_REALM_KEY")]
    pub(crate) key: Option<PathBuf>,
    /// Encrypts the key with a passphrase, which is asked for, or taken from MACULA_PASSPHRASE.
    #[arg(long)]
    pub(crate) passphrase: bool,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A grant, a file with a grant, or a token; without it the realm is shown.
    pub(crate) line: Option<String>,
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    /// The node, as `macula id` prints it.
    pub(crate) node_id: NodeId,
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    #[command(flatten)]
    pub(crate) rights: RightsArgs,
    /// How long the grant lasts, like `24h` or `30d` [default: 24h, or 90d with --issue].
    #[arg(long = "for", value_name = "TIME", value_parser = life)]
    pub(crate) life: Option<u64>,
    /// Lets the node issue grants with these rights at most: without --serve, --call or --label it may give all of them.
    #[arg(long)]
    pub(crate) issue: bool,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// The issuer's data folder.
    #[arg(long, value_name = "DIR", env = "MACULA_DATA")]
    pub(crate) data: PathBuf,
    /// The issuer's identity file [default: the data folder's].
    #[arg(long, value_name = "FILE", env = "MACULA_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rights: RightsArgs,
    /// How many nodes the token lets in.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uses: u32,
    /// How long the token can be used, like `1h` or `7d`.
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = life)]
    pub(crate) life: u64,
    /// Where joining nodes find the issuer; may be given several times [default: the addresses it advertises].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) at: Vec<Address>,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// The node.
    pub(crate) node_id: NodeId,
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    /// Signs as the issuer whose data folder this is, and not with the realm's key: for the members that it let in.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The issuer's identity file [default: the data folder's].
    #[arg(long, value_name = "FILE", requires = "data")]
    pub(crate) identity: Option<PathBuf>,
    /// Nodes of the realm that are told, and tell the others; may be given several times.
    #[arg(
        long,
        value_name = "[NODEID@]HOST:PORT",
        env = "MACULA_BOOTSTRAP",
        value_delimiter = ','
    )]
    pub(crate) bootstrap: Vec<BootstrapAddr>,
    /// Takes an earlier order back: the node may be admitted again.
    #[arg(long)]
    pub(crate) lift: bool,
    /// Takes back only the grants that the node has now: a token or a grant that it is given afterwards is good. So a node gets other
    /// rights and keeps its identity.
    #[arg(long, conflicts_with = "lift")]
    pub(crate) present: bool,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MembersArgs {
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    /// Lists the members of the issuer whose data folder this is, and not the grants that the realm's key signed.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The issuer's identity file [default: the data folder's].
    #[arg(long, value_name = "FILE", requires = "data")]
    pub(crate) identity: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Parses a label.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write a label as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Parses the life of a grant or token, in seconds.
pub(crate) fn life(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "write a time like `90s`, `30m`, `24h` or `30d`, {} days at most",
            MAX_GRANT_SECS / 86_400
        )
    };
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number = Some(number).filter(|it| it.bytes().all(|b| b.is_ascii_digit()));
    let life = number.and_then(|it| it.parse::<u64>().ok()?.checked_mul(seconds));
    life.filter(|life| (1..=MAX_GRANT_SECS).contains(life))
        .ok_or_else(wrong)
}

/// Parses the life of the grants that an issuer signs, in seconds.
pub(crate) fn grant_life(text: &str) -> Result<u64, String> {
    let life = life(text)?;
    match life < MIN_GRANT_LIFE.as_secs() {
        true => Err(format!(
            "members need {} minutes at least to renew a grant",
            MIN_GRANT_LIFE.as_secs() / 60
        )),
        false => Ok(life),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_read_with_their_units() {
        assert_eq!(
            (life("90s"), life("24h"), life("30d")),
            (Ok(90), Ok(86_400), Ok(30 * 86_400))
        );
        for bad in ["", "h", "0h", "401d", "-1h", "1.5h", "1w", "99999999999999999999d", "é"] {
            assert!(life(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn a7_an_issuers_grants_last_a_quarter_of_an_hour_at_least() {
        assert_eq!((grant_life("15m"), grant_life("400d")), (Ok(900), Ok(MAX_GRANT_SECS)));
        assert!(grant_life("899s").unwrap_err().contains("15 minutes"));
    }
}
