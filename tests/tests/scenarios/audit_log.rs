//! DESIGN §5: whoever owns the database can change the audit log, and cannot do so unseen.

use std::path::Path;
use std::process::Command;

use fender_tests::{Mesh, python};

fn mesh() -> Mesh {
    let mesh = Mesh::start(&Mesh::documents("1h", ""));
    for _ in 0..5 {
        mesh.fender_ok(&["status"]);
    }
    mesh
}

/// Changes the database with another program than Fender, as somebody with a shell would.
fn edit(database: &Path, sql: &str) {
    let code = "import sqlite3, sys\n\
                db = sqlite3.connect(sys.argv[1], timeout=10)\n\
                db.executescript('DROP TRIGGER IF EXISTS audit_is_not_updated; DROP TRIGGER IF EXISTS audit_is_not_deleted;')\n\
                db.executescript(sys.argv[2])\n\
                db.commit()";
    let output = Command::new(python::python())
        .args(["-c", code])
        .arg(database)
        .arg(sql)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn head(told: &str) -> String {
    assert!(told.starts_with("whole"), "{told}");
    told.trim_end().rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn a_database_edited_behind_the_control_planes_back_is_told_from_one_that_was_not() {
    let cases = [
        (
            "UPDATE audit SET detail = 'nothing happened' WHERE sequence = 3",
            "entry 3 is not what was written",
        ),
        (
            "DELETE FROM audit WHERE sequence = 3",
            "entry 3 is missing: entry 4 stands in its place",
        ),
        (
            "UPDATE audit SET sequence = -3 WHERE sequence = 3; \
             UPDATE audit SET sequence = 3 WHERE sequence = 4; \
             UPDATE audit SET sequence = 4 WHERE sequence = -3",
            "entry 3 is not what was written",
        ),
    ];
    for (sql, told) in cases {
        let mesh = mesh();
        let noted = head(&mesh.fender_ok(&["audit-log", "verify"]));
        mesh.fender_ok(&["audit-log", "verify", "--head", &noted]);
        edit(&mesh.path("control/control.db"), sql);
        let export = mesh.path("tampered.jsonl").to_string_lossy().into_owned();
        let exported = mesh.fender(&["audit-log", "export", "--out", &export]);
        let online = mesh.fender(&["audit-log", "verify"]);
        let offline = mesh.fender(&["audit-log", "verify", "--file", &export]);
        for (code, out, err) in [online, exported, offline] {
            assert_eq!((code, out.as_str()), (77, ""), "{sql}: {err}");
            assert!(
                err.starts_with("error[audit-log-broken]: ") && err.contains(told),
                "{sql}: {err}"
            );
        }
    }
}

#[test]
fn a_log_that_was_cut_off_is_whole_only_for_who_noted_no_head() {
    let mesh = mesh();
    let noted = head(&mesh.fender_ok(&["audit-log", "verify"]));
    let entry: u64 = noted.split_once(':').unwrap().0.parse().unwrap();
    edit(
        &mesh.path("control/control.db"),
        &format!("DELETE FROM audit WHERE sequence > {}", entry - 3),
    );
    // Reading it is an entry, which takes the place of one that was cut off.
    head(&mesh.fender_ok(&["audit-log", "verify"]));
    let (code, _, err) = mesh.fender(&["audit-log", "verify", "--head", &noted]);
    assert_eq!(code, 77, "{err}");
    assert!(err.contains("entries are cut off"), "{err}");
    // Once there are as many again, they are others.
    for _ in 0..5 {
        mesh.fender_ok(&["status"]);
    }
    let (code, _, err) = mesh.fender(&["audit-log", "verify", "--head", &noted]);
    assert_eq!(code, 77, "{err}");
    assert!(
        err.contains(&format!("entry {entry} is another than was noted")),
        "{err}"
    );
}

#[test]
fn an_exported_log_is_verified_where_no_control_plane_is() {
    let mut mesh = mesh();
    let export = mesh.path("audit.jsonl");
    let path = export.to_string_lossy().into_owned();
    let noted = head(&mesh.fender_ok(&["audit-log", "export", "--out", &path]));
    let listed = mesh.fender_ok(&["audit-log", "list", "--last", "2"]);
    assert_eq!(listed.matches(" audit-log done").count(), 2, "{listed}");
    assert!(listed.contains("/fender/admin/first"), "{listed}");

    let (code, _, err) = mesh.fender(&["audit-log", "export", "--out", &path]);
    assert_eq!(code, 69, "it is not overwritten: {err}");
    mesh.stop_control();
    let verify = ["audit-log", "verify", "--file", &path, "--head", &noted];
    assert_eq!(head(&mesh.fender_ok(&verify)), noted);

    let text = std::fs::read_to_string(&export).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let tampered = |lines: &[&str]| {
        std::fs::write(&export, lines.join("\n") + "\n").unwrap();
        let (code, _, err) = mesh.fender(&verify);
        (code, err)
    };
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    let (code, err) = tampered(&swapped);
    assert!(
        code == 77 && err.contains("entry 3 is missing: entry 4"),
        "{err}"
    );
    let (code, err) = tampered(&lines[..lines.len() - 2]);
    assert!(code == 77 && err.contains("entries are cut off"), "{err}");
    let changed = lines[4].replace("\"done\"", "\"refused\"");
    let mut edited = lines.clone();
    edited[4] = &changed;
    let (code, err) = tampered(&edited);
    assert!(code == 77 && err.contains("entry 5 is not what"), "{err}");
    let (code, err) = tampered(&["{}"]);
    assert!(code == 64 && err.contains("line 1"), "{err}");
}
