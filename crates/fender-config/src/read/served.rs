//! What is handed to whoever asks: under which name, and to whom.

use super::credential::account;
use super::files;
use crate::raw;
use crate::snapshot::{ServedName, SocketDelivery, UrlDelivery, UrlForm};
use crate::yaml::{At, Reader};

/// `own_name` is the credential's, if that is one.
pub(super) fn socket(
    reader: &mut Reader<'_>,
    socket: &raw::DeliverySocket,
    own_name: Option<&ServedName>,
) -> Option<SocketDelivery> {
    let name = name(reader, socket.name.as_ref(), own_name);
    let users = users(reader, &socket.users);
    Some(SocketDelivery {
        name: name?,
        users: users?,
    })
}

pub(super) fn url(
    reader: &mut Reader<'_>,
    url: &raw::DeliveryUrl,
    own_name: Option<&ServedName>,
) -> Option<UrlDelivery> {
    let name = name(reader, url.name.as_ref(), own_name);
    let form = url
        .form
        .as_ref()
        .map_or(Some(UrlForm::default()), |at| reader.choose("form", at));
    let token = files::token(reader, &url.token);
    Some(UrlDelivery {
        name: name?,
        form: form?,
        token: token?,
    })
}

fn name(
    reader: &mut Reader<'_>,
    at: Option<&At<String>>,
    own_name: Option<&ServedName>,
) -> Option<ServedName> {
    let Some(at) = at else {
        return own_name.cloned();
    };
    let name = at.value.parse();
    if name.is_err() {
        let help = "at most 64 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or a digit";
        let message = format!("`{}` is no name to ask for", at.value);
        reader.wrong(at, "fender::bad-served-name", message, help);
    }
    name.ok()
}

/// As the kernel shows users that have no number in a namespace.
const OVERFLOW_USER: u32 = 65_534;

fn users(reader: &mut Reader<'_>, at: &At<Vec<At<String>>>) -> Option<Vec<String>> {
    if at.value.is_empty() || at.value.len() > SocketDelivery::MOST_USERS {
        let most = SocketDelivery::MOST_USERS;
        let message = match at.value.is_empty() {
            true => "`users` is empty, so the secret would reach nobody".to_owned(),
            false => format!("`users` names {}, and {most} is the most", at.value.len()),
        };
        let help = "name the users whose processes receive the secret: `users: [ app ]`, or by number, `users: [ \"1000\" ]`";
        reader.wrong(at, "fender::bad-users", message, help);
        return None;
    }
    let accounts = at.value.iter().map(|at| {
        let account = account(reader, "a user", at)?;
        if account.parse() == Ok(OVERFLOW_USER) {
            reader.warn(
                at,
                "fender::overflow-user",
                "the user 65534 may be anybody: it is how the kernel shows users of another namespace",
                "give the application a user of its own",
            );
        }
        Some(account)
    });
    // All of them are looked at before one that is wrong ends it.
    let accounts: Vec<_> = accounts.collect();
    accounts.into_iter().collect()
}
