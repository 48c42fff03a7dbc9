//! Lets in clients that name the socket where a host belongs.
//!
//! gRPC's C library, and with it Python, C++, Ruby and PHP, sends the percent-encoded path of a Unix socket as
//! `:authority`, and the HTTP/2 implementation below us ends a request whose authority is not a host. Nobody here looks
//! at an authority: a local socket has one server. So what is no letter, digit, dot or hyphen in it becomes a hyphen,
//! on the way in. No byte is added or removed, which keeps HPACK's tables of both sides equal, and nothing else is
//! touched.
//!
//! It follows frames ([RFC 9113](https://www.rfc-editor.org/rfc/rfc9113)) and header fields
//! ([RFC 7541](https://www.rfc-editor.org/rfc/rfc7541)) only as far as it must to know where a value begins. What is
//! malformed it leaves to whoever reads next, who refuses it. A value in Huffman's code is left as it is: who sends those
//! sends a host.

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
const NAME: &[u8] = b":authority";
/// The field's place in HPACK's static table.
const INDEX: usize = 1;

/// The bytes of one connection, as they come.
#[derive(Debug)]
pub(crate) struct Authority {
    frame: Frame,
    fields: Fields,
}

/// Where in the frames the next byte lies.
#[derive(Debug)]
enum Frame {
    Preface {
        left: usize,
    },
    Header {
        read: usize,
        bytes: [u8; FRAME_HEADER],
    },
    /// The length of the padding of header fields.
    Padding {
        left: usize,
        priority: usize,
    },
    /// Before the header fields.
    Before {
        left: usize,
        block: usize,
        after: usize,
    },
    Block {
        left: usize,
        after: usize,
    },
    /// Nothing that matters.
    Other {
        left: usize,
    },
}

/// Where in a block of header fields the next byte lies.
#[derive(Debug)]
enum Fields {
    Start,
    /// A number that did not fit into its first byte.
    Number {
        value: usize,
        shift: u32,
        then: Then,
    },
    Length(Text),
    Text {
        left: usize,
        text: Text,
        plain: Coding,
    },
    /// No sense can be made of it; the next block begins anew.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Plain,
    Huffman,
}

/// What a number is.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// The end of a field, or of a change of the table.
    Done,
    /// The index of a name whose value follows.
    Value,
    /// The length of a text.
    Text(Text, Coding),
}

#[derive(Clone, Copy, Debug)]
enum Text {
    /// Of a name: as far as it was ours up to here.
    Name {
        matched: Option<usize>,
    },
    Value(Whose),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Authority,
    Another,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self {
            frame: Frame::Preface { left: PREFACE },
            fields: Fields::Start,
        }
    }

    /// Passes on what a client sent.
    pub(crate) fn pass(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.step(byte);
        }
    }

    fn step(&mut self, byte: &mut u8) {
        self.frame = match std::mem::replace(&mut self.frame, Frame::Other { left: 0 }) {
            Frame::Preface { left } if left > 1 => Frame::Preface { left: left - 1 },
            Frame::Preface { .. } => begin(),
            Frame::Header { read, mut bytes } => {
                if let Some(place) = bytes.get_mut(read) {
                    *place = *byte;
                }
                match read + 1 {
                    FRAME_HEADER => self.frame_of(bytes),
                    read => Frame::Header { read, bytes },
                }
            }
            Frame::Padding { left, priority } => {
                let after = usize::from(*byte);
                before(left, priority, after)
            }
            Frame::Before { left, block, after } if left > 1 => Frame::Before {
                left: left - 1,
                block,
                after,
            },
            Frame::Before { block, after, .. } => in_block(block, after),
            Frame::Block { left, after } => {
                self.fields = std::mem::replace(&mut self.fields, Fields::Lost).step(byte);
                in_block(left - 1, after)
            }
            Frame::Other { left } => other(left.saturating_sub(1)),
        };
    }

    fn frame_of(&mut self, header: [u8; FRAME_HEADER]) -> Frame {
        let [high, middle, low, kind, flags, ..] = header;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        match kind {
            HEADERS => {
                self.fields = Fields::Start;
                let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
                match (length, flags & PADDED) {
                    (0, _) => begin(),
                    (_, 0) => before(length, priority, 0),
                    (1, _) => Frame::Other { left: 1 },
                    (length, _) => Frame::Padding {
                        left: length - 1,
                        priority,
                    },
                }
            }
            CONTINUATION => in_block(length, 0),
            _ => other(length),
        }
    }
}

