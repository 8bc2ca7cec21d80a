//! The folders of the workspace, and the programs that are started in it.
//!
//! Every path in a message is relative to the workspace root, so that the same mistake reads the same on every machine.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context as _, Result, bail, ensure};

use crate::house::HOUSE;

/// The workspace root: the folder that holds this package's folder.
///
/// `cargo run` names that folder each time. The folder may have moved since this was compiled.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let here = here.filter(|it| it.ends_with("xtask"));
        let here = here.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        here.parent().map(Path::to_path_buf).unwrap_or_default()
    });
    &ROOT
}

/// The folder of build output: `CARGO_TARGET_DIR` when set, else `target` in the workspace root.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// `path` as messages show it: relative to the workspace root, with forward slashes.
pub(crate) fn display(path: &Path) -> String {
    let shown = path.strip_prefix(root()).unwrap_or(path);
    shown.to_string_lossy().replace('\\', "/")
}

/// The cargo that runs this tool, started in the workspace root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    command
}

/// Runs `command` to its end; its output goes to our terminal.
///
/// # Errors
///
/// It cannot be started, or it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    ensure!(status.success(), "`{}` failed ({status})", line(command));
    Ok(())
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
///
/// It cannot be started, it fails, or it writes something that is not UTF-8.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed ({})",
        line(command),
        output.status
    );
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote something that is not UTF-8", line(command)))
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// Every file under `dir` whose name ends in `.extension`, sorted; empty when `dir` does not exist. Folders named
/// `target` hold build output and are passed over.
///
/// # Errors
///
/// A folder that exists but cannot be read.
pub(crate) fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        if !dir.is_dir() {
            continue;
        }
        for entry in dir
            .read_dir()
            .with_context(|| format!("cannot read {}", display(&dir)))?
        {
            let path = entry?.path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|it| it == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The manifests of the unpublished packages that live inside a crate's folder, outside the workspace: fuzz targets and
/// comparison benchmarks, whose dependencies only they should compile.
///
/// # Errors
///
/// A folder cannot be read.
pub(crate) fn side_packages() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for (package, _) in HOUSE {
        let folder = root().join(package);
        for entry in folder.read_dir().with_context(|| format!("cannot read {package}"))? {
            let manifest = entry?.path().join("Cargo.toml");
            if manifest.is_file() {
                found.push(manifest);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Formats Rust source the way `cargo fmt` does, with the workspace's `.rustfmt.toml`.
///
/// # Errors
///
/// `rustfmt` is missing, or the source does not parse.
pub(crate) fn rustfmt(source: &str) -> Result<String> {
    let program = std::env::var_os("RUSTFMT").unwrap_or_else(|| OsString::from("rustfmt"));
    let mut child = Command::new(program)
        .args(["--edition", "2024", "--config-path"])
        .arg(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start rustfmt: install it with `rustup component add rustfmt`")?;
    let mut stdin = child.stdin.take().context("rustfmt has no standard input")?;
    let source = source.to_owned();
    // Both pipes are bounded, so one thread feeds while another drains.
    let feeder = std::thread::spawn(move || stdin.write_all(source.as_bytes()));
    let output = child.wait_with_output().context("rustfmt did not finish")?;
    if feeder.join().is_err() || !output.status.success() {
        bail!("rustfmt refused the source ({})", output.status);
    }
    String::from_utf8(output.stdout).context("rustfmt wrote something that is not UTF-8")
}
