//! The proxy confines itself before it opens anything: no new privileges, and a view of the file
//! system cut down by Landlock to what this command line names.
//!
//! The application is not a descendant of the proxy and inherits none of it; programs that documents have run are started by
//! a helper, which is as little confined ([`crate::programs`]). Documents from a
//! control plane can reach no path that was not named locally, even if every check above this one
//! were wrong; except that all of `/etc` is readable, as far as this user may, because names are
//! resolved from files there that are replaced by renaming. Connecting to Unix sockets is not
//! Landlock's to forbid: [`super::paths`] does. On a kernel without Landlock the sidecar runs and says what is missing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fender_config::snapshot::{CredentialSource, Delivery, Origin, Target};
use fender_config::standalone::{Identity, Standalone};
use fender_runtime::listen::{ListenAddress, LocalAddress};
use fender_runtime::{lines, sys};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};

use super::upgrade;
use crate::exit::Failure;
use crate::{cli, source};

/// Where names are resolved from; directories, because these files are replaced by renaming.
const NAME_RESOLUTION: &[&str] = &[
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
];

/// What the proxy may touch.
#[derive(Default, Debug)]
pub(crate) struct Reach {
    pub(super) read: Vec<PathBuf>,
    pub(super) write: Vec<PathBuf>,
    /// Directories in which sockets are made and replaced.
    pub(super) sockets: Vec<PathBuf>,
    /// Directories in which files are made and appended to.
    pub(super) logs: Vec<PathBuf>,
    /// Directories of files that are read once and removed.
    pub(super) consume: Vec<PathBuf>,
    /// Programs that are run, by a helper that is not confined.
    pub(super) programs: Vec<PathBuf>,
    /// Variables of the environment that are read, once.
    pub(super) variables: Vec<String>,
    /// Whether AWS is asked for something.
    pub(super) asks_aws: bool,
}

impl Reach {
    /// Everything this command line names on the file system, and nothing else.
    pub(super) fn of(args: &cli::Sidecar) -> Result<Self, Failure> {
        let mut reach = Self::of_source(&args.source)?;
        if let Some(roots) = &args.telemetry.tracing.otlp_roots {
            reach.read_file(roots);
        }
        if let Some(socket) = &args.places.upgrade_socket {
            upgrade::private_directory(socket).map_err(Failure::usage_of)?;
        }
        for socket in args
            .places
            .admin_socket
            .iter()
            .chain(&args.places.upgrade_socket)
        {
            reach.sockets.push(Self::parent(socket));
        }
        #[cfg(feature = "agent")]
        if let Some(socket) = &args.workload_api.workload_api {
            reach.sockets.push(Self::parent(socket));
        }
        if let Some(LocalAddress::Path(socket)) = &args.places.credentials_socket {
            reach.sockets.push(Self::parent(socket));
        }
        for address in &args.places.credentials_url {
            if let ListenAddress::Unix(socket) = address {
                reach.sockets.push(Self::parent(socket));
            }
        }
        if let lines::Destination::File(path) = &args.telemetry.access_log {
            reach.logs.push(Self::parent(path));
        }
        Ok(reach)
    }

    /// What identity, documents and secrets need.
    pub(crate) fn of_source(source: &cli::Source) -> Result<Self, Failure> {
        let mut reach = Self::default();
        reach.write.extend(source.allow_dir.iter().cloned());
        reach.programs.clone_from(&source.allow_command);
        reach.variables.clone_from(&source.allow_environment);
        if let Some(state) = &source.state {
            // It may not exist yet: then it is made now, so that a rule can name it.
            make_private(state).map_err(Failure::unavailable)?;
            reach.write.push(state.clone());
        }
        if let Some(token) = &source.token_file {
            reach.consume.push(Self::parent(token));
        }
        // Evidence is read anew whenever it is shown, and so are the roots of the first contact.
        let evidence = [
            &source.kubernetes_token_file,
            &source.x509_certificate,
            &source.x509_key,
            &source.bundle,
        ];
        for file in evidence.into_iter().flatten() {
            reach.read_file(file);
        }
        if let Some(file) = &source.config {
            reach.read_file(file);
            reach.add(&source::read_standalone(file)?);
        }
        Ok(reach)
    }

