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
