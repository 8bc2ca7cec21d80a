//! `cargo xtask image`: the program in an image of its own, from scratch.
//!
//! The image holds the stripped program, the shared libraries that it names, and nothing else: no shell, no package manager. It is
//! made from files of this machine, so no registry is asked. It runs as a user without rights, on a root file system that may be
//! read-only; a node's data folder is the one volume.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace::{cargo, output, root, run, target_dir};

/// The largest image, in bytes.
const MAX_BYTES: u64 = 25 * 1024 * 1024;

const DOCKERFILE: &str = include_str!("../../macula-node/deploy/Dockerfile");

/// What to build.
#[derive(Debug, clap::Args)]
pub(crate) struct Request {
    /// The image's name and tag.
    #[arg(long, value_name = "NAME:TAG", default_value = "macula:latest")]
    tag: String,
}

/// Builds the program and its image.
///
/// # Errors
/// The program does not build, no Docker engine answers, or the image is too large.
pub(crate) fn image(request: &Request) -> Result<()> {
    // `macula version` shows it. The files may come without their history.
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .current_dir(root())
        .output();
    let commit = commit.ok().filter(|said| said.status.success());
    let commit = commit.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
    run(cargo().env("MACULA_COMMIT", commit.unwrap_or_default()).args([
        "build",
        "--locked",
        "--release",
        "--package",
        "macula-node",
        "--bin",
        "macula",
    ]))?;
    let tag = build(&target_dir().join("release/macula"), &request.tag)?;
    let size = output(Command::new("docker").args(["image", "inspect", "--format", "{{.Size}}", &tag]))?;
    let bytes: u64 = size.trim().parse().context("docker names no size")?;
    ensure!(
        bytes <= MAX_BYTES,
        "the image has {bytes} bytes; {MAX_BYTES} are the most"
    );
    println!("{tag}");
    Ok(())
}

/// Builds an image of `program` and gives the image's name.
///
/// # Errors
/// No Docker engine answers, or a library is missing.
pub(crate) fn build(program: &Path, tag: &str) -> Result<String> {
    let folder = tempfile::Builder::new()
        .prefix("macula-image-")
        .tempdir()
        .context("no temporary folder")?;
    let root = folder.path().join("root");
    let to = root.join("usr/bin/macula");
    copy(program, &to)?;
    run(Command::new("strip").arg(&to))?;
    for library in libraries(program)? {
        let within = library.strip_prefix("/").context("a library has an absolute path")?;
        copy(&library, &root.join(within))?;
    }
    // The data folder belongs to the image's user; an empty folder's owner is set when it is copied.
    fs::create_dir_all(folder.path().join("data")).context("cannot make the data folder")?;
    fs::write(folder.path().join("Dockerfile"), DOCKERFILE).context("cannot write the Dockerfile")?;
    let version = env!("CARGO_PKG_VERSION");
    let built = Command::new("docker")
        .env("DOCKER_BUILDKIT", "0")
        .args([
            "build",
            "--quiet",
            "--tag",
            tag,
            "--build-arg",
            &format!("VERSION={version}"),
        ])
        .arg(folder.path())
        .output()
        .context("cannot start docker")?;
    ensure!(
        built.status.success(),
        "the image does not build: {}",
        String::from_utf8_lossy(&built.stderr).trim()
    );
    Ok(tag.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("a file has a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// The shared libraries that `program` names, and the loader.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let listed = output(Command::new("ldd").arg(program));
    let listed = listed.context("`ldd` cannot list the program's libraries")?;
    parse_libraries(&listed)
}

fn parse_libraries(listed: &str) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for line in listed.lines() {
        if line.contains("not found") {
            bail!("a library is missing: {}", line.trim());
        }
        // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, or the loader's path alone; the kernel's own has no path.
        found.extend(
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(PathBuf::from),
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_with_the_loader_and_without_the_kernels_own() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so (0x3)\n";
        let found = parse_libraries(listed).unwrap();
        assert_eq!(found, ["/lib/x/libc.so.6", "/lib64/ld.so"].map(PathBuf::from).into());
        assert!(parse_libraries("\tlibz.so => not found\n").is_err());
        assert_eq!(parse_libraries("\tstatically linked\n").unwrap(), BTreeSet::new());
    }
}
