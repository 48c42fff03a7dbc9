//! Notices that the network namespace was abandoned.
//!
//! A container that shares another one's network namespace stays behind in the old one when the
//! other restarts: every interface but loopback is gone, nobody reaches it and nobody tells it.
//! Ending is the cure, because whoever starts it again puts it into the new namespace.
//!
//! A process that never had more than loopback is left alone, and so is a machine that lost its
//! route: its interfaces are still there.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::time::Duration;

const LOOK: Duration = Duration::from_secs(1);
/// An interface may be renamed or moved for a moment.
const LOOKS: u32 = 3;

/// The namespace's table of interfaces, opened before the proxy can open nothing any more.
pub(super) struct Interfaces {
    table: File,
}

impl Interfaces {
    /// None if there is nothing but loopback that could be lost.
    pub(super) fn open() -> Option<Self> {
        let mut interfaces = Self {
            table: File::open("/proc/self/net/dev").ok()?,
        };
        interfaces
            .others()
            .is_ok_and(|others| others > 0)
            .then_some(interfaces)
    }

    /// Ends when they have been gone for a few looks.
    pub(super) async fn abandoned(mut self) {
        let mut absence = Absence::default();
        while !absence.is_certain(&self.others()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn others(&mut self) -> io::Result<usize> {
        let mut text = String::new();
        self.table.rewind()?;
        self.table.read_to_string(&mut text)?;
        Ok(others(&text))
    }
}

/// Returns when nobody can reach this process any more; never if it was on loopback only.
pub(super) async fn network_abandoned(interfaces: Option<Interfaces>) {
    match interfaces {
        Some(interfaces) => interfaces.abandoned().await,
        None => std::future::pending().await,
    }
}

/// How many looks in a row saw nothing but loopback.
#[derive(Default)]
struct Absence(u32);

impl Absence {
    fn is_certain(&mut self, others: &io::Result<usize>) -> bool {
        self.0 = match others {
            Ok(0) => self.0 + 1,
            // What cannot be seen is not known to be lost.
            Ok(_) | Err(_) => 0,
        };
        self.0 >= LOOKS
    }
}

/// Interfaces other than loopback: two lines of titles, then a name and a colon on each line.
fn others(table: &str) -> usize {
    let names = table
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim());
    names.filter(|name| *name != "lo").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: &str =
        "Inter-|   Receive  |  Transmit\n face |bytes    packets|bytes    packets\n";

    #[test]
    fn loopback_is_not_counted() {
        assert_eq!(others(&format!("{TITLES}    lo:    0    0    0    0\n")), 0);
        assert_eq!(
            others(&format!("{TITLES}    lo:    0    0\n  eth0: 1026    11\n")),
            1
        );
        assert_eq!(others(TITLES), 0);
        assert_eq!(others(""), 0);
    }

    #[test]
    fn only_an_absence_that_lasts_is_certain() {
        let mut absence = Absence::default();
        let seen = [
            Ok(1),
            Ok(0),
            Ok(0),
            Ok(1),
            Ok(0),
            Ok(0),
            Err(io::ErrorKind::Other.into()),
        ];
        assert!(seen.iter().all(|others| !absence.is_certain(others)));
        assert!(!absence.is_certain(&Ok(0)));
        assert!(!absence.is_certain(&Ok(0)));
        assert!(absence.is_certain(&Ok(0)));
    }

    #[test]
    fn the_table_is_read_anew_through_the_same_descriptor() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            format!("{TITLES}    lo:    0    0\n  eth0: 1026    11\n"),
        )
        .unwrap();
        let mut interfaces = Interfaces {
            table: File::open(file.path()).unwrap(),
        };
        assert_eq!(interfaces.others().unwrap(), 1);
        std::fs::write(file.path(), format!("{TITLES}    lo:    0    0\n")).unwrap();
        assert_eq!(interfaces.others().unwrap(), 0);
    }
}
