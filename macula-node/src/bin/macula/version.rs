//! `macula version`: the facts of this build.

use macula_node::admin::schema::Build;

use crate::{
    args::VersionArgs,
    failure::{Failure, print_json, print_line},
};

/// The facts of this build. The commit is known when `MACULA_COMMIT` was set for the build, as `cargo xtask image` does.
pub(crate) fn build() -> Build {
    let features = [
        ("admin", cfg!(feature = "admin")),
        ("cli", cfg!(feature = "cli")),
        ("dns", cfg!(feature = "dns")),
        ("ingress", cfg!(feature = "ingress")),
        ("json", cfg!(feature = "json")),
        ("metrics", cfg!(feature = "metrics")),
        ("ops", cfg!(feature = "ops")),
        ("otlp", cfg!(feature = "otlp")),
        ("prost", cfg!(feature = "prost")),
        ("redb", cfg!(feature = "redb")),
        ("tonic", cfg!(feature = "tonic")),
        ("tower", cfg!(feature = "tower")),
    ];
    let present = features.into_iter().filter(|(_, on)| *on);
    Build {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("MACULA_COMMIT").unwrap_or_default().to_owned(),
        rustc: env!("MACULA_RUSTC").to_owned(),
        features: present.map(|(name, _)| name.to_owned()).collect(),
    }
}

pub(crate) fn run(args: &VersionArgs) -> Result<(), Failure> {
    let build = build();
    if args.json {
        return print_json(&build);
    }
    let or_unknown = |text: &str| match text {
        "" => "unknown".to_owned(),
        text => text.to_owned(),
    };
    print_line(format!("macula {}", build.version))?;
    print_line(format!("commit    {}", or_unknown(&build.commit)))?;
    print_line(format!("compiler  {}", or_unknown(&build.rustc)))?;
    print_line(format!("features  {}", build.features.join(" ")))
}
