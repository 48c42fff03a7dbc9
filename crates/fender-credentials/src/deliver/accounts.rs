//! Users and groups by name or number, from `/etc/passwd` and `/etc/group` alone.
//!
//! The C library would load the host's name-service plug-ins into a static binary; a name that only
//! a directory server knows is written as its number.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Gid, Uid};

/// The most of such a file that is read.
const LIMIT: u64 = 4 * 1024 * 1024;

/// `what` the document needs it as.
pub(crate) fn user(name: &str, what: &str) -> Result<Uid, String> {
    number(name, what, Path::new("/etc/passwd")).map(Uid::from_raw)
}

pub(super) fn group(name: &str) -> Result<Gid, String> {
    number(name, "group", Path::new("/etc/group")).map(Gid::from_raw)
}

fn number(name: &str, what: &str, accounts: &Path) -> Result<u32, String> {
    if let Ok(number) = name.parse::<u32>() {
        // The highest number means "leave it as it is" to the kernel.
        return if number == u32::MAX {
            Err(unknown(name, what, accounts))
        } else {
            Ok(number)
        };
    }
    let mut text = String::new();
    File::open(accounts)
        .and_then(|file| file.take(LIMIT).read_to_string(&mut text))
        .map_err(|error| {
            format!(
                "needs {what} `{name}`, but `{}`: {error}",
                accounts.display()
            )
        })?;
    find(&text, name).ok_or_else(|| unknown(name, what, accounts))
}

fn unknown(name: &str, what: &str, accounts: &Path) -> String {
    format!(
        "needs {what} `{name}`, which is not in `{}`; write its number",
        accounts.display()
    )
}

/// Both files begin `name:password:number`.
fn find(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(name);
        let number = fields.nth(1)?.parse().ok()?;
        found.then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n+@nis\nbroken:x:many:1\napp:x:1000:1001::/:\n";

    #[test]
    fn names_and_numbers_are_resolved_without_the_c_library() {
        assert_eq!(find(PASSWD, "app"), Some(1000));
        assert_eq!(find(PASSWD, "root"), Some(0));
        assert_eq!(user("root", "owner"), Ok(Uid::ROOT));
        assert_eq!(user("4321", "owner").map(Uid::as_raw), Ok(4321));
        assert_eq!(group("0"), Ok(Gid::ROOT));
    }

    #[test]
    fn an_unknown_name_says_where_it_was_looked_for() {
        assert_eq!(find(PASSWD, "broken"), None);
        assert_eq!(find(PASSWD, "x"), None);
        let error = user("no-such-user", "owner").unwrap_err();
        assert!(
            error.contains("`no-such-user`") && error.contains("/etc/passwd"),
            "{error}"
        );
    }

    #[test]
    fn the_number_that_means_unchanged_is_no_owner() {
        assert!(user("4294967295", "owner").is_err());
    }
}
