//! Through whose hands a request came: `X-Forwarded-For` and its kin, and `Forwarded` of RFC 7239 (H1).
//!
//! Whoever passes a request on adds the address it came from to the end of a list. So only the end of the list can
//! be believed, as far back as there are senders who are known to add to it ([`chain`]). What is before that anybody
//! may have written: it is not read, and never passed on. An entry that counts and is no address refuses the request,
//! because policies would judge nobody, or somebody else.
//!
//! Of RFC 7239's field we only write: a list that is read in two places can say two things.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;

use crate::grammar;

/// The addresses, in lists.
pub const FOR: &str = "x-forwarded-for";
/// The scheme by which the first of them asked.
pub const PROTO: &str = "x-forwarded-proto";
/// Both, by RFC 7239.
pub const FORWARDED: &str = "forwarded";

/// A believed sender said what cannot be read in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardedError {
    #[error("an entry of `X-Forwarded-For` that counts is no address")]
    BreaksAddress,
    #[error("`X-Forwarded-Proto` is neither `http` nor `https`, or is more than one")]
    BreaksProto,
}

/// Reads all values of `X-Forwarded-For`: the last `hops` addresses, the earliest first; fewer where there are fewer.
pub fn chain<'a>(
    values: impl IntoIterator<Item = &'a [u8]>,
    hops: NonZeroU8,
) -> Result<Vec<IpAddr>, ForwardedError> {
    let hops = usize::from(hops.get());
    let mut last = VecDeque::with_capacity(hops);
    for entry in values.into_iter().flat_map(grammar::list) {
        if last.len() == hops {
            last.pop_front();
        }
        last.push_back(entry);
    }
    last.into_iter().map(address).collect()
}

/// `192.0.2.1`, `[2001:db8::1]`, either with a port, or `2001:db8::1`: some senders add the port.
fn address(entry: &[u8]) -> Result<IpAddr, ForwardedError> {
    let text = std::str::from_utf8(entry).map_err(|_| ForwardedError::BreaksAddress)?;
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = match bare {
        Some(bare) => bare.parse().map(IpAddr::V6).ok(),
        None => {
            let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
            text.parse().ok().or_else(with_port)
        }
    };
    let address = address.ok_or(ForwardedError::BreaksAddress)?;
    Ok(address.to_canonical())
}

/// By what a request was asked for in the first place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Reads all values of `X-Forwarded-Proto`: one scheme, or nothing.
pub fn scheme<'a>(
    values: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<Scheme>, ForwardedError> {
    let mut values = values.into_iter();
    let (Some(value), second) = (values.next(), values.next()) else {
        return Ok(None);
    };
    let value = grammar::trim(value);
    match second {
        None if value.eq_ignore_ascii_case(b"http") => Ok(Some(Scheme::Http)),
        None if value.eq_ignore_ascii_case(b"https") => Ok(Some(Scheme::Https)),
        None | Some(_) => Err(ForwardedError::BreaksProto),
    }
}

/// A value of `X-Forwarded-For`; none for nobody.
#[must_use]
pub fn list(chain: &[IpAddr]) -> Option<String> {
    let mut addresses = chain.iter();
    let mut list = addresses.next()?.to_string();
    for address in addresses {
        let _ = write!(list, ", {address}");
    }
    Some(list)
}

