use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use fender_config::ObjectName;
use tempfile::TempDir;

use super::*;

const SECRET: &str = r#"{"user": "orders", "password": "hunter2"}"#;

fn entry(name: &str, mode: u32, template: &str) -> FileEntry {
    FileEntry {
        name: name.parse().unwrap(),
        mode,
        content: Content::Template(template.parse().unwrap()),
    }
}

fn delivery(directory: &Path) -> FilesDelivery {
    FilesDelivery {
        directory: directory.to_owned(),
        storage: Storage::Disk,
        owner: None,
        group: None,
        entries: vec![
            entry("user", 0o440, "{{ user }}"),
            entry(".pw", 0o400, "{{ password }}"),
        ],
    }
}

struct Bench {
    temporary: TempDir,
    delivery: FilesDelivery,
    held: Option<DeliveredSet>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        Self {
            delivery: delivery(&temporary.path().join("set")),
            temporary,
            held: None,
            now: Instant::now(),
        }
    }

    fn place(&self) -> SetPlace {
        SetPlace::new(&self.delivery, &AllowDirs::Any).unwrap()
    }

    fn write(&mut self, secret: &str) -> Result<Change, DeliveryError> {
        let (value, name) = (
            Secret::from(secret.to_owned()),
            ObjectName::new("shop", "db").unwrap(),
        );
        let place = self.place();
        let files = place.render(&Material::new(&value, &name))?;
        place.write(&files, &mut self.held, self.now)
    }

    fn rotate(&mut self, user: &str) -> Change {
        self.now += Duration::from_millis(1);
        self.write(&format!(r#"{{"user": "{user}", "password": "pw-{user}"}}"#))
            .unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.delivery.directory.join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.delivery.directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn generations(&self) -> usize {
        let names = self.names();
        names
            .iter()
            .filter(|name| is_generation(OsStr::new(name)))
            .count()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().mode() & 0o7777
    }
}

#[test]
fn all_files_arrive_together_each_with_its_mode() {
    let mut bench = Bench::new();
    assert_eq!(bench.write(SECRET).unwrap(), Change::Written);
    assert_eq!(
        (bench.text("user"), bench.text(".pw")),
        ("orders".to_owned(), "hunter2".to_owned())
    );
    let names = bench.names();
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(bench.generations(), 1);
    // Whoever may read one of them may look into the generation: here a group, and nobody else.
    assert_eq!(
        (bench.mode("user"), bench.mode(".pw"), bench.mode(DATA)),
        (0o440, 0o400, 0o550)
    );
    assert_eq!(bench.mode("."), 0o755);
    assert_eq!(
        fs::read_link(bench.path("user")).unwrap(),
        Path::new("..data/user")
    );
}

#[test]
fn equal_bytes_are_not_rewritten_but_modes_and_links_are_put_right() {
    let mut bench = Bench::new();
    bench.write(SECRET).unwrap();
    let before = fs::read_link(bench.path(DATA)).unwrap();
    fs::set_permissions(bench.path(".pw"), Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(bench.path(DATA), Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(bench.path("user")).unwrap();
    assert_eq!(bench.write(SECRET).unwrap(), Change::Unchanged);
    assert_eq!(fs::read_link(bench.path(DATA)).unwrap(), before);
    assert_eq!((bench.mode(".pw"), bench.mode(DATA)), (0o400, 0o550));
    assert_eq!(bench.text("user"), "orders");
}

#[test]
fn a_file_more_or_less_or_other_than_it_should_be_is_another_generation() {
    let mut bench = Bench::new();
    let harm: [fn(&Path); 4] = [
        |data| fs::write(data.join("planted"), "x").unwrap(),
        |data| fs::remove_file(data.join("user")).unwrap(),
        |data| {
            fs::remove_file(data.join("user")).unwrap();
            fs::write(data.join("user"), "mallory").unwrap();
        },
        |data| fs::hard_link(data.join("user"), data.join("../second-name")).unwrap(),
    ];
    bench.write(SECRET).unwrap();
    for harm in harm {
        let data = fs::canonicalize(bench.path(DATA)).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
        harm(&data);
        assert_eq!(bench.write(SECRET).unwrap(), Change::Written);
        assert_eq!(
            (bench.text("user"), bench.text(".pw")),
            ("orders".to_owned(), "hunter2".to_owned())
        );
    }
}

#[test]
fn whoever_has_opened_data_reads_one_generation_to_its_end() {
    let mut bench = Bench::new();
    bench.rotate("one");
    let data = rustix::fs::openat(
        CWD,
        bench.path(DATA),
        OFlags::PATH | OFlags::DIRECTORY,
        Mode::empty(),
    );
    let data = data.unwrap();
    let read = |name: &str| {
        let file = rustix::fs::openat(&data, name, OFlags::RDONLY, Mode::empty())?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).unwrap();
        Ok::<_, Errno>(text)
    };
    assert_eq!(read("user").as_deref(), Ok("one"));
    for user in ["two", "three", "four", "five"] {
        bench.rotate(user);
        assert_eq!(read(".pw").as_deref(), Ok("pw-one"), "{user}");
    }
    // More than there may be: that one is gone, and nothing of another has come in its place.
    bench.rotate("six");
    assert_eq!(read(".pw"), Err(Errno::NOENT));
    assert_eq!(bench.generations(), 1 + MOST_RETIRED);
    assert_eq!(bench.text(".pw"), "pw-six");
}

#[test]
fn what_was_replaced_goes_when_its_time_has_come() {
    let mut bench = Bench::new();
    bench.rotate("one");
    assert_eq!(bench.held.as_ref().unwrap().due(), None);
    bench.rotate("two");
    assert_eq!(bench.generations(), 2);
    let due = bench.held.as_ref().unwrap().due().unwrap();
    assert_eq!(due, bench.now + GRACE);
    let held = bench.held.as_mut().unwrap();
    held.tidy(due - Duration::from_millis(1)).unwrap();
    assert_eq!(bench.generations(), 2);
    bench.held.as_mut().unwrap().tidy(due).unwrap();
    assert_eq!(
        (bench.generations(), bench.text("user")),
        (1, "two".to_owned())
    );
    assert_eq!(bench.held.as_ref().unwrap().due(), None);
}

#[test]
fn what_a_crash_left_behind_goes_and_what_another_process_builds_stays() {
    let mut bench = Bench::new();
    bench.write(SECRET).unwrap();
    bench.held = None;
    let complete = "..0123456789abcdef0123456789abcdef";
    let [half, locked] = ["..new-00", "..new-11"];
    for name in [complete, half, locked] {
        fs::create_dir(bench.path(name)).unwrap();
        fs::write(bench.path(name).join("user"), "half a sec").unwrap();
    }
    symlink(complete, bench.path("..data-00")).unwrap();
    symlink("..data/user", bench.path("..link-00")).unwrap();
    symlink(
        "..fedcba9876543210fedcba9876543210",
        bench.path("..data-11"),
    )
    .unwrap();
    let lock = File::open(bench.path(locked)).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();

    assert_eq!(bench.write(SECRET).unwrap(), Change::Unchanged);
    let names = bench.names();
    for (name, stays) in [
        (half, false),
        ("..link-00", false),
        ("..data-11", false),
        // It may be another's that is about to count: it goes when it is old.
        (complete, true),
        ("..data-00", true),
        (locked, true),
    ] {
        assert_eq!(
            names.iter().any(|present| present == name),
            stays,
            "{name}: {names:?}"
        );
    }
    drop(lock);
    let due = bench.held.as_ref().unwrap().due().unwrap();
    bench.held.as_mut().unwrap().tidy(due).unwrap();
    bench.held.as_mut().unwrap().tidy(due).unwrap();
    assert_eq!(bench.names().len(), 4, "{:?}", bench.names());
}

#[test]
fn a_file_that_is_no_longer_in_the_set_has_no_link_and_one_that_was_no_link_becomes_one() {
    let mut bench = Bench::new();
    fs::create_dir(&bench.delivery.directory).unwrap();
    fs::write(bench.path("user"), "from before").unwrap();
    fs::write(bench.path("other"), "theirs").unwrap();
    symlink("..data/elsewhere", bench.path("foreign")).unwrap();
    bench.write(SECRET).unwrap();
    assert_eq!(bench.text("user"), "orders");
    bench.delivery.entries.remove(0);
    assert_eq!(bench.write(SECRET).unwrap(), Change::Written);
    let names = bench.names();
    assert!(!names.contains(&"user".to_owned()), "{names:?}");
    assert!(names.contains(&"other".to_owned()) && names.contains(&"foreign".to_owned()));
}

#[test]
fn a_set_is_removed_whole_unless_it_is_another_s_by_now() {
    let mut bench = Bench::new();
    bench.rotate("one");
    bench.rotate("two");
    fs::write(bench.path("other"), "theirs").unwrap();
    let held = bench.held.take().unwrap();
    held.remove().unwrap();
    assert_eq!(bench.names(), ["other"]);
    held.remove().unwrap();

    bench.rotate("three");
    let held = bench.held.take().unwrap();
    bench.rotate("successor's");
    held.remove().unwrap();
    assert_eq!(bench.text("user"), "successor's");
}

#[test]
fn owner_and_group_are_set_on_files_and_generation_and_both_can_be_removed_again() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut bench = Bench::new();
    (bench.delivery.owner, bench.delivery.group) =
        (Some("1234".to_owned()), Some("4321".to_owned()));
    bench.write(SECRET).unwrap();
    let owned = |bench: &Bench, name: &str| {
        let metadata = fs::metadata(bench.path(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    for name in [DATA, "user", ".pw"] {
        assert_eq!(owned(&bench, name), (1234, 4321), "{name}");
    }
    std::os::unix::fs::chown(bench.path(".pw"), Some(0), Some(0)).unwrap();
    assert_eq!(bench.write(SECRET).unwrap(), Change::Unchanged);
    assert_eq!(owned(&bench, ".pw"), (1234, 4321));
    bench.held.take().unwrap().remove().unwrap();
    assert!(bench.names().is_empty());
}

#[test]
fn attack_links_and_directories_that_others_may_write_to_are_refused() {
    let mut bench = Bench::new();
    let root = bench.temporary.path().to_owned();
    let [real, shared, link] = ["real", "shared", "link"].map(|name| root.join(name));
    fs::create_dir(&real).unwrap();
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    symlink(&real, &link).unwrap();
    for (directory, why) in [
        (link.clone(), "symbolic link"),
        (link.join("set"), "symbolic link"),
        (shared.clone(), "everybody may write to"),
        (shared.join("set"), "everybody may write to"),
        (root.join("absent/set"), "make the directory first"),
    ] {
        bench.delivery.directory = directory;
        let error = bench.write(SECRET).unwrap_err();
        assert!(matches!(error, DeliveryError::Unfit { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(
        fs::read_dir(real).unwrap().count() + fs::read_dir(shared).unwrap().count(),
        0
    );
    bench.delivery.storage = Storage::Memory;
    bench.delivery.directory = "/usr/fender-set".into();
    let error = bench.write(SECRET).unwrap_err();
    assert!(error.to_string().contains("`storage: disk`"), "{error}");
    assert!(!Path::new("/usr/fender-set").exists());
}

/// Whoever may write to the directory, because it is theirs, can point `..data` anywhere.
#[test]
fn attack_what_data_points_at_is_not_written_to_or_given_away() {
    let mut bench = Bench::new();
    let victim = bench.temporary.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("user"), "orders").unwrap();
    fs::write(victim.join(".pw"), "hunter2").unwrap();
    fs::create_dir(&bench.delivery.directory).unwrap();
    for target in ["../victim", "..0123456789abcdef0123456789abcdef"] {
        let _ = fs::remove_file(bench.path(DATA));
        symlink(target, bench.path(DATA)).unwrap();
        symlink(
            "../victim",
            bench.path("..0123456789abcdef0123456789abcdef"),
        )
        .ok();
        assert_eq!(bench.write(SECRET).unwrap(), Change::Written, "{target}");
    }
    bench.held.take().unwrap().remove().ok();
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 2);
    assert_eq!(
        fs::metadata(victim.join("user")).unwrap().mode() & 0o777,
        0o644
    );
}

#[test]
fn what_cannot_be_made_of_a_value_leaves_the_set_as_it_was() {
    let mut bench = Bench::new();
    bench.write(SECRET).unwrap();
    let names = bench.names();
    let error = bench.write(r#"{"user": "hunter2"}"#).unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(
        shown.contains("no field `password`") && !shown.contains("hunter2"),
        "{shown}"
    );
    assert_eq!(
        (bench.names(), bench.text("user")),
        (names, "orders".to_owned())
    );
}

#[test]
fn a_document_from_elsewhere_writes_a_set_nowhere_by_default() {
    let delivery = delivery(Path::new("/run/app"));
    let error = SetPlace::new(&delivery, &AllowDirs::none()).unwrap_err();
    assert!(error.to_string().contains("--allow-dir"), "{error}");
    let allowed = |directory: &str| AllowDirs::Below(vec![directory.into()]);
    SetPlace::new(&delivery, &allowed("/run/app")).unwrap();
    SetPlace::new(&delivery, &allowed("/run")).unwrap();
    SetPlace::new(&delivery, &allowed("/run/application")).unwrap_err();
}

/// What crashes have left behind goes before what a reader may have open.
#[test]
fn the_generation_that_was_just_replaced_stays_however_many_are_left_by_processes_before() {
    let mut bench = Bench::new();
    for number in 0..8 {
        // Each is a process of its own, which knows of nothing.
        bench.held = None;
        bench.rotate(&number.to_string());
        // The clock of the file system is coarse, and says which of them is older.
        std::thread::sleep(Duration::from_millis(20));
    }
    let last = fs::read_link(bench.path(DATA)).unwrap();
    bench.held = None;
    bench.rotate("next");
    assert!(fs::exists(bench.path("").join(&last).join("user")).unwrap());
    assert_eq!(bench.generations(), 1 + MOST_RETIRED);
}
