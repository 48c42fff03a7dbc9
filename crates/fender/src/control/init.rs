//! `fender control init`: founds a control plane, and says what was made, where it is and what comes next.

use std::fmt::Write as _;
use std::path::Path;

use fender_control::{Founded, Sealing, StorePlace};
use fender_runtime::clock::{self, UnixTime};

use super::{failed, foundation, place};
use crate::exit::Outcome;
use crate::{cli, print, render};

pub(super) async fn run(args: cli::Foundation, sealing: Sealing) -> Outcome {
    let founded = fender_control::init(foundation(args.clone(), sealing.clone())?, clock::system())
        .await
        .map_err(failed)?;
    for warning in &founded.warnings {
        tracing::warn!("{warning}");
    }
    print(&told(&args, &sealing, &founded))
}

fn told(args: &cli::Foundation, sealing: &Sealing, founded: &Founded) -> String {
    let moment = |at: UnixTime| render::moment(i64::try_from(at.as_secs()).unwrap_or(i64::MAX));
    let admin = quoted(&founded.admin_dir);
    let mut out = String::new();
    let _ = writeln!(out, "founded the trust domain {}\n", founded.trust_domain);
    let registry = match place(args) {
        StorePlace::DataDir => format!("SQLite, {}", args.data_dir.join("control.db").display()),
        StorePlace::Postgres(_) => "PostgreSQL, as --store says".to_owned(),
    };
    let _ = writeln!(out, "registry       {registry}");
    let _ = writeln!(out, "sealing key    {}", sealing_told(args, sealing));
    let _ = writeln!(
        out,
        "documents      revision {}, {}",
        founded.revision,
        render::counted(founded.workloads, "workload")
    );
    for (pin, until) in &founded.ca_pins {
        let until = moment(*until);
        let _ = writeln!(out, "CA pin         sha256:{pin}, until {until}");
    }
    let _ = writeln!(
        out,
        "administrator  {}, until {}",
        founded.admin,
        moment(founded.admin_until)
    );
    let _ = writeln!(
        out,
        "               {admin}: certificate.pem, key.pem, bundle.pem. The key is nowhere else.",
    );
    let _ = writeln!(out, "\nnext:");
    let _ = writeln!(out, "  fender control{}", flags(args));
    let _ = writeln!(out, "  fender status --admin {admin}");
    let _ = writeln!(out, "  fender apply --admin {admin} -f DIRECTORY");
    let _ = writeln!(
        out,
        "  fender token create --admin {admin} NAMESPACE/NAME --out FILE"
    );
    out
}

fn sealing_told(args: &cli::Foundation, sealing: &Sealing) -> String {
    match sealing {
        Sealing::DataDirectory => format!(
            "{}: keep a copy elsewhere, apart from the registry's",
            args.data_dir.join("key").display()
        ),
        Sealing::File(path) | Sealing::Credential(path) => path.display().to_string(),
        Sealing::Variable { name, .. } => format!("the environment variable {name}"),
        Sealing::InPlain => "NONE: whoever reads the registry is the authority".to_owned(),
    }
}

/// What `fender control` must be told, too, to stand on what was founded. Documents are in the registry now.
fn flags(args: &cli::Foundation) -> String {
    let mut flags = String::new();
    let mut flag = |name: &str, value: &str| {
        let _ = write!(flags, " --{name} {}", quoted(Path::new(value)));
    };
    let text = |path: &Path| path.display().to_string();
    flag("data-dir", &text(&args.data_dir));
    if let Some(url) = &args.store {
        flag("store", url);
    }
    if let Some(name) = &args.replica {
        flag("replica", &name.to_string());
    }
    if args.upstream.root.is_some() {
        flag("root", "offline");
    }
    let paths = [
        ("admin-dir", &args.admin_dir),
        ("store-password-file", &args.store_password_file),
        ("store-roots", &args.store_roots),
        ("store-certificate", &args.store_certificate),
        ("store-key", &args.store_key),
        ("sealing-key-file", &args.sealing.sealing_key_file),
    ];
    for (name, path) in paths {
        if let Some(path) = path {
            flag(name, &text(path));
        }
    }
    if let Some(name) = &args.sealing.sealing_key_env {
        flag("sealing-key-env", name);
    }
    if let Some(name) = &args.sealing.sealing_key_credential {
        flag("sealing-key-credential", name);
    }
    if args.sealing.sealing.is_some() {
        flag("sealing", "none-keys-in-plain");
    }
    flags
}

/// As a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_typed_next_is_one_word_for_a_shell() {
        let shown = |text: &str| quoted(Path::new(text));
        assert_eq!(shown("/srv/fender-data/admin"), "/srv/fender-data/admin");
        assert_eq!(shown("my data"), "'my data'");
        assert_eq!(shown("it's;rm"), r"'it'\''s;rm'");
        assert_eq!(shown(""), "''");
    }
}