    /// What the documents of a sidecar without a control plane name.
    fn add(&mut self, standalone: &Standalone) {
        // The socket of a Workload API needs no rule: connecting is not Landlock's to forbid.
        if let Some(Identity::Files(files)) = &standalone.identity {
            for file in [&files.certificate, &files.key, &files.bundle] {
                self.read_file(file);
            }
        }
        self.sockets
            .extend(standalone.listening_sockets().map(Self::parent));
        for file in standalone.certificate_files() {
            self.read_file(file);
        }
        for credential in standalone.credentials() {
            if let CredentialSource::Direct(origin) = &credential.source {
                for file in origin.files() {
                    self.read_file(&file);
                }
                if let Origin::Command(command) = origin {
                    self.programs.push(command.program.clone());
                }
                if let Origin::Environment { variable } = origin {
                    self.variables.push(variable.clone());
                }
                self.asks_aws |= matches!(origin, Origin::Aws(_));
            }
            for notification in &credential.notify {
                self.notify(&notification.target);
            }
            let places = credential.deliver.iter();
            self.write
                .extend(places.filter_map(|delivery| match delivery {
                    Delivery::File(file, _) => Some(Self::parent(&file.path)),
                    // If it is not there, it is made.
                    Delivery::Files(set) if set.directory.exists() => Some(set.directory.clone()),
                    Delivery::Files(set) => Some(Self::parent(&set.directory)),
                    Delivery::Url(url) => Some(Self::parent(&url.token.path)),
                    Delivery::Environment { .. } | Delivery::Socket(_) => None,
                }));
        }
    }

    fn notify(&mut self, target: &Target) {
        match target {
            Target::Process { pid_file, .. } => self.read_file(pid_file),
            Target::Command { program, .. } => self.programs.push(program.clone()),
            // Connecting is not Landlock's to forbid; it goes to loopback.
            Target::Http { .. } | Target::App(_) | Target::Restart => {}
        }
    }

    /// Whether documents that came later stay within what was named at the start; else what does not.
    pub(crate) fn admit(&self, standalone: &Standalone) -> Result<(), String> {
        let mut wanted = Self::default();
        wanted.add(standalone);
        let below = |path: &Path, allowed: &[PathBuf]| {
            let path = real(path);
            allowed
                .iter()
                .any(|allowed| path.starts_with(real(allowed)))
        };
        let resolution: Vec<_> = NAME_RESOLUTION.iter().map(PathBuf::from).collect();
        let readable = [&self.read, &self.write, &resolution];
        let read = |path: &Path| readable.iter().any(|allowed| below(path, allowed));
        let write = |path: &Path| below(path, &self.write);
        let listen = |path: &Path| below(path, &self.sockets) || write(path);
        let missing = wanted.read.iter().find(|path| !read(path));
        let missing = missing.or_else(|| wanted.write.iter().find(|path| !write(path)));
        let missing = missing.or_else(|| wanted.sockets.iter().find(|path| !listen(path)));
        let run = |path: &PathBuf| self.programs.contains(path);
        let missing = missing.or_else(|| wanted.programs.iter().find(|path| !run(path)));
        let variable = wanted.variables.iter();
        let variable = variable.map(Path::new).find(|name| {
            let known = |known: &String| Path::new(known) == *name;
            !self.variables.iter().any(known)
        });
        let missing = missing.map(PathBuf::as_path).or(variable);
        // Its credentials were found before the sidecar confined itself.
        let aws = (wanted.asks_aws && !self.asks_aws).then_some(Path::new("aws"));
        let missing = missing.or(aws);
        missing.map_or(Ok(()), |missing| {
            Err(format!(
                "`{}` lies outside of what this sidecar may touch since it started: start it again, or upgrade it",
                missing.display()
            ))
        })
    }

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

/// Where a path leads, as far as it exists.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn make_private(directory: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make the state directory `{}`", directory.display()))
}

/// Applies to the calling thread and every thread it starts: call before the runtime exists.
pub(crate) fn confine(reach: &Reach) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn documents(directory: &Path, inbound: &str) -> Standalone {
        let text = format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: orders }}\nspec:\n  identity: {{ files: {{ certificate: {0}/c.pem, key: {0}/k.pem, bundle: {0}/b.pem }} }}\n  inbound: [ {{ listen: '{inbound}', app: '127.0.0.1:1', protocol: http }} ]\n",
            directory.display()
        );
        testing::sidecar(&text)
    }

    #[test]
    fn later_documents_stay_within_what_was_named_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        let inside = format!("unix:{}/in.sock", here.display());
        let mut reach = Reach::default();
        reach.add(&documents(here, &inside));
        assert_eq!(reach.admit(&documents(here, "127.0.0.1:8443")), Ok(()));
        assert_eq!(reach.admit(&documents(here, &inside)), Ok(()));
        let outside = reach
            .admit(&documents(here, "unix:/run/in.sock"))
            .unwrap_err();
        assert!(outside.contains("`/run`"), "{outside}");
        let outside = reach
            .admit(&documents(Path::new("/srv"), &inside))
            .unwrap_err();
        assert!(outside.contains("`/srv`"), "{outside}");
    }
}
