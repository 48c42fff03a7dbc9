//! Who may read or change a file beside its owner: by its mode, or by its access control list (POSIX.1e draft 17, `acl(5)`).
//!
//! Where there is such a list, the group's bits of the mode are its mask: the most that anybody but the owner and the rest of
//! the world may have. A service manager that gives one user a file of root's (systemd's `LoadCredential=` of a unit with `User=`, where
//! the file system has lists) leaves one of mode 0440 so, that no group can read. What it means is decided by the list; one that makes
//! no sense is refused.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Mode, Stat};
use rustix::io::Errno;

/// As the kernel keeps it: version 2, then entries of 8 bytes, all little-endian.
const LIST: &str = "system.posix_acl_access";
const VERSION: u32 = 2;
const ENTRY: usize = 8;
/// More than anybody has use for: then it is refused.
const MOST_ENTRIES: usize = 32;

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

/// Who besides root and `own` may do anything with a file. The text goes after its name.
pub(super) fn strangers(file: impl AsFd, stat: &Stat, own: u32) -> io::Result<Option<String>> {
    let mut bytes = [0; 4 + MOST_ENTRIES * ENTRY];
    match rustix::fs::fgetxattr(file, LIST, &mut bytes) {
        Ok(length) => Ok(by_list(bytes.get(..length).unwrap_or_default(), own)),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(by_mode(stat)),
        Err(Errno::RANGE) => Ok(Some(
            "has an access control list of more than 32 entries".to_owned(),
        )),
        Err(errno) => Err(errno.into()),
    }
}

fn by_mode(stat: &Stat) -> Option<String> {
    let open = stat.st_mode & (Mode::RWXG | Mode::RWXO).as_raw_mode() != 0;
    open.then(|| format!("is open to others (mode {:o})", stat.st_mode & 0o7777))
}

fn by_list(bytes: &[u8], own: u32) -> Option<String> {
    let Some(entries) = entries(bytes) else {
        return Some("has an access control list that makes no sense".to_owned());
    };
    // Who is named has at most what the mask leaves; there is one if anybody is.
    let mask = entries.iter().find(|entry| entry.tag == MASK);
    let most = mask.map_or(0o7, |mask| mask.may);
    entries.iter().find_map(|entry| {
        let Entry { tag, may, id } = *entry;
        let who = match tag {
            USER if id != own && id != 0 => format!("the user {id}"),
            OWNING_GROUP => "its group".to_owned(),
            GROUP => format!("the group {id}"),
            OTHERS if may != 0 => return Some("is open to everybody".to_owned()),
            // Its owner, root and this user; and what the mask says by itself.
            _ => return None,
        };
        (may & most != 0).then(|| format!("is open to {who}, by its access control list"))
    })
}

#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    may: u16,
    id: u32,
}