fn begin() -> Frame {
    Frame::Header {
        read: 0,
        bytes: [0; FRAME_HEADER],
    }
}

fn other(left: usize) -> Frame {
    match left {
        0 => begin(),
        left => Frame::Other { left },
    }
}

/// Of `left` bytes, those of the priority come first and the padding last; if they do not fit, it is malformed.
fn before(left: usize, priority: usize, after: usize) -> Frame {
    match left.checked_sub(priority + after) {
        None => other(left),
        Some(block) if priority > 0 => Frame::Before {
            left: priority,
            block,
            after,
        },
        Some(block) => in_block(block, after),
    }
}

fn in_block(left: usize, after: usize) -> Frame {
    match left {
        0 => other(after),
        left => Frame::Block { left, after },
    }
}

impl Fields {
    fn step(self, byte: &mut u8) -> Self {
        match self {
            Self::Start => match byte.leading_zeros() {
                // Indexed.
                0 => number(*byte, 7, Then::Done),
                // Literal, to be indexed.
                1 => number(*byte, 6, Then::Value),
                // The table's size.
                2 => number(*byte, 5, Then::Done),
                // Literal, not to be indexed.
                _ => number(*byte, 4, Then::Value),
            },
            Self::Number { value, shift, then } => {
                let more = usize::from(*byte & 0x7f).checked_shl(shift);
                match more.and_then(|more| value.checked_add(more)) {
                    Some(value) if *byte & 0x80 == 0 => begun(value, then),
                    Some(value) if shift < 28 => Self::Number {
                        value,
                        shift: shift + 7,
                        then,
                    },
                    Some(_) | None => Self::Lost,
                }
            }
            Self::Length(text) => {
                let coding = if *byte & 0x80 == 0 {
                    Coding::Plain
                } else {
                    Coding::Huffman
                };
                number(*byte, 7, Then::Text(text, coding))
            }
            Self::Text { left, text, plain } => {
                let text = text.step(byte, plain);
                match left - 1 {
                    0 => text.end(),
                    left => Self::Text { left, text, plain },
                }
            }
            Self::Lost => Self::Lost,
        }
    }
}

/// A number in the low bits of a byte, unless it goes on in the next.
fn number(byte: u8, bits: u32, then: Then) -> Fields {
    let most = (1_usize << bits) - 1;
    match usize::from(byte) & most {
        value if value == most => Fields::Number {
            value,
            shift: 0,
            then,
        },
        value => begun(value, then),
    }
}

/// What a number begins.
fn begun(number: usize, then: Then) -> Fields {
    match (then, number) {
        (Then::Done, _) => Fields::Start,
        (Then::Value, 0) => Fields::Length(Text::Name { matched: Some(0) }),
        (Then::Value, INDEX) => Fields::Length(Text::Value(Whose::Authority)),
        (Then::Value, _) => Fields::Length(Text::Value(Whose::Another)),
        (Then::Text(text, _), 0) => text.end(),
        (Then::Text(text, plain), left) => Fields::Text { left, text, plain },
    }
}

impl Text {
    fn step(self, byte: &mut u8, coding: Coding) -> Self {
        match self {
            Self::Name { matched } => Self::Name {
                matched: matched
                    .filter(|&matched| coding == Coding::Plain && NAME.get(matched) == Some(byte))
                    .map(|matched| matched + 1),
            },
            Self::Value(Whose::Authority) if coding == Coding::Plain => {
                if !byte.is_ascii_alphanumeric() && !matches!(byte, b'.' | b'-') {
                    *byte = b'-';
                }
                self
            }
            Self::Value(_) => self,
        }
    }

