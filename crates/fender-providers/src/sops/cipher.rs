//! One encrypted value: AES-256-GCM with a nonce of 32 bytes, bound to the names of the fields on the way to it.
//!
//! The nonce is why this is not done by aws-lc-rs, which has AES-GCM with 12 bytes alone.

use aes_gcm::aead::consts::U32;
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, Nonce};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::Fault;
use super::value::{Text, Value};

const TAG: usize = 16;

/// What opens the values of one file.
pub(super) struct Cipher(AesGcm<Aes256, U32>);

impl Cipher {
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        AesGcm::new_from_slice(key).ok().map(Self)
    }

    /// The value that `sealed` is at `path`; `place` is how people know it.
    pub(super) fn open(&self, sealed: &str, path: &str) -> Result<Value, Fault> {
        let sealed = Sealed::read(sealed)
            .ok_or_else(|| at(path, "is not encrypted as SOPS does it, and it should be"))?;
        let nonce = Nonce::<U32>::try_from(sealed.nonce.as_slice())
            .map_err(|_| at(path, "has a nonce that is not of 32 bytes"))?;
        let payload = Payload {
            msg: &sealed.bytes,
            aad: path.as_bytes(),
        };
        let opened = self.0.decrypt(&nonce, payload);
        let opened = opened.map_err(|_| at(path, "was changed, or moved here from elsewhere"))?;
        let opened = Text::new(opened);
        typed(opened, sealed.kind)
            .ok_or_else(|| at(path, "is not of the type that it is said to be"))
    }
}

/// What SOPS says of the type is not part of what is sealed: it is believed only if the value fits, and the proof of the whole
/// is made over what comes of it.
fn typed(opened: Text, kind: &str) -> Option<Value> {
    let text = opened.as_str().map(|text| Zeroizing::new(text.to_owned()));
    let text = text.as_ref().map(|text| text.as_str());
    Some(match kind {
        "str" | "bytes" => Value::Text(opened),
        "time" => {
            text.filter(|text| super::time::moment(text).as_deref() == Some(*text))?;
            Value::Text(opened)
        }
        "int" => Value::Int(text?.parse().ok()?),
        "float" => Value::Float(float(text?)?),
        "bool" => match text? {
            "True" | "true" | "TRUE" | "T" | "t" | "1" => Value::Bool(true),
            "False" | "false" | "FALSE" | "F" | "f" | "0" => Value::Bool(false),
            _ => return None,
        },
        _ => return None,
    })
}

/// As it is written by SOPS: digits, a point and a sign.
fn float(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        _ => {
            let is_number = text
                .bytes()
                .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
            let number = text.parse::<f64>().ok();
            number.filter(|number| is_number && number.is_finite())
        }
    }
}

/// `ENC[AES256_GCM,data:…,iv:…,tag:…,type:…]`
struct Sealed<'a> {
    /// With the tag behind them.
    bytes: Vec<u8>,
    nonce: Vec<u8>,
    kind: &'a str,
}

impl<'a> Sealed<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let inside = text
            .strip_prefix("ENC[AES256_GCM,data:")?
            .strip_suffix(']')?;
        let (data, rest) = inside.split_once(",iv:")?;
        let (nonce, rest) = rest.split_once(",tag:")?;
        let (tag, kind) = rest.split_once(",type:")?;
        let mut bytes = Vec::with_capacity(data.len() / 4 * 3 + TAG);
        BASE64_STANDARD.decode_vec(data, &mut bytes).ok()?;
        let tag = BASE64_STANDARD.decode(tag).ok();
        bytes.extend(tag.filter(|tag| tag.len() == TAG)?);
        Some(Self {
            bytes,
            nonce: BASE64_STANDARD.decode(nonce).ok()?,
            kind,
        })
    }
}

/// `path`: names with a colon behind each.
pub(super) fn at(path: &str, what: &str) -> Fault {
    let place = super::value::shown(path.trim_end_matches(':'));
    Fault::new(format!("has a value, `{place}`, that {what}"))
}
