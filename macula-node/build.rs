//! Tells the program which compiler it was built by, for `macula version`.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MACULA_COMMIT");
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(compiler).arg("--version").output();
    let version = said.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    println!("cargo::rustc-env=MACULA_RUSTC={}", version.unwrap_or_default().trim());
}