    fn end(self) -> Fields {
        match self {
            Self::Name { matched } if matched == Some(NAME.len()) => {
                Fields::Length(Self::Value(Whose::Authority))
            }
            Self::Name { .. } => Fields::Length(Self::Value(Whose::Another)),
            Self::Value(_) => Fields::Start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        let length = text.len();
        let mut bytes = Vec::new();
        if length < 127 {
            bytes.push(u8::try_from(length).unwrap());
        } else {
            bytes.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).unwrap() | 0x80);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap());
        }
        bytes.extend(text.as_bytes());
        bytes
    }

    /// In every way of cutting it in two, and byte by byte.
    fn passed(bytes: &[u8]) -> Vec<u8> {
        let whole = {
            let mut bytes = bytes.to_vec();
            Authority::new().pass(&mut bytes);
            bytes
        };
        for cut in 0..bytes.len() {
            let mut bytes = bytes.to_vec();
            let mut authority = Authority::new();
            let (head, tail) = bytes.split_at_mut(cut);
            authority.pass(head);
            authority.pass(tail);
            assert_eq!(bytes, whole);
        }
        whole
    }

    /// POST, the path, an authority and one more field, as a client of gRPC's C library writes them.
    fn block(authority: &str) -> Vec<u8> {
        [
            vec![0x83, 0x44],
            text("/SpiffeWorkloadAPI/FetchX509SVID"),
            vec![0x40],
            text(":authority"),
            text(authority),
            vec![0x40],
            text("workload.spiffe.io"),
            text("100%"),
        ]
        .concat()
    }

    #[test]
    fn a_path_in_the_place_of_a_host_becomes_a_host_of_the_same_length() {
        let long = format!("{}%2Fapi.sock", "a".repeat(300));
        let tame_long = long.replace('%', "-");
        for (sent, tame) in [
            ("tmp%2Fapi.sock", "tmp-2Fapi.sock"),
            ("/tmp/api.sock", "-tmp-api.sock"),
            ("localhost", "localhost"),
            ("", ""),
            (&long, &tame_long),
        ] {
            let before = [PREFACE, &frame(4, 0, &[]), &frame(1, 4, &block(sent))].concat();
            let after = [PREFACE, &frame(4, 0, &[]), &frame(1, 4, &block(tame))].concat();
            assert_eq!(passed(&before), after);
        }
    }

    #[test]
    fn a_name_from_the_static_table_is_the_same_name() {
        for first in [0x41, 0x01, 0x11] {
            let field = |value: &str| [vec![first], text(value)].concat();
            let before = [PREFACE, &frame(1, 4, &field("a%2Fb"))].concat();
            let after = [PREFACE, &frame(1, 4, &field("a-2Fb"))].concat();
            assert_eq!(passed(&before), after);
        }
    }

    #[test]
    fn padding_priority_and_continuation_are_followed() {
        let (sent, tame) = (block("x%2Fy"), block("x-2Fy"));
        let shape = |block: &[u8]| {
            let first = [&[3, 0, 0, 0, 0, 16], &block[..20], b"%%%"].concat();
            [
                PREFACE.to_vec(),
                frame(0, 0, b"%2F not ours"),
                frame(1, PADDED | PRIORITY, &first),
                frame(9, 0, &block[20..45]),
                frame(9, 4, &block[45..]),
                frame(1, 4, block),
            ]
            .concat()
        };
        assert_eq!(passed(&shape(&sent)), shape(&tame));
    }

    #[test]
    fn nothing_else_is_touched() {
        let fields = [
            vec![0x3f, 0xe1, 0x1f, 0xbf, 0x82, 0x44],
            text("/a%2Fb"),
            vec![0x00],
            text(":authoritz"),
            text("a%2Fb"),
            vec![0x00],
            text(":authority2"),
            text("a%2Fb"),
            // Huffman's code, of whatever.
            vec![0x41, 0x82, b'%', b'/'],
            vec![0x0f, 0x2b],
            text("%"),
        ]
        .concat();
        let bytes = [PREFACE, &frame(1, 4, &fields), &frame(0, 1, b"%2F%2F")].concat();
        assert_eq!(passed(&bytes), bytes);
    }

    #[test]
    fn attack_malformed_fields_are_passed_on_as_they_are() {
        for payload in [
            &[0x40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, b'%'][..],
            &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, b'%'],
            &[0x41, 0x40],
            &[0xff],
        ] {
            let flags = [4, 4 | PADDED, 4 | PRIORITY, 4 | PADDED | PRIORITY];
            for flags in flags {
                let bytes = [PREFACE, &frame(1, flags, payload), &frame(1, flags, &[])].concat();
                let length = bytes.len();
                assert_eq!(passed(&bytes).len(), length);
            }
        }
    }
}
