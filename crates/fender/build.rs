//! How the binary is linked, where that is more than a flag for everybody; and what is committed beside it and put into it.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

const SCHEMA: &str = "../../docs/reference/fender.schema.json";

/// `cargo xtask docs` makes it anew, and needs one that can be read before.
const RESTORE: &str = "put back the committed one with `git checkout`, then run `cargo xtask docs`";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    if packs_relocations() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    println!("cargo::rerun-if-changed={SCHEMA}");
    compact_schema()
}

/// The schema without its white space, which is as much again.
fn compact_schema() -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(SCHEMA);
    let text = text.map_err(|error| format!("{SCHEMA}: {error}; {RESTORE}"))?;
    let schema: Value =
        serde_json::from_str(&text).map_err(|error| format!("{SCHEMA}: {error}; {RESTORE}"))?;
    let output = env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?;
    fs::write(Path::new(&output).join("schema.json"), schema.to_string())?;
    Ok(())
}

/// Whether the relocations of the static binary, a megabyte of them, can be packed into some kilobytes (`DT_RELR`): it relocates itself
/// by the C library it is linked with, and glibc knows how since 2.36. One that does not know would crash at its start.
#[expect(clippy::disallowed_methods, reason = "cargo tells a build script so")]
fn packs_relocations() -> bool {
    let of = |name| env::var(name).unwrap_or_default();
    let is_native = of("TARGET") == of("HOST") && of("CARGO_CFG_TARGET_ENV") == "gnu";
    is_native && glibc().is_some_and(|version| version >= (2, 36))
}

/// The version of the C library here, as `getconf` says it: `glibc 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
