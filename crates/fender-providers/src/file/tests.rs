use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use fender_runtime::drain::Drain;
use tempfile::TempDir;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use super::*;
use crate::{State, watch};

struct Place {
    directory: TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    Place { directory, path }
}

async fn refused(path: &Path) -> FetchError {
    FileSource::new(path).fetch().await.unwrap_err()
}

#[tokio::test]
async fn the_bytes_of_the_file_are_the_secret() {
    let place = place();
    fs::write(&place.path, b"pass\xffword\n").unwrap();
    let source = FileSource::new(&place.path);
    let first = source.fetch().await.unwrap();
    assert_eq!(first.value.expose(), b"pass\xffword\n");
    let again = source.fetch().await.unwrap();
    assert_eq!(
        first.generation, again.generation,
        "equal bytes are the same generation"
    );
    fs::write(&place.path, b"other").unwrap();
    assert_ne!(source.fetch().await.unwrap().generation, first.generation);
}

#[tokio::test]
async fn what_is_not_there_is_missing() {
    let place = place();
    assert!(matches!(refused(&place.path).await, FetchError::Missing(_)));
    fs::write(&place.path, b"x").unwrap();
    assert!(matches!(
        refused(&place.path.join("below")).await,
        FetchError::Missing(_)
    ));
    let dangling = place.directory.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    let error = refused(&dangling).await;
    assert!(matches!(error, FetchError::Missing(_)));
    assert!(
        error.to_string().contains(&*dangling.to_string_lossy()),
        "{error}"
    );
}

#[test]
fn what_may_not_be_read_is_denied_and_a_broken_disk_is_an_outage() {
    use io::ErrorKind::*;

    let path = Path::new("/run/secret");
    // Made up, because the kernel denies nothing to root.
    assert!(matches!(
        blame(path, &PermissionDenied.into()),
        FetchError::Denied(_)
    ));
    for kind in [StaleNetworkFileHandle, TimedOut, Other] {
        let error = blame(path, &kind.into());
        assert!(matches!(&error, FetchError::Outage(why) if why.contains("`/run/secret`")));
    }
}

#[tokio::test]
async fn an_oversized_secret_is_refused_by_its_size() {
    let place = place();
    let file = File::create(&place.path).unwrap();
    file.set_len(LIMIT + 1).unwrap();
    let error = refused(&place.path).await;
    assert!(
        matches!(&error, FetchError::Malformed(why) if why.contains("1 MiB")),
        "{error}"
    );
    file.set_len(LIMIT).unwrap();
    assert_eq!(
        FileSource::new(&place.path)
            .fetch()
            .await
            .unwrap()
            .value
            .len() as u64,
        LIMIT
    );
}

#[tokio::test]
async fn a_pipe_a_device_or_a_directory_is_no_secret_and_blocks_nobody() {
    let place = place();
    assert!(
        Command::new("mkfifo")
            .arg(&place.path)
            .status()
            .unwrap()
            .success()
    );
    for path in [&*place.path, Path::new("/dev/zero"), place.directory.path()] {
        let error = refused(path).await;
        assert!(matches!(error, FetchError::Malformed(_)), "{error}");
    }
}

#[tokio::test]
async fn an_empty_file_is_no_secret() {
    let place = place();
    fs::write(&place.path, b"").unwrap();
    assert!(matches!(
        refused(&place.path).await,
        FetchError::Malformed(_)
    ));
}

#[tokio::test]
async fn a_link_never_leads_out_of_the_directory_a_source_is_held_to() {
    let place = place();
    let root = place.directory.path().join("root");
    fs::create_dir_all(root.join("..data")).unwrap();
    fs::write(place.directory.path().join("outside"), "stolen").unwrap();
    fs::write(root.join("..data/secret"), "ours").unwrap();
    symlink("..data/secret", root.join("inside")).unwrap();
    symlink("../outside", root.join("climbing")).unwrap();
    symlink(
        place.directory.path().join("outside"),
        root.join("absolute"),
    )
    .unwrap();
    symlink("/proc/self/environ", root.join("magic")).unwrap();

    let source = FileSource::below(&root, root.join("inside"));
    assert_eq!(source.fetch().await.unwrap().value.expose(), b"ours");
    for name in ["climbing", "absolute", "magic", "../outside"] {
        let error = FileSource::below(&root, root.join(name))
            .fetch()
            .await
            .unwrap_err();
        assert!(matches!(&error, FetchError::Denied(_)), "{name}: {error}");
    }
    let elsewhere = FileSource::below(&root, "/etc/hostname").fetch().await;
    assert!(matches!(elsewhere, Err(FetchError::Denied(_))));
}

async fn value(states: &mut Receiver<State>) -> String {
    states.changed().await.unwrap();
    let state = states.borrow_and_update();
    let value = state
        .value()
        .map(|fetched| fetched.value.expose_str().unwrap().to_owned());
    format!("{:?} {}", value, state.error().is_some())
}

#[tokio::test(start_paused = true)]
async fn a_kubernetes_swap_of_the_data_link_is_followed_within_a_second() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (version, value) in [("..1", "old"), ("..2", "new")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("secret"), value).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/secret", at("secret")).unwrap();

    let drain = Drain::new();
    let mut states = watch(FileSource::new(at("secret")), &drain);
    assert_eq!(value(&mut states).await, r#"Some("old") false"#);
    symlink("..2", at("..next")).unwrap();
    fs::rename(at("..next"), at("..data")).unwrap();
    let changed = Instant::now();
    assert_eq!(value(&mut states).await, r#"Some("new") false"#);
    assert!(
        changed.elapsed() <= Duration::from_secs(1),
        "{:?}",
        changed.elapsed()
    );
    drain.stop();
}

#[tokio::test(start_paused = true)]
async fn a_removed_file_is_withdrawn_and_comes_back() {
    let place = place();
    fs::write(&place.path, "one").unwrap();
    let drain = Drain::new();
    let mut states = watch(FileSource::new(&place.path), &drain);
    assert_eq!(value(&mut states).await, r#"Some("one") false"#);
    fs::remove_file(&place.path).unwrap();
    assert_eq!(value(&mut states).await, "None true");
    fs::write(&place.path, "two").unwrap();
    assert_eq!(value(&mut states).await, r#"Some("two") false"#);
    fs::write(&place.path, "").unwrap();
    assert_eq!(value(&mut states).await, r#"Some("two") true"#);
    drain.stop();
}

#[tokio::test]
async fn what_opens_others_is_seen_by_nobody_else() {
    use std::os::unix::fs::PermissionsExt;

    let place = place();
    fs::write(&place.path, b"identity").unwrap();
    let mode = |mode| fs::set_permissions(&place.path, fs::Permissions::from_mode(mode)).unwrap();
    let source = FileSource::new(&place.path).seen_by_no_other();
    for private in [0o600, 0o400] {
        mode(private);
        assert!(source.fetch().await.is_ok(), "{private:o}");
    }
    for open in [0o640, 0o604, 0o620, 0o602, 0o777] {
        mode(open);
        let error = source.fetch().await.unwrap_err();
        assert!(
            matches!(&error, FetchError::Denied(why) if why.contains("by others than its owner")),
            "{open:o} {error}"
        );
        let way_out = format!("; `chmod 600 {}`", place.path.display());
        assert!(error.to_string().ends_with(&way_out), "{open:o} {error}");
    }
}
