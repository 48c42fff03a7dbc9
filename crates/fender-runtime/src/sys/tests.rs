use super::*;

/// The mappings between two addresses: permissions, and how much of each is in memory, in KiB.
fn mappings(start: usize, end: usize) -> Vec<(String, usize)> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = Vec::new();
    let mut within = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap(), words.next().unwrap_or_default());
        if let Some((from, to)) = first.split_once('-') {
            let address = |text| usize::from_str_radix(text, 16).unwrap();
            within = address(from) < end && start < address(to);
            if within {
                found.push((second.to_owned(), 0));
            }
        } else if within && first == "Rss:" {
            found.last_mut().unwrap().1 = second.parse().unwrap();
        }
    }
    found
}

#[test]
fn code_that_is_given_back_is_out_of_memory_until_it_is_needed() {
    let (start, end) = code();
    let resident = || -> usize {
        let mappings = mappings(start.addr(), end.addr());
        mappings.iter().map(|(_, resident)| resident).sum()
    };
    // A constant of some pages, all of them looked at.
    static LARGE: [u8; 1 << 20] = [1; 1 << 20];
    let sum = || -> u64 {
        LARGE
            .iter()
            .map(|byte| u64::from(*std::hint::black_box(byte)))
            .sum()
    };
    assert_eq!(sum(), 1 << 20);
    let before = resident();
    assert!(before > 1024, "{before} KiB");
    release_code().unwrap();
    let after = resident();
    assert!(
        after + 1024 <= before,
        "{before} KiB before, {after} KiB after"
    );
    assert_eq!(sum(), 1 << 20);
}

#[test]
fn what_is_given_back_can_be_written_by_nobody() {
    let (start, end) = code();
    let mappings = mappings(start.addr(), end.addr());
    assert!(!mappings.is_empty());
    for (permissions, _) in mappings {
        assert!(permissions.starts_with("r-"), "{permissions}");
        assert!(permissions.ends_with('p'), "{permissions}");
    }
}

#[test]
fn what_waits_at_the_other_end_of_a_socket_is_known_until_it_is_read() {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    assert_eq!(unread(ours.as_fd()).unwrap(), 0);
    ours.write_all(b"ahoy").unwrap();
    assert!(unread(ours.as_fd()).unwrap() >= 4);
    let mut half = [0; 2];
    theirs.read_exact(&mut half).unwrap();
    assert!(unread(ours.as_fd()).unwrap() > 0);
    theirs.read_exact(&mut half).unwrap();
    assert_eq!(unread(ours.as_fd()).unwrap(), 0);
    ours.write_all(b"ahoy").unwrap();
    drop(theirs);
    assert_eq!(unread(ours.as_fd()).unwrap(), 0);
    assert!(unread(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
}
