//! `cargo xtask deploy`: the files in `macula-node/deploy`, each by the schema of the system that reads it.
//!
//! Docker Compose and systemd check their own files. Kubernetes' schemas come with the Python package `kubernetes-validate`, which is
//! installed once into the build folder, at one version. A checker that this machine lacks is named, and the others run.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::workspace::{output, root, run, target_dir};

const KUBERNETES_VALIDATE: &str = "1.34.0";

/// Checks every deployment file.
///
/// # Errors
/// A file breaks its schema, or a checker cannot be installed.
pub(crate) fn check() -> Result<()> {
    let folder = root().join("macula-node/deploy");
    compose(&folder.join("compose.yml"))?;
    systemd(&folder.join("macula.service"))?;
    kubernetes(&folder.join("kubernetes.yaml"))
}

/// Whether a program answers.
fn answers(program: &str, arg: &str) -> bool {
    output(Command::new(program).arg(arg)).is_ok()
}

fn compose(file: &Path) -> Result<()> {
    let mut command = if answers("docker-compose", "version") {
        Command::new("docker-compose")
    } else if output(Command::new("docker").args(["compose", "version"])).is_ok() {
        let mut docker = Command::new("docker");
        docker.arg("compose");
        docker
    } else {
        println!("compose.yml is not checked: there is no Docker Compose");
        return Ok(());
    };
    run(command.arg("--file").arg(file).args(["config", "--quiet"]))?;
    println!("compose.yml is a Compose file");
    Ok(())
}

/// `systemd-analyze verify` also wants the program to be there. So a copy of the unit is checked, which names a program that is.
fn systemd(file: &Path) -> Result<()> {
    if !answers("systemd-analyze", "--version") {
        println!("macula.service is not checked: there is no systemd-analyze");
        return Ok(());
    }
    let unit = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    ensure!(
        unit.contains("ExecStart=/usr/bin/macula "),
        "macula.service starts another program than /usr/bin/macula"
    );
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let copy = folder.path().join("macula.service");
    let present = unit.replace("ExecStart=/usr/bin/macula ", "ExecStart=/bin/true ");
    fs::write(&copy, present).context("cannot write a copy of the unit")?;
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&copy)
        .output()
        .context("cannot start systemd-analyze")?;
    // An unknown key is a warning to systemd, which ignores it; here it is a misspelled promise.
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_it: Vec<_> = said.lines().filter(|line| line.contains("macula.service")).collect();
    ensure!(
        verified.status.success() && about_it.is_empty(),
        "macula.service: {}",
        about_it.join("; ")
    );
    println!("macula.service is a systemd unit");
    Ok(())
}

fn kubernetes(file: &Path) -> Result<()> {
    probed(&fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?)?;
    if !answers("python3", "--version") {
        println!("kubernetes.yaml is not checked: there is no Python");
        return Ok(());
    }
    let folder = target_dir().join(format!("tools/kubernetes-validate-{KUBERNETES_VALIDATE}"));
    let program = folder.join("bin/kubernetes-validate");
    if !program.is_file() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder)).context("Python cannot make an environment")?;
        let package = format!("kubernetes-validate=={KUBERNETES_VALIDATE}");
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check", &package]))
            .context("kubernetes-validate comes from PyPI: check the network")?;
    }
    run(Command::new(program).args(["--strict", "--quiet"]).arg(file))?;
    println!("kubernetes.yaml holds Kubernetes objects");
    Ok(())
}

/// Holds that each node of a file for Kubernetes has an ops port, and that the probes and Prometheus ask it there.
fn probed(pods: &str) -> Result<()> {
    let nodes = pods.matches("image: macula").count();
    ensure!(nodes > 0, "kubernetes.yaml runs no node");
    for needed in [
        "--ops",
        "0.0.0.0:9090",
        "containerPort: 9090",
        "readinessProbe:\n            httpGet: {path: /readyz, port: ops}",
        "livenessProbe:\n            httpGet: {path: /livez, port: ops}",
        "prometheus.io/scrape: \"true\"",
        "prometheus.io/port: \"9090\"",
    ] {
        let found = pods.matches(needed).count();
        ensure!(
            found == nodes,
            "kubernetes.yaml runs {nodes} nodes and has {found} times `{needed}`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_of_kubernetes_is_probed_and_scraped_at_its_ops_port() {
        let deployed = include_str!("../../macula-node/deploy/kubernetes.yaml");
        probed(deployed).unwrap();
        for needed in ["/livez", "/readyz", "containerPort: 9090", "prometheus.io/scrape"] {
            assert!(
                probed(&deployed.replacen(needed, "", 1)).is_err(),
                "{needed} is not missed"
            );
        }
        probed("kind: Namespace").unwrap_err();
    }
}
