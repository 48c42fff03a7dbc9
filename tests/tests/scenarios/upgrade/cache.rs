//! An upgrade of a sidecar that keeps its credentials in an encrypted cache: one of the two changes it, and it is who serves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process};
use fender_tests::wait_until;
use tokio::task::block_in_place;

use crate::berth::Berth;
use crate::deliverers::replace;
use crate::standalone::ORDERS;

/// A berth whose sidecar has a secret from a file, and what its configuration was without.
fn with_a_secret() -> (Berth, String) {
    let berth = Berth::new("1s");
    for directory in ["keys", "delivered"] {
        fs::create_dir(berth.path(directory)).unwrap();
    }
    replace(&berth.path("secret"), "one");
    let without = berth.config();
    let listed = without.replace("  drain: 1s\n", "  drain: 1s\n  credentials: [ smtp ]\n");
    assert_ne!(listed, without);
    berth.configure(&format!(
        "{listed}---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ file: {{ path: \"{}\" }} }}\n  deliver: [ {{ file: {{ path: \"{}\", storage: disk }} }} ]\n",
        berth.path("secret").display(),
        berth.path("delivered/smtp").display(),
    ));
    (berth, without)
}

fn caching<'a>(berth: &Berth, command: &'a mut Command) -> &'a mut Command {
    command
        .arg("--credentials-cache")
        .arg(berth.path("cache"))
        .arg("--credentials-cache-key")
        .arg(berth.path("keys/key"))
}

fn kept(berth: &Berth) -> Vec<PathBuf> {
    let entries = fs::read_dir(berth.path("cache"));
    let entries = entries.into_iter().flatten();
    let files = entries.map(|entry| entry.unwrap().path());
    files.filter(|file| is_whole(file)).collect()
}

fn is_whole(file: &Path) -> bool {
    let name = file.file_name().unwrap().to_string_lossy();
    name.ends_with(".sealed") && !name.starts_with('.')
}

fn serving(berth: &Berth) -> Process {
    let mut process = berth.start(caching(berth, &mut berth.command()));
    block_in_place(|| {
        berth.wait_ready(&mut process);
        wait_until("it is kept", PATIENCE, || kept(berth).len() == 1);
    });
    process
}

/// Its documents name no credential, and its certificate says the name of the one that serves, by another authority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_one_that_is_handed_nothing_changes_nothing_in_the_cache_of_who_serves() {
    let (berth, without) = with_a_secret();
    let mut process = serving(&berth);
    let before = fs::read(&kept(&berth)[0]).unwrap();
    let (theirs, document) = (berth.path("theirs"), berth.path("theirs.yaml"));
    let stranger = Authority::new("example.org");
    stranger.issue(&Template::svid(ORDERS)).write(&theirs);
    stranger.write_bundle(&theirs);
    fs::write(&document, without.replace("/identity/", "/theirs/")).unwrap();
    let mut command = Command::new(berth.program());
    command.args(["--log", "debug", "sidecar", "--config"]);
    command.arg(&document).arg("--take-over");
    caching(&berth, command.arg(berth.upgrade_socket()));
    let mut impostor = Process::start("impostor", &mut command, &berth.path("impostor"));
    let code = block_in_place(|| impostor.wait(PATIENCE)).code();
    assert_eq!(code, Some(69), "{}", impostor.log());
    let files = kept(&berth);
    assert_eq!(files.len(), 1, "{}", impostor.log());
    assert_eq!(fs::read(&files[0]).unwrap(), before, "{}", impostor.log());
    process.assert_running();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_keeps_what_is_new_and_what_it_removes_stays_removed() {
    let (berth, without) = with_a_secret();
    let mut before = serving(&berth);
    let mut command = berth.command();
    command.arg("--take-over").arg(berth.upgrade_socket());
    let mut after = berth.start(caching(&berth, &mut command));
    block_in_place(|| {
        wait_until("a successor serves", PATIENCE, || {
            berth.log().contains("a successor serves")
        });
        wait_until("it is ready", PATIENCE, || berth.is_ready());
        assert_eq!(before.wait(PATIENCE).code(), Some(0), "{}", berth.log());
    });

    let first = fs::read(&kept(&berth)[0]).unwrap();
    replace(&berth.path("secret"), "two");
    let is_another =
        || kept(&berth).first().and_then(|file| fs::read(file).ok()) != Some(first.clone());
    block_in_place(|| wait_until("the newer value is kept", PATIENCE, is_another));

    berth.configure(&without);
    let (code, out, err) = block_in_place(|| berth.ask("reload"));
    assert_eq!(code, 0, "{out}{err}\n{}", berth.log());
    let is_gone = || kept(&berth).is_empty();
    block_in_place(|| wait_until("what is named no more is removed", PATIENCE, is_gone));
    after.assert_running();
}
