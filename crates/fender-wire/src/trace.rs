//! W3C Trace Context, level 1 (<https://www.w3.org/TR/trace-context-1/>): what is a `traceparent`, and what a `tracestate`.
//!
//! Strict where the recommendation is: what is not exactly a `traceparent` is none, and two of them are none either. Of a
//! later version only what the recommendation says may be understood is understood. What is written is of version 0. No id is
//! made here: whoever takes part in a trace brings the random bytes.

use std::fmt;

/// Names the trace. Never all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Names one span of it. Never all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

/// Which trace a request belongs to, and which span called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: TraceId,
    pub span: SpanId,
    /// Whether the caller may have recorded its span.
    pub sampled: Sampled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampled {
    Yes,
    No,
}

/// As fields of requests are called.
pub const PARENT: &str = "traceparent";
pub const STATE: &str = "tracestate";

/// `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;
const MOST_MEMBERS: usize = 32;

impl TraceId {
    fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// One of random bytes. All zeros, which no generator brings and no trace may be called, count as one.
    #[must_use]
    pub fn of_random(bytes: [u8; 16]) -> Self {
        Self::new(bytes).unwrap_or(Self(1_u128.to_be_bytes()))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl SpanId {
    fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// One of random bytes; all zeros count as one.
    #[must_use]
    pub fn of_random(bytes: [u8; 8]) -> Self {
        Self::new(bytes).unwrap_or(Self(1_u64.to_be_bytes()))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl TraceParent {
    /// Of all values of the `traceparent` field: there must be exactly one.
    pub fn read<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value),
            (None, _) | (Some(_), Some(_)) => None,
        }
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(LENGTH)?;
        let mut parts = known.split(|byte| *byte == b'-');
        let version = octets::<1>(parts.next()?)?;
        let trace = octets::<16>(parts.next()?)?;
        let span = octets::<8>(parts.next()?)?;
        // Of the flags there is one; the others are for later versions to say.
        let [flags] = octets::<1>(parts.next()?)?;
        match (version, rest) {
            // Never a version; and this version ends here.
            ([0xff], _) | ([0], [_, ..]) => return None,
            // A later one may go on, as another part.
            (_, [] | [b'-', ..]) => {}
            (_, [_, ..]) => return None,
        }
        Some(Self {
            trace: TraceId::new(trace)?,
            span: SpanId::new(span)?,
            sampled: match flags & 1 {
                0 => Sampled::No,
                _ => Sampled::Yes,
            },
        })
    }

    /// As a value of the field, of version 0.
    #[must_use]
    pub fn to_value(&self) -> String {
        let flags = match self.sampled {
            Sampled::Yes => "01",
            Sampled::No => "00",
        };
        format!("00-{}-{}-{flags}", self.trace, self.span)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Exactly `N` octets in lower-case hexadecimal.
fn octets<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut octets = [0; N];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (octet, [high, low]) in octets.iter_mut().zip(pairs) {
        *octet = digit(*high)? << 4 | digit(*low)?;
    }
    Some(octets)
}

/// Whether all values of the `tracestate` field together are one.
pub fn is_state<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut members = 0;
    for value in values {
        let Ok(value) = std::str::from_utf8(value) else {
            return false;
        };
        for member in value.split(',') {
            let member = member.trim_matches([' ', '\t']);
            // An empty one is allowed, and says nothing.
            if member.is_empty() {
                continue;
            }
            members += 1;
            if members > MOST_MEMBERS || !is_member(member) {
                return false;
            }
        }
    }
    true
}

fn is_member(member: &str) -> bool {
    member
        .split_once('=')
        .is_some_and(|(key, value)| is_key(key) && is_value(value))
}

fn is_key(key: &str) -> bool {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
    let is_name = |name: &str, first: fn(&u8) -> bool, most: usize| {
        name.len() <= most && name.as_bytes().first().is_some_and(first) && name.bytes().all(plain)
    };
    match key.split_once('@') {
        None => is_name(key, u8::is_ascii_lowercase, 256),
        Some((tenant, system)) => {
            let first = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            is_name(tenant, first, 241) && is_name(system, u8::is_ascii_lowercase, 14)
        }
    }
}

fn is_value(value: &str) -> bool {
    let printable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(printable) && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const READ: &str = "4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7";

    fn read(values: &[&str]) -> Option<String> {
        let read = TraceParent::read(values.iter().map(|value| value.as_bytes()))?;
        Some(format!("{} {}", read.trace, read.span))
    }

    fn is_state_of(values: &[&str]) -> bool {
        is_state(values.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn a_parent_is_read_whatever_its_flags_are() {
        for flags in ["00", "01", "02", "fe", "ff"] {
            let value = format!("{}{flags}", &GOOD[..53]);
            assert_eq!(read(&[&value]).as_deref(), Some(READ), "{value}");
        }
    }

    #[test]
    fn the_last_flag_alone_says_whether_it_is_sampled() {
        for (flags, sampled) in [
            ("00", Sampled::No),
            ("01", Sampled::Yes),
            ("02", Sampled::No),
            ("ff", Sampled::Yes),
        ] {
            let value = format!("{}{flags}", &GOOD[..53]);
            let parent = TraceParent::read([value.as_bytes()]).unwrap();
            assert_eq!(parent.sampled, sampled, "{value}");
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_says_nothing_it_does_not_know() {
        let later = format!("cc{}ff-what.ever", &GOOD[2..53]);
        let parent = TraceParent::read([later.as_bytes()]).unwrap();
        assert_eq!(parent.to_value(), GOOD);
        let unsampled = TraceParent {
            sampled: Sampled::No,
            ..parent
        };
        assert_eq!(
            TraceParent::read([unsampled.to_value().as_bytes()]),
            Some(unsampled)
        );
        let zeros = TraceParent {
            trace: TraceId::of_random([0; 16]),
            span: SpanId::of_random([0; 8]),
            ..parent
        };
        assert_eq!(
            TraceParent::read([zeros.to_value().as_bytes()]),
            Some(zeros)
        );
    }

    #[test]
    fn a_later_version_is_understood_as_far_as_this_one_goes() {
        for later in ["01", "cc", "fe"] {
            let value = format!("{later}{}", &GOOD[2..]);
            for value in [
                value.clone(),
                format!("{value}-"),
                format!("{value}-what=ever.09"),
            ] {
                assert_eq!(read(&[&value]).as_deref(), Some(READ), "{value}");
            }
            assert_eq!(read(&[&format!("{value}.what")]), None);
        }
    }

    #[test]
    fn what_is_not_exactly_a_parent_is_none() {
        let bad = [
            String::new(),
            "00".to_owned(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-"),
            format!("{GOOD}0"),
            format!(" {GOOD}"),
            format!("ff{}", &GOOD[2..]),
            format!("FE{}", &GOOD[2..]),
            format!(".0{}", &GOOD[2..]),
            GOOD.to_uppercase(),
            GOOD.replace('-', "_"),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace("4bf92f35", "4bf92f3-"),
            GOOD.replace("4bf92f35", "4bf92f3G"),
            GOOD.replace("4bf92f35", "4bf92f3é")
                .chars()
                .take(54)
                .collect(),
            GOOD.replace("-01", "-.1"),
            format!("0-{}00", &GOOD[3..]),
        ];
        for value in bad {
            assert_eq!(read(&[&value]), None, "{value}");
        }
    }

    #[test]
    fn two_parents_are_none_and_so_is_nothing() {
        assert_eq!(read(&[GOOD, GOOD]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_state_may_have_blanks_and_gaps_and_be_in_several_fields() {
        for values in [
            &["foo=1"][..],
            &["foo=1 \t , \t bar=2"],
            &["foo=1", "", "bar=2,,"],
            &["a@b=x", "0tenant/_-*@sys-1=y z"],
            &["foo= lead"],
            &["foo=!\"#$%&'()*+-./:;<>?@[]^_`{|}~"],
            &["", " , ,\t"],
        ] {
            assert!(is_state_of(values), "{values:?}");
        }
    }

    #[test]
    fn one_bad_member_spoils_the_state() {
        let (long_key, long_value) = ("k".repeat(257), "v".repeat(257));
        for bad in [
            "foo",
            "=1",
            "foo=",
            "foo=1=2",
            "foo=1;bar=2,x",
            "Foo=1",
            "0foo=1",
            "foo =1",
            "foo@=1",
            "@foo=1",
            "foo@Bar=1",
            "foo@0bar=1",
            "foo@bar@baz=1",
            "foo@system-id-longer=1",
            "foo.bar=1",
            "foo=\u{e9}",
            "foo=a\tb",
            &format!("{long_key}=1"),
            &format!("{}@v=1", "t".repeat(242)),
            &format!("foo={long_value}"),
        ] {
            assert!(!is_state_of(&["good=1", bad]), "{bad}");
        }
        assert!(!is_state([b"foo=\xff".as_slice()]));
    }

    #[test]
    fn members_are_counted_across_fields() {
        let members = |from: usize, until: usize| {
            let each: Vec<_> = (from..until).map(|number| format!("k{number}=1")).collect();
            each.join(",")
        };
        assert!(is_state_of(&[&members(0, 16), &members(16, 32)]));
        assert!(!is_state_of(&[&members(0, 16), &members(16, 33)]));
    }
}
