//! `fender ca create-root`, `sign-intermediate` and `import`: a root whose key no control plane has. None of them talks to
//! anybody: the first two are for a machine that is connected to nothing.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use fender_control::Sealing;
use fender_control::offline::{self, AnotherRoot, Made, OfflineError};
use fender_identity::certificates_from_pem;
use fender_identity::tls::CaPin;
use fender_runtime::clock;

use crate::admin::can_be_written;
use crate::cli::CaOffline;
use crate::exit::{Exit, Failure, Outcome};
use crate::{cli, print, render};

pub(crate) fn run(command: &CaOffline, sealing: &Sealing) -> Outcome {
    match command {
        CaOffline::CreateRoot(args) => create_root(args, sealing),
        CaOffline::SignIntermediate(args) => sign_intermediate(args, sealing),
        CaOffline::Import(args) => import(args),
    }
}

fn create_root(args: &cli::CaCreateRoot, sealing: &Sealing) -> Outcome {
    let now = clock::system().now();
    let made = offline::create_root(&args.dir, &args.trust_domain, args.lifetime, sealing, now)
        .map_err(failed)?;
    let mut out = told("root", &made);
    let _ = writeln!(
        out,
        "{}: root.pem, and root-key, which is sealed by what you gave; keep a copy of both, apart from each other",
        args.dir.display()
    );
    print(&out)
}

fn sign_intermediate(args: &cli::CaSignIntermediate, sealing: &Sealing) -> Outcome {
    // Before anything is signed: a certificate that is not wanted cannot be taken back.
    if let Some(out) = args.out.as_deref() {
        can_be_written(out)?;
        if out.exists() {
            return Err(Failure::usage(format!(
                "`{}` is there already, and nothing was signed: name another file with `--out`",
                out.display()
            )));
        }
    }
    let now = clock::system().now();
    let made = offline::sign_intermediate(&args.root, &args.request, args.lifetime, sealing, now)
        .map_err(failed)?;
    let Some(out) = &args.out else {
        return print(&made.pem);
    };
    write_new(out, &made.pem).map_err(Failure::unavailable)?;
    let mut text = told("intermediate", &made);
    let _ = writeln!(
        text,
        "{}: bring it back, and run `fender ca import` where the request was made",
        out.display()
    );
    print(&text)
}

fn import(args: &cli::CaImport) -> Outcome {
    let now = clock::system().now();
    let another = match args.another_root {
        true => AnotherRoot::Allowed,
        false => AnotherRoot::Refused,
    };
    let made = offline::import(&args.data_dir, &args.signed, another, now).map_err(failed)?;
    let mut out = told("intermediate", &made);
    let _ = writeln!(
        out,
        "taken: a control plane that runs tries it within a minute; see `fender status`"
    );
    print(&out)
}

/// What was made, and by which root, for somebody to compare.
fn told(what: &str, made: &Made) -> String {
    let until = i64::try_from(made.until.as_secs()).unwrap_or(i64::MAX);
    let mut out = format!(
        "{what} {} of the trust domain {}, until {}\n",
        made.serial,
        made.trust_domain,
        render::moment(until)
    );
    let chain = certificates_from_pem(made.pem.as_bytes()).unwrap_or_default();
    if let Some(root) = chain.last() {
        let _ = writeln!(out, "CA pin sha256:{}", CaPin::of(root));
    }
    out
}

/// What is there already is somebody's.
fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    let file = options.open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write `{}`", path.display()))
}

fn failed(error: OfflineError) -> Failure {
    Failure::new(Exit::from_code(error.exit_code()), error)
}
