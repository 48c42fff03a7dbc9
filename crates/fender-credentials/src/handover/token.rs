//! What a consumer shows at the URL: 256 random bits, its own, made anew by each process and written nowhere but to its file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fender_config::snapshot::{ServedName, UrlDelivery, UrlForm};
use fender_identity::Secret;
use fender_runtime::random;

/// Who reads one credential at the URL.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    name: ServedName,
    form: UrlForm,
    /// Where it finds its token, which is what it is known by.
    file: PathBuf,
    /// Whose that is, and who must ask where the kernel says who does.
    user: u32,
    token: Arc<Secret>,
}

impl Reader {
    pub(crate) fn new(delivery: &UrlDelivery, user: u32, tokens: &Tokens) -> Self {
        Self {
            user,
            name: delivery.name.clone(),
            form: delivery.form,
            file: delivery.token.path.clone(),
            token: tokens.of(&delivery.token.path),
        }
    }

    /// What its file holds: 64 hexadecimal digits and no line end, as AWS SDKs want it.
    pub(crate) fn token(&self) -> &Secret {
        &self.token
    }

    pub(super) fn user(&self) -> u32 {
        self.user
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn name(&self) -> &ServedName {
        &self.name
    }

    pub(super) fn form(&self) -> UrlForm {
        self.form
    }

    pub(super) fn reads(&self, form: UrlForm, name: &ServedName) -> bool {
        self.form == form && self.name == *name
    }

    /// In constant time.
    pub(super) fn is_shown(&self, token: &Secret) -> bool {
        self.token.ct_eq(token)
    }
}

impl PartialEq for Reader {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.form == other.form
            && self.file == other.file
            && self.user == other.user
    }
}

/// The tokens that are in use, by file: a consumer keeps its own as long as documents name it.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<BTreeMap<PathBuf, Weak<Secret>>>);

impl Tokens {
    fn of(&self, file: &Path) -> Arc<Secret> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, token| token.strong_count() > 0);
        if let Some(token) = known.get(file).and_then(Weak::upgrade) {
            return token;
        }
        let token = Arc::new(make());
        known.insert(file.to_owned(), Arc::downgrade(&token));
        token
    }
}

fn make() -> Secret {
    let mut digits = String::with_capacity(64);
    for byte in random::bytes::<32>() {
        // Writing to a text does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    Secret::from(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_keeps_its_token_while_it_is_named_and_no_two_share_one() {
        let tokens = Tokens::default();
        let [app, job] = ["/run/app", "/run/job"].map(|file| tokens.of(Path::new(file)));
        assert_eq!(app.len(), 64);
        assert!(app.expose().iter().all(u8::is_ascii_hexdigit));
        assert!(!app.ct_eq(&job));
        assert!(tokens.of(Path::new("/run/app")).ct_eq(&app));
        let before = Secret::clone(&app);
        drop(app);
        assert!(!tokens.of(Path::new("/run/app")).ct_eq(&before));
        assert!(!Tokens::default().of(Path::new("/run/job")).ct_eq(&job));
    }
}
