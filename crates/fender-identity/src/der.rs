//! DER, as strictly as its definition is: every length in the fewest bytes, nothing behind the end, nothing too deep.
//!
//! It knows no type of what it reads. Whoever parses the same bytes with a more lenient reader asks this one first.
//!
//! X.690: <https://www.itu.int/rec/T-REC-X.690>

use zeroize::Zeroizing;

/// Deeper than any honest request or certificate.
const MAX_DEPTH: usize = 16;

pub(crate) const INTEGER: u8 = 0x02;

pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
/// Explicit, and made of elements.
pub(crate) const CONTEXT_0: u8 = 0xa0;
/// Implicit, of bytes.
pub(crate) const CONTEXT_0_BYTES: u8 = 0x80;
pub(crate) const BMP_STRING: u8 = 0x1e;
pub(crate) const NULL: [u8; 2] = [0x05, 0x00];

/// One element with these parts, one behind the other. What is secret is wiped with it; it is as long as it must be from the
/// beginning, so that growing leaves no copies.
pub(crate) fn write(tag: u8, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = length.to_be_bytes();
    let short = bytes.iter().position(|byte| *byte != 0);
    let digits = short.and_then(|from| bytes.get(from..)).unwrap_or(&[0]);
    let mut element = Zeroizing::new(Vec::with_capacity(length + digits.len() + 2));
    element.push(tag);
    if let [one] = digits
        && *one < 0x80
    {
        element.push(*one);
    } else {
        // Of the eight bytes of a length none is too many for one byte.
        element.push(0x80 | u8::try_from(digits.len()).unwrap_or_default());
        element.extend_from_slice(digits);
    }
    for part in parts {
        element.extend_from_slice(part);
    }
    element
}

/// One element of DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
}

/// The one element that these bytes are, if it is DER to its innermost part.
pub(crate) fn read(bytes: &[u8]) -> Option<Element<'_>> {
    match elements(bytes)?.as_slice() {
        [whole] if is_strict(*whole, 0) => Some(*whole),
        _ => None,
    }
}

impl<'a> Element<'a> {
    const CONSTRUCTED: u8 = 0x20;

    /// What it is made of, if it is made of elements.
    pub(crate) fn parts(&self) -> Option<Vec<Element<'a>>> {
        match self.tag & Self::CONSTRUCTED {
            0 => None,
            _ => elements(self.content),
        }
    }
}

fn is_strict(element: Element<'_>, depth: usize) -> bool {
    if element.tag & Element::CONSTRUCTED == 0 {
        return element.tag != INTEGER || is_shortest(element.content);
    }
    depth < MAX_DEPTH
        && element
            .parts()
            .is_some_and(|parts| parts.into_iter().all(|part| is_strict(part, depth + 1)))
}

/// Whether an integer has no byte more than it needs.
fn is_shortest(integer: &[u8]) -> bool {
    match integer {
        [] => false,
        [0, next, ..] => next & 0x80 != 0,
        [0xff, next, ..] => next & 0x80 == 0,
        [_, ..] => true,
    }
}

/// These bytes as elements one behind the other.
fn elements(mut bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut found = Vec::new();
    while let Some((&tag, rest)) = bytes.split_first() {
        // Tags of more than one byte are in nothing that is read here.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (length, rest) = length(rest)?;
        let (content, rest) = rest.split_at_checked(length)?;
        found.push(Element { tag, content });
        bytes = rest;
    }
    Some(found)
}

/// A length in the fewest bytes; the indefinite one is not DER.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        return Some((usize::from(first), rest));
    }
    let (number, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
    match number {
        [] | [0, ..] => None,
        [one] if *one < 0x80 => None,
        [_] | [_, _] | [_, _, _] => {
            let length = number
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte));
            Some((length, rest))
        }
        [..] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_read_with_its_parts() {
        let whole = read(&[0x30, 0x06, 0x02, 0x01, 0x00, 0x04, 0x01, 0x07]).unwrap();
        let parts = whole.parts().unwrap();
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[0].tag, parts[0].content), (INTEGER, [0].as_slice()));
        assert_eq!(parts[1].parts(), None);
    }

    #[test]
    fn what_is_written_is_read() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; length];
            let written = write(OCTET_STRING, &[&content]);
            let element = read(&written).unwrap();
            assert_eq!((element.tag, element.content), (OCTET_STRING, &*content));
        }
    }

    #[test]
    fn attack_what_is_only_nearly_der_is_not_read() {
        let deep = (0..MAX_DEPTH + 1).fold(vec![0x05, 0x00], |inner, _| {
            [&[0x30, u8::try_from(inner.len()).unwrap()], &inner[..]].concat()
        });
        for (what, bytes) in [
            ("nothing", vec![]),
            ("two elements", vec![0x05, 0x00, 0x05, 0x00]),
            ("no length", vec![0x05]),
            ("less than it says", vec![0x04, 0x02, 0x00]),
            (
                "a length in two bytes for one",
                vec![0x04, 0x81, 0x01, 0x00],
            ),
            (
                "a length with a zero before it",
                vec![0x04, 0x82, 0x00, 0x01, 0x00],
            ),
            ("an indefinite length", vec![0x30, 0x80, 0x00, 0x00]),
            (
                "a length of four bytes",
                vec![0x04, 0x84, 0x7f, 0xff, 0xff, 0xff],
            ),
            ("a long tag", vec![0x1f, 0x81, 0x00, 0x00]),
            ("no integer", vec![0x02, 0x00]),
            ("zero in two bytes", vec![0x02, 0x02, 0x00, 0x00]),
            ("-1 in two bytes", vec![0x02, 0x02, 0xff, 0xff]),
            (
                "an inner one that is wrong",
                vec![0x30, 0x04, 0x30, 0x02, 0x04, 0x01],
            ),
            ("too deep", deep),
        ] {
            assert_eq!(read(&bytes), None, "{what}");
        }
    }
}
