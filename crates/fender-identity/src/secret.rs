//! Bytes that must not be seen.
//!
//! No `Display`, no serialization, no equality operator; wiped from memory on drop. There is one
//! way to read a secret, [`Secret::expose`], so that a search for that word finds every reader.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, if it is UTF-8.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the same time wherever two secrets of one length differ.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text.into_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_value() {
        #[derive(Debug)]
        struct Holder {
            _inside: Option<Secret>,
        }
        let secret = Secret::from("hunter2-hunter2".to_owned());
        let holder = Holder {
            _inside: Some(secret.clone()),
        };
        for shown in [
            format!("{secret:?}"),
            format!("{secret:#?}"),
            format!("{holder:?}"),
            format!("{holder:#?}"),
        ] {
            assert!(!shown.contains("hunter"), "{shown}");
            assert!(!shown.contains("104, 117"), "the bytes as numbers: {shown}");
            assert!(shown.contains("Secret(…)"));
        }
    }

    #[test]
    fn secrets_compare_by_value() {
        let secret = Secret::new(vec![1, 2, 3]);
        assert!(secret.ct_eq(&Secret::new(vec![1, 2, 3])));
        assert!(!secret.ct_eq(&Secret::new(vec![1, 2, 4])));
        assert!(!secret.ct_eq(&Secret::new(vec![1, 2])));
        assert!(!secret.ct_eq(&Secret::new(Vec::new())));
    }

    #[test]
    fn text_is_exposed_only_if_it_is_text() {
        assert_eq!(Secret::from("é".to_owned()).expose_str(), Some("é"));
        assert_eq!(Secret::new(vec![0xff]).expose_str(), None);
    }
}
