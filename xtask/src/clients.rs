//! `cargo xtask clients`: programs that know nothing of Macula use a mesh: a gRPC server and a gRPC client in Python, a health probe, curl,
//! and a browser. Rust and the command line call the server, too. It also holds that the numbers of the deployed dashboard and alert rules are there, by a parser of PromQL.
//!
//! The play is `macula-node/tests/clients/play.py`. Python's packages come once into the build folder, each at one version. A tool that
//! this machine lacks is named, and the rest runs.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace::{cargo, output, root, run, target_dir};

const PACKAGES: [&str; 5] = [
    "grpcio==1.85.3",
    "grpcio-health-checking==1.85.1",
    "grpcio-reflection==1.85.1",
    "promql-parser==0.12.0",
    "protobuf==7.36.2",
];

/// Plays with the program as it is built for tests.
///
/// # Errors
/// A call fails, the page does not show the mesh, or the packages cannot be installed.
pub(crate) fn check() -> Result<()> {
    if output(Command::new("python3").arg("--version")).is_err() {
        println!("clients in other languages are not tried: there is no Python");
        return Ok(());
    }
    let folder = target_dir().join("tools/grpcio-1.85.3");
    let python = folder.join("bin/python");
    if output(Command::new(&python).args(["-c", "import grpc_health, grpc_reflection, promql_parser"])).is_err() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder)).context("Python cannot make an environment")?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(Command::new(&python).args(install).args(PACKAGES))
            .context("its packages come from PyPI: check the network")?;
    }
    // Builds the program, too.
    let mut test = cargo();
    test.args(["test", "--locked", "--workspace", "--all-features", "--test", "grpcio"]);
    run(test.env("GRPCIO_PYTHON", &python))?;
    let play = root().join("macula-node/tests/clients/play.py");
    let mut command = Command::new(python);
    command
        .arg(play)
        .arg(target_dir().join("debug/macula"))
        .arg(target_dir());
    run(&mut command)
}
