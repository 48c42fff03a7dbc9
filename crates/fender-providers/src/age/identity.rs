//! The identities that open what was encrypted for them: a file as `age-keygen` writes it.
//!
//! One identity a line, comments behind `#`. Native X25519 identities alone: those of plug-ins would have a program run, those
//! behind a passphrase somebody ask for it.

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use bech32::Bech32;
use bech32::primitives::decode::CheckedHrpstring;
use fender_identity::Secret;
use zeroize::Zeroizing;

use super::header::Stanza;
use super::{FileKey, Unopened, aead, hkdf};

/// The most that one file may have: each is tried on each recipient.
pub(super) const MOST: usize = 32;

const PREFIX: &str = "AGE-SECRET-KEY-";
const INFO: &[u8] = b"age-encryption.org/v1/X25519";
const LENGTH: usize = 32;

/// What is read from one file, one at least.
pub(crate) struct Identities(Vec<Identity>);

struct Identity {
    key: PrivateKey,
    public: [u8; LENGTH],
}

/// Why a file holds no identities. The text never holds a part of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadIdentity {
    #[error("is itself encrypted, and nobody is there to type its passphrase")]
    Encrypted,
    #[error("has an identity of a plug-in in line {0}, and plug-ins are not run")]
    Plugin(usize),
    #[error(
        "has an identity in line {0} that is not of the kind X25519, which is the one that is read"
    )]
    Kind(usize),
    #[error("has no age identity in line {0}, nor a comment")]
    Line(usize),
    #[error("holds more than {MOST} identities")]
    TooMany,
    #[error("holds no identity; write it with `age-keygen -o`")]
    None,
}

impl Identities {
    pub(crate) fn read(file: &Secret) -> Result<Self, BadIdentity> {
        let text = file.expose_str().ok_or(BadIdentity::None)?;
        if text.starts_with(super::header::VERSION) || text.starts_with(super::armor::BEGIN) {
            return Err(BadIdentity::Encrypted);
        }
        let mut identities = Vec::new();
        for (line, number) in text.lines().map(str::trim).zip(1..) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if identities.len() == MOST {
                return Err(BadIdentity::TooMany);
            }
            identities.push(Identity::read(line, number)?);
        }
        match identities.is_empty() {
            true => Err(BadIdentity::None),
            false => Ok(Self(identities)),
        }
    }

    /// The key of a file that has `stanzas`, if one of them is for one of these.
    pub(super) fn unwrap(&self, stanzas: &[Stanza<'_>]) -> Result<Option<FileKey>, Unopened> {
        for stanza in stanzas.iter().filter(|stanza| stanza.kind == "X25519") {
            let share = share(stanza)?;
            for identity in &self.0 {
                if let Some(key) = identity.unwrap(&share, &stanza.body)? {
                    return Ok(Some(key));
                }
            }
        }
        Ok(None)
    }
}

impl Identity {
    fn read(line: &str, number: usize) -> Result<Self, BadIdentity> {
        if line.starts_with("AGE-PLUGIN-") {
            return Err(BadIdentity::Plugin(number));
        }
        if line.starts_with("AGE-SECRET-KEY-PQ-") || line.contains("PRIVATE KEY") {
            return Err(BadIdentity::Kind(number));
        }
        let bad = || BadIdentity::Line(number);
        let checked = CheckedHrpstring::new::<Bech32>(line).map_err(|_| bad())?;
        if !line.starts_with(PREFIX) || !checked.hrp().as_str().eq_ignore_ascii_case(PREFIX) {
            return Err(bad());
        }
        let mut bytes = Zeroizing::new([0; LENGTH]);
        if checked.byte_iter().len() != LENGTH {
            return Err(bad());
        }
        for (to, from) in bytes.iter_mut().zip(checked.byte_iter()) {
            *to = from;
        }
        let key = PrivateKey::from_private_key(&X25519, &*bytes).map_err(|_| bad())?;
        let public = key.compute_public_key().map_err(|_| bad())?;
        let public = public.as_ref().try_into().map_err(|_| bad())?;
        Ok(Self { key, public })
    }

    /// None: it was wrapped for somebody else.
    fn unwrap(&self, share: &[u8; LENGTH], body: &[u8]) -> Result<Option<FileKey>, Unopened> {
        let mut salt = [0; 2 * LENGTH];
        let (first, second) = salt.split_at_mut(LENGTH);
        first.copy_from_slice(share);
        second.copy_from_slice(&self.public);
        let peer = UnparsedPublicKey::new(&X25519, share);
        let malformed = Unopened::malformed("has a recipient whose share is no point of the curve");
        let wrapping = agreement::agree(&self.key, peer, malformed, |shared| {
            hkdf(shared, &salt, INFO)
        })?;
        let mut body = Zeroizing::new(body.to_vec());
        let key = aead(&wrapping).open(&[0; 12], &mut body);
        Ok(key.and_then(FileKey::new))
    }
}

/// The one argument of a recipient of the kind X25519: an ephemeral public key.
fn share(stanza: &Stanza<'_>) -> Result<[u8; LENGTH], Unopened> {
    let malformed = || Unopened::malformed("has a recipient of the kind X25519 that is not whole");
    let [share] = stanza.arguments.as_slice() else {
        return Err(malformed());
    };
    let share = super::header::unpadded(share.as_bytes()).ok_or_else(malformed)?;
    if stanza.body.len() != FileKey::LENGTH + super::TAG {
        return Err(malformed());
    }
    share.try_into().map_err(|_| malformed())
}
