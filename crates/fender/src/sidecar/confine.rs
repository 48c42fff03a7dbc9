//! The proxy confines itself before it opens anything: no new privileges, and a view of the file
//! system cut down by Landlock to what this command line names.
//!
//! The application is not a descendant of the proxy and inherits none of it. Documents from a
//! control plane can reach no path that was not named locally, even if every check above this one
//! were wrong; except that all of `/etc` is readable, as far as this user may, because names are
//! resolved from files there that are replaced by renaming. Connecting to Unix sockets is not
//! Landlock's to forbid: [`super::paths`] does. On a kernel without Landlock the sidecar runs and says what is missing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fender_runtime::sys;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};

/// Where names are resolved from; directories, because these files are replaced by renaming.
const NAME_RESOLUTION: &[&str] = &[
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
];

/// What the proxy may touch.
#[derive(Default, Debug)]
pub(super) struct Reach {
    pub(super) read: Vec<PathBuf>,
    pub(super) write: Vec<PathBuf>,
    /// Directories in which sockets are made and replaced.
    pub(super) sockets: Vec<PathBuf>,
    /// Directories in which files are made and appended to.
    pub(super) logs: Vec<PathBuf>,
    /// Directories of files that are read once and removed.
    pub(super) consume: Vec<PathBuf>,
}

impl Reach {
    /// Lets a file be read where it is, and where it leads if it is a link: that is where Landlock
    /// looks.
    pub(super) fn read_file(&mut self, path: &Path) {
        self.read.push(Self::parent(path));
        if let Ok(target) = path.canonicalize() {
            self.read.push(Self::parent(&target));
        }
    }

    /// The directory a file lies in: files are replaced by renaming, which changes what a rule on
    /// the file itself would mean.
    pub(super) fn parent(path: &Path) -> PathBuf {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        }
    }
}

/// Applies to the calling thread and every thread it starts: call before the runtime exists.
pub(super) fn confine(reach: &Reach) -> Result<()> {
    sys::no_new_privileges().context("give up privileges")?;
    let abi = ABI::V5;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(Ruleset::create)
        .context("prepare Landlock")?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(abi)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    for path in NAME_RESOLUTION.iter().map(Path::new) {
        if path.exists() {
            ruleset = allow(ruleset, path, read)?;
        }
    }
    for path in &reach.read {
        ruleset = allow(ruleset, path, read)?;
    }
    for path in &reach.sockets {
        ruleset = allow(ruleset, path, AccessFs::MakeSock | AccessFs::RemoveFile)?;
    }
    for path in &reach.logs {
        ruleset = allow(ruleset, path, AccessFs::MakeReg | AccessFs::WriteFile)?;
    }
    for path in &reach.consume {
        ruleset = allow(ruleset, path, read | AccessFs::RemoveFile)?;
    }
    for path in &reach.write {
        ruleset = allow(ruleset, path, write)?;
    }
    let status = ruleset.restrict_self().context("apply Landlock")?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => tracing::debug!("confined by Landlock"),
        RulesetStatus::PartiallyEnforced => {
            tracing::info!("confined by Landlock as far as this kernel knows it")
        }
        RulesetStatus::NotEnforced => {
            tracing::warn!("this kernel has no Landlock: the proxy is not confined to its files")
        }
    }
    Ok(())
}

fn allow(
    ruleset: landlock::RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated> {
    let fd = match PathFd::new(path) {
        Ok(fd) => fd,
        Err(error) => {
            tracing::warn!(
                path = %path.display(), %error,
                "cannot be reached, also if it appears later: it must be there when the sidecar starts"
            );
            return Ok(ruleset);
        }
    };
    ruleset
        .add_rule(PathBeneath::new(fd, access))
        .with_context(|| format!("allow `{}` in Landlock", path.display()))
}