/// A value of `Forwarded`: an element for each address, with the scheme of the first request and that of the last hop.
/// Who is nobody is `unknown` (RFC 7239 §6.2).
#[must_use]
pub fn elements(chain: &[IpAddr], first: Scheme, last: Scheme) -> String {
    let Some(end) = chain.len().checked_sub(1) else {
        return format!("for=unknown;proto={}", first.as_str());
    };
    let mut value = String::new();
    for (at, address) in chain.iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        // An address with colons is written in quotes (§6.3).
        let _ = match address {
            IpAddr::V4(address) => write!(value, "{comma}for={address}"),
            IpAddr::V6(address) => write!(value, "{comma}for=\"[{address}]\""),
        };
        let scheme = match at {
            0 => first,
            at if at == end => last,
            _ => continue,
        };
        let _ = write!(value, ";proto={}", scheme.as_str());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str], hops: u8) -> Result<Vec<String>, ForwardedError> {
        let values = values.iter().map(|value| value.as_bytes());
        let chain = chain(values, hops.try_into().unwrap())?;
        Ok(chain.iter().map(ToString::to_string).collect())
    }

    /// The attack: whatever a client writes is at the beginning.
    #[test]
    fn only_the_end_of_the_list_counts_and_the_rest_is_not_even_read() {
        let forged = "127.0.0.1, garbage;;\u{1f4a5}, 10.0.0.1";
        for hops in 1..=2 {
            let list = format!("{forged}, 192.0.2.1, 192.0.2.2");
            let all = ["192.0.2.1".to_owned(), "192.0.2.2".to_owned()];
            let last = &all[usize::from(2 - hops)..];
            assert_eq!(read(&[&list], hops).unwrap(), last);
            // The same in several fields.
            let cut = [forged, "192.0.2.1", "192.0.2.2"];
            assert_eq!(read(&cut, hops).unwrap(), last);
        }
        assert!(read(&[], 3).unwrap().is_empty());
        assert_eq!(read(&["192.0.2.1"], 3).unwrap(), ["192.0.2.1"]);
        let many = "192.0.2.1,".repeat(100);
        assert_eq!(read(&[&many], 16).unwrap().len(), 16);
    }

    #[test]
    fn an_entry_that_counts_is_an_address_in_one_spelling() {
        for (written, address) in [
            ("192.0.2.1", "192.0.2.1"),
            (" 192.0.2.1\t,, ", "192.0.2.1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("2001:DB8::1", "2001:db8::1"),
            ("[2001:db8:0::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(read(&[written], 1).unwrap(), [address], "{written}");
        }
        for wrong in [
            "unknown",
            "_hidden",
            "192.0.2.01",
            "0x7f.1",
            "192.0.2",
            "192.0.2.1:",
            "[192.0.2.1]",
            "fe80::1%eth0",
            "\"192.0.2.1\"",
            "for=192.0.2.1",
            "192.0.2.1 192.0.2.2",
            "192.0.2.1;x",
            "[::1",
            "::1]",
            "localhost",
            "\u{e9}",
        ] {
            assert_eq!(
                read(&[wrong], 1),
                Err(ForwardedError::BreaksAddress),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_scheme_is_said_once() {
        let read = |values: &[&str]| scheme(values.iter().map(|value| value.as_bytes()));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["https"]), Ok(Some(Scheme::Https)));
        assert_eq!(read(&[" HTTP "]), Ok(Some(Scheme::Http)));
        for wrong in [
            &["https, http"][..],
            &["https", "https"],
            &[""],
            &["ftp"],
            &["https;"],
        ] {
            assert_eq!(read(wrong), Err(ForwardedError::BreaksProto), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_written_is_what_others_read() {
        let chain: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1", "10.0.0.1"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let written = list(&chain).unwrap();
        assert_eq!(written, "192.0.2.1, 2001:db8::1, 10.0.0.1");
        assert_eq!(
            super::chain([written.as_bytes()], 3.try_into().unwrap()).unwrap(),
            chain
        );
        assert_eq!(list(&[]), None);

        let (http, https) = (Scheme::Http, Scheme::Https);
        assert_eq!(
            elements(&chain, http, https),
            "for=192.0.2.1;proto=http, for=\"[2001:db8::1]\", for=10.0.0.1;proto=https"
        );
        assert_eq!(
            elements(&chain[..1], https, https),
            "for=192.0.2.1;proto=https"
        );
        assert_eq!(elements(&[], https, https), "for=unknown;proto=https");
    }
}
