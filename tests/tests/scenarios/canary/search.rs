//! Where a canary could have got to, and how it is looked for.

use std::fs;
use std::path::{Path, PathBuf};

use fender_tests::process::output;

/// What is looked for: as it is, and in whatever case.
#[derive(Default)]
pub(super) struct Needles(Vec<String>);

impl Needles {
    /// A text that is written nowhere.
    pub(super) fn add(&mut self, needle: &str) {
        assert!(needle.len() >= 12, "worth searching for: `{needle}`");
        self.0.push(needle.to_ascii_lowercase());
    }

    /// A value, and what is computed of it.
    pub(super) fn add_value(&mut self, value: &str) {
        for needle in [base64(value), hex(value.as_bytes()), digest(value)] {
            self.add(&needle);
        }
    }

    /// A private key in PEM: each of its lines, all of them as one, and its bytes in hexadecimal.
    pub(super) fn add_key(&mut self, pem: &str, der: &[u8]) {
        let lines = pem.lines().filter(|line| !line.contains("-----"));
        let lines: Vec<_> = lines.map(str::trim).collect();
        // Of the last line little may be left.
        for line in lines.iter().filter(|line| line.len() >= 32) {
            self.add(line);
        }
        self.add(&lines.concat());
        self.add(&hex(der));
        self.add_value(pem);
    }

    /// None of it is in this, which is called so.
    pub(super) fn assert_absent(&self, what: &str, bytes: &[u8]) {
        // What is no text stands aside; all needles are.
        let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
        for needle in &self.0 {
            assert!(!text.contains(needle), "{what} holds `{needle}`");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of the tools that everybody has.
fn tool(program: &str, arguments: &[&str], input: &str) -> String {
    let script = format!("printf %s \"$0\" | {program} {}", arguments.join(" "));
    let (code, out, err) = output("/bin/sh", &["-c", &script, input]);
    assert_eq!(code, 0, "{err}");
    out.split_whitespace().next().unwrap().to_owned()
}

fn base64(value: &str) -> String {
    tool("base64", &["-w0"], value)
}

fn digest(value: &str) -> String {
    tool("sha256sum", &[], value)
}

/// Every regular file below a directory, links not followed.
pub(super) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// A process and all that it started.
pub(super) fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(parent) = all.get(at).copied() {
        for task in fs::read_dir(format!("/proc/{parent}/task")).unwrap() {
            let children = task.unwrap().path().join("children");
            let children = fs::read_to_string(children).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .map(|pid| pid.parse::<u32>().unwrap()),
            );
        }
        at += 1;
    }
    all
}

#[test]
fn what_is_looked_for_is_found_wherever_it_is() {
    let mut needles = Needles::default();
    needles.add("canary-of-this-test");
    needles.add_value("canary-of-this-test");
    let key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEH\n-----END PRIVATE KEY-----\n";
    needles.add_key(key, b"the bytes of a key");
    let holds = |text: &[u8]| {
        let looked = std::panic::AssertUnwindSafe(|| needles.assert_absent("a test", text));
        std::panic::catch_unwind(looked).is_err()
    };
    for text in [
        "a CANARY-of-this-test in a line",
        "Y2FuYXJ5LW9mLXRoaXMtdGVzdA==",
        "63616E6172792d6f662d746869732d74657374",
        "\\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEH\\n",
        "746865206279746573206f662061206b6579",
    ] {
        assert!(holds(text.as_bytes()), "{text}");
        let among = [b"\xff\x00\xfe", text.as_bytes(), b"\xc3"].concat();
        assert!(holds(&among), "{text}");
    }
    assert!(!holds(b"a canary of another test"));
}
