//! Moments, which YAML has as values of their own, in the one way in which SOPS writes them.

/// A moment as RFC 3339 has it, the fraction of its second without zeros at the end, if `text` is one to SOPS.
pub(super) fn moment(text: &str) -> Option<String> {
    let year = text
        .get(..4)
        .filter(|year| year.bytes().all(|b| b.is_ascii_digit()))?;
    let rest = text.get(4..)?.strip_prefix('-')?;
    let (month, rest) = digits(rest)?;
    let (day, rest) = digits(rest.strip_prefix('-')?)?;
    if !(1..=12).contains(&month) || day == 0 || day > days(year.parse().ok()?, month) {
        return None;
    }
    let date = format!("{year}-{month:02}-{day:02}");
    if rest.is_empty() {
        return Some(format!("{date}T00:00:00Z"));
    }
    let (separator, rest) = rest.split_at_checked(1)?;
    let (hour, rest) = digits(rest)?;
    let (minute, rest) = digits(rest.strip_prefix(':')?)?;
    let (second, rest) = digits(rest.strip_prefix(':')?)?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (fraction, rest) = fraction(rest)?;
    let zone = match (separator, rest) {
        ("T" | "t", rest) => zone(rest)?,
        (" ", "") => "Z",
        _ => return None,
    };
    Some(format!(
        "{date}T{hour:02}:{minute:02}:{second:02}{fraction}{zone}"
    ))
}

/// One or two.
fn digits(text: &str) -> Option<(u32, &str)> {
    let length = text.bytes().take(2).take_while(u8::is_ascii_digit).count();
    let (digits, rest) = text.split_at_checked(length)?;
    Some((digits.parse().ok()?, rest))
}

fn fraction(text: &str) -> Option<(String, &str)> {
    let Some(after) = text.strip_prefix('.') else {
        return Some((String::new(), text));
    };
    let length = after.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, rest) = after
        .split_at_checked(length)
        .filter(|(digits, _)| (1..=9).contains(&digits.len()))?;
    let digits = digits.trim_end_matches('0');
    let fraction = match digits {
        "" => String::new(),
        _ => format!(".{digits}"),
    };
    Some((fraction, rest))
}

fn zone(text: &str) -> Option<&str> {
    if text == "Z" {
        return Some("Z");
    }
    let hours_minutes = text.strip_prefix(['+', '-'])?;
    let (hours, minutes) = hours_minutes.split_once(':')?;
    let of = |text: &str, most: u32| {
        let number = (text.len() == 2)
            .then(|| text.parse::<u32>().ok())
            .flatten();
        number.filter(|number| *number <= most)
    };
    match (of(hours, 24)?, of(minutes, 60)?) {
        (0, 0) => Some("Z"),
        _ => Some(text),
    }
}

fn days(year: u32, month: u32) -> u32 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}
