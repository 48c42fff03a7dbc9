use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn ways(allow: AllowDirs, programs: Runner) -> Ways {
    Ways {
        allow,
        programs,
        app: Arc::new(NoApp),
    }
}

async fn tell(target: &Target) -> Result<(), String> {
    let ways = ways(AllowDirs::Any, Runner::here(["/bin/sh".into()]));
    let changed = [
        ObjectName::new("shop", "smtp").unwrap(),
        ObjectName::new("shop", "tls").unwrap(),
    ];
    let told = ways.tell(target, &changed).await;
    told.map_err(|why| why.to_string())
}

/// A file with the number of a process.
struct Numbered {
    directory: TempDir,
}

impl Numbered {
    fn new(text: &str) -> Self {
        let numbered = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        fs::write(numbered.path(), text).unwrap();
        numbered
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("pid")
    }

    fn target(&self) -> Target {
        Target::Process {
            // Whoever began the tests may have ignored SIGHUP, and so would what they start.
            signal: NotifySignal::Usr1,
            pid_file: self.path(),
        }
    }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

#[tokio::test]
async fn the_process_whose_number_is_in_the_file_gets_the_signal() {
    let mut sleeper = sleeper();
    let numbered = Numbered::new(&format!("{}\n", sleeper.id()));
    tell(&numbered.target()).await.unwrap();
    let ended = sleeper.wait().unwrap();
    assert_eq!(ended.signal(), Some(Signal::USR1.as_raw()));
    // It was reaped: nobody has that number, or somebody who did not write it, which nobody can tell.
    let gone = Numbered::new("2147483647");
    let error = tell(&gone.target()).await.unwrap_err();
    assert!(error.contains("process 2147483647"), "{error}");
}

#[tokio::test]
async fn attack_a_file_that_names_what_no_process_may_be_told() {
    let own = std::process::id().to_string();
    let parent = std::os::unix::process::parent_id().to_string();
    for text in [
        "0",
        "1",
        "-1",
        "-2",
        "",
        "x",
        "4294967297",
        "1 2",
        &own,
        &parent,
    ] {
        let error = tell(&Numbered::new(text).target()).await.unwrap_err();
        assert!(!error.is_empty(), "`{text}`");
    }
}

/// A sidecar that runs as root could be made to signal anybody's process by whoever can write the file.
#[tokio::test]
async fn attack_a_file_that_another_user_can_write_decides_nothing() {
    let mut sleeper = sleeper();
    let numbered = Numbered::new(&sleeper.id().to_string());
    for mode in [0o666, 0o664, 0o646] {
        fs::set_permissions(numbered.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = tell(&numbered.target()).await.unwrap_err();
        assert!(
            error.contains("may be written by others") && error.contains("pid"),
            "{mode:o}: {error}"
        );
    }
    fs::set_permissions(numbered.path(), fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(numbered.path(), Some(4301), None).unwrap();
    let error = tell(&numbered.target()).await.unwrap_err();
    assert!(error.contains("belongs to user 4301"), "{error}");
    assert!(sleeper.try_wait().unwrap().is_none(), "it heard nothing");
    std::os::unix::fs::chown(numbered.path(), Some(0), None).unwrap();
    tell(&numbered.target()).await.unwrap();
    sleeper.wait().unwrap();
}

#[tokio::test]
async fn attack_a_document_from_elsewhere_names_no_file_outside_of_what_was_allowed() {
    let mut sleeper = sleeper();
    let numbered = Numbered::new(&sleeper.id().to_string());
    let target = numbered.target();
    let root = numbered.directory.path().join("root");
    fs::create_dir(&root).unwrap();
    std::os::unix::fs::symlink("../pid", root.join("link")).unwrap();
    let link = Target::Process {
        signal: NotifySignal::Usr1,
        pid_file: root.join("link"),
    };
    for (allow, target) in [
        (AllowDirs::none(), &target),
        (AllowDirs::Below(vec![root.clone()]), &target),
        (AllowDirs::Below(vec![root.clone()]), &link),
    ] {
        let ways = ways(allow, Runner::none());
        ways.tell(target, &[]).await.unwrap_err();
    }
    assert!(sleeper.try_wait().unwrap().is_none(), "it heard nothing");
    let ways = ways(
        AllowDirs::Below(vec![numbered.directory.path().to_owned()]),
        Runner::none(),
    );
    ways.tell(&target, &[]).await.unwrap();
    assert_eq!(
        sleeper.wait().unwrap().signal(),
        Some(Signal::USR1.as_raw())
    );
}

fn http(listener: &TcpListener, timeout: Duration) -> Target {
    Target::Http {
        url: format!("http://{}/-/reload?a=b", listener.local_addr().unwrap())
            .parse()
            .unwrap(),
        method: NotifyMethod::Put,
        timeout,
    }
}

/// Answers one request.
async fn answer(listener: &TcpListener, answer: &str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8(heard).unwrap()
}

#[tokio::test]
async fn only_an_answer_of_success_acknowledges() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = http(&listener, Duration::from_secs(120));
    for (status, acknowledged) in [
        ("200 OK", true),
        ("204 No Content", true),
        ("302 Found\r\nlocation: http://10.0.0.1/", false),
        ("404 Not Found", false),
        ("503 Service Unavailable", false),
    ] {
        let given = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        let (told, heard) = tokio::join!(tell(&target), answer(&listener, &given));
        assert_eq!(told.is_ok(), acknowledged, "{status}: {told:?}");
        assert!(
            heard.starts_with("PUT /-/reload?a=b HTTP/1.1\r\n"),
            "{heard}"
        );
        assert!(
            heard.contains(&format!("host: {}", listener.local_addr().unwrap())),
            "{heard}"
        );
    }
    for nonsense in ["", "hello\r\n\r\n", "HTTP/1.1 200"] {
        let (told, _) = tokio::join!(tell(&target), answer(&listener, nonsense));
        told.unwrap_err();
    }
}

#[tokio::test]
async fn whoever_does_not_answer_in_time_has_not_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = http(&listener, Duration::from_millis(100));
    let error = tell(&target).await.unwrap_err();
    assert!(error.contains("in time"), "{error}");
    let target = http(&listener, Duration::from_secs(120));
    drop(listener);
    tell(&target).await.unwrap_err();
}

fn command(program: &str, script: &str, file: &Path) -> Target {
    let file = file.to_str().unwrap();
    Target::Command {
        program: program.into(),
        arguments: ["-c", script, "script", file].map(str::to_owned).to_vec(),
        timeout: Duration::from_secs(120),
    }
}

#[tokio::test]
async fn a_program_hears_what_changed_and_acknowledges_by_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("heard");
    tell(&command("/bin/sh", "cat > \"$1\"", &file))
        .await
        .unwrap();
    let expected = "{\"credentials\":[{\"name\":\"smtp\",\"namespace\":\"shop\"},{\"name\":\"tls\",\"namespace\":\"shop\"}],\"operation\":\"notify\",\"version\":1}\n";
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    let failing = "echo hunter2 >&2; echo hunter2; exit 3";
    let error = tell(&command("/bin/sh", failing, &file)).await.unwrap_err();
    assert_eq!(error, "it ended with exit code 3", "and not what it said");
    let killed = tell(&command("/bin/sh", "kill -KILL $$", &file)).await;
    assert_eq!(killed.unwrap_err(), "it was ended by signal 9");
}

#[tokio::test]
async fn attack_a_program_that_was_not_allowed_is_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("heard");
    let error = tell(&command("/bin/dash", "cat > \"$1\"", &file))
        .await
        .unwrap_err();
    assert!(error.contains("--allow-command"), "{error}");
    assert!(!file.exists());
}

#[tokio::test]
async fn without_a_supervised_application_nobody_is_told_and_that_is_said() {
    for target in [Target::Restart, Target::App(NotifySignal::Hup)] {
        let told = ways(AllowDirs::Any, Runner::none())
            .tell(&target, &[])
            .await;
        assert!(
            matches!(&told, Err(NotTold::Never(why)) if why.contains("-- CMD")),
            "{told:?}"
        );
    }
}
