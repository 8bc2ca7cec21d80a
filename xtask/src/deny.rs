//! `cargo xtask deny`: licences, banned crates and sources of every dependency, by cargo-deny and `.cargo/deny.toml`.
//!
//! cargo-deny is built once into the build folder, at one version, so that every machine judges alike. That takes about four
//! minutes of processor time.
//!
//! Left out of the usual check: advisories. Their database is a download that changes by the day, so the same commit would
//! pass today and fail tomorrow.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace::{cargo, root, run, target_dir};

const VERSION: &str = "0.20.2";

/// Checks licences, bans and sources, or only the advisories.
pub(crate) fn check(advisories: bool) -> Result<()> {
    let folder = target_dir().join(format!("tools/cargo-deny-{VERSION}"));
    let program = folder
        .join("bin")
        .join(format!("cargo-deny{}", std::env::consts::EXE_SUFFIX));
    if !program.is_file() {
        let mut install = cargo();
        // It runs for seconds and is built for minutes, so it is built without optimisations.
        install.args([
            "install",
            "--debug",
            "--locked",
            "--quiet",
            "--no-default-features",
            "cargo-deny",
        ]);
        install.args(["--version", VERSION, "--root"]).arg(&folder);
        run(&mut install).context("cargo-deny is built from crates.io: check the network")?;
    }
    let checks: &[&str] = if advisories {
        &["advisories"]
    } else {
        &["licenses", "bans", "sources"]
    };
    let mut deny = Command::new(program);
    deny.current_dir(root());
    deny.args([
        "--all-features",
        "--workspace",
        "--locked",
        "check",
        "--hide-inclusion-graph",
    ]);
    run(deny.args(checks))
}
