//! How the binary is linked, where that is more than a flag for everybody.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if packs_relocations() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Whether the relocations of the static binary, a megabyte of them, can be packed into some kilobytes (`DT_RELR`): it relocates itself
/// by the C library it is linked with, and glibc knows how since 2.36. One that does not know would crash at its start.
#[expect(clippy::disallowed_methods, reason = "cargo tells a build script so")]
fn packs_relocations() -> bool {
    let of = |name| std::env::var(name).unwrap_or_default();
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