/// None if that is no list, or one that has something else in it.
fn entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let (version, rest) = bytes.split_first_chunk::<4>()?;
    let (entries, over) = rest.as_chunks::<ENTRY>();
    if u32::from_le_bytes(*version) != VERSION || !over.is_empty() {
        return None;
    }
    let entries = entries.iter().map(|[a, b, c, d, id @ ..]| Entry {
        tag: u16::from_le_bytes([*a, *b]),
        may: u16::from_le_bytes([*c, *d]),
        id: u32::from_le_bytes(*id),
    });
    let entries: Vec<_> = entries.collect();
    let known = [OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHERS];
    let of = |tag: u16| entries.iter().filter(|entry| entry.tag == tag).count();
    let named = of(USER) + of(GROUP) > 0;
    let whole = [OWNER, OWNING_GROUP, OTHERS]
        .into_iter()
        .all(|tag| of(tag) == 1)
        && of(MASK) <= 1
        && (!named || of(MASK) == 1)
        && entries
            .iter()
            .all(|entry| known.contains(&entry.tag) && entry.may <= 0o7);
    whole.then_some(entries)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const OWN: u32 = 4711;
    const NOBODY: u32 = u32::MAX;

    /// As `setfacl` would write it.
    pub(in super::super) fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut list = VERSION.to_le_bytes().to_vec();
        for (tag, may, id) in entries {
            list.extend(tag.to_le_bytes());
            list.extend(may.to_le_bytes());
            list.extend(id.to_le_bytes());
        }
        list
    }

    /// What systemd leaves (`write_credential` in its `src/core/exec-credential.c`): mode 0400, and then one user may read.
    pub(in super::super) fn of_systemd(user: u32) -> Vec<(u16, u16, u32)> {
        vec![
            (OWNER, 4, NOBODY),
            (USER, 4, user),
            (OWNING_GROUP, 0, NOBODY),
            (MASK, 4, NOBODY),
            (OTHERS, 0, NOBODY),
        ]
    }

    pub(in super::super) fn with_group(user: u32, group: u32) -> Vec<(u16, u16, u32)> {
        let mut entries = of_systemd(user);
        entries.insert(3, (GROUP, 4, group));
        entries
    }

    fn said(entries: &[(u16, u16, u32)]) -> String {
        by_list(&list(entries), OWN).unwrap_or_default()
    }

    #[test]
    fn what_a_service_manager_gives_one_user_is_that_users_and_roots() {
        assert_eq!(said(&of_systemd(OWN)), "");
        assert_eq!(said(&of_systemd(0)), "");
        // No more than the mode says.
        let plain = [
            (OWNER, 6, NOBODY),
            (OWNING_GROUP, 0, NOBODY),
            (OTHERS, 0, NOBODY),
        ];
        assert_eq!(said(&plain), "");
    }

    #[test]
    fn attack_whoever_else_may_read_or_write_by_a_list_is_named() {
        let open = |who: &str| format!("is open to {who}, by its access control list");
        assert_eq!(said(&of_systemd(4712)), open("the user 4712"));
        assert_eq!(said(&with_group(OWN, 0)), open("the group 0"));
        assert_eq!(said(&with_group(OWN, OWN)), open("the group 4711"));
        let changed = |at: usize, may: u16| {
            let mut entries = of_systemd(OWN);
            entries[at].1 = may;
            said(&entries)
        };
        assert_eq!(changed(2, 4), open("its group"));
        // The mask takes the right away, and only the mask of those that are not the owner.
        assert_eq!(changed(2, 2), "");
        for may in [4, 2, 1] {
            assert_eq!(changed(4, may), "is open to everybody");
        }
        let plain = [
            (OWNER, 4, NOBODY),
            (OWNING_GROUP, 2, NOBODY),
            (OTHERS, 0, NOBODY),
        ];
        assert_eq!(said(&plain), open("its group"));
    }

    #[test]
    fn attack_a_list_that_makes_no_sense_lets_nobody_in() {
        let good = of_systemd(OWN);
        let senseless = |bytes: &[u8]| {
            let said = by_list(bytes, OWN).unwrap_or_default();
            assert!(said.contains("makes no sense"), "{bytes:?}: {said}");
        };
        let whole = list(&good);
        for length in 0..whole.len() {
            senseless(&whole[..length]);
        }
        senseless(&[&whole[..], &[0]].concat());
        for version in [0, 1, 3] {
            senseless(&[&[version], &whole[1..]].concat());
        }
        // Without a mask, which whoever is named needs; twice the same; rights and kinds that there are not.
        let without = |tag: u16| {
            let left: Vec<_> = good
                .iter()
                .filter(|entry| entry.0 != tag)
                .copied()
                .collect();
            list(&left)
        };
        for tag in [OWNER, OWNING_GROUP, MASK, OTHERS] {
            senseless(&without(tag));
            let twice = good.iter().find(|entry| entry.0 == tag).copied().unwrap();
            senseless(&list(&[&good[..], &[twice]].concat()));
        }
        senseless(&list(&[&good[..], &[(0x40, 4, OWN)]].concat()));
        senseless(&list(&[&good[..], &[(USER, 8, OWN)]].concat()));
    }
}
