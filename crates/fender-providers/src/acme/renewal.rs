//! When a certificate is to be renewed: when its authority suggests it (ARI, RFC 9773), or else after two thirds of its
//! lifetime. Many that were issued together do not return together.

use std::time::Duration;

use fender_identity::Validity;
use fender_runtime::backoff::spread;
use fender_runtime::clock::UnixTime;
use instant_acme::{Account, CertificateIdentifier};

/// How often a suggestion is asked for at most; an authority may want it less often.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(6 * 60 * 60);
/// And how long it may want not to be asked.
pub(super) const LOOK_AT_LEAST: Duration = Duration::from_secs(24 * 60 * 60);

/// An authority's suggestion, and after how long to ask for it again.
pub(super) struct Suggestion {
    pub(super) at: UnixTime,
    pub(super) again: Duration,
}

/// Without a suggestion: after two thirds, and up to a twentieth of the lifetime later.
pub(super) fn usual(validity: Validity) -> UnixTime {
    let (begin, lifetime) = span(validity);
    after(begin, lifetime.mul_f64(2.0 / 3.0) + spread(lifetime / 20))
}

/// Whatever an authority suggests: a tenth before the end at the latest.
pub(super) fn latest(validity: Validity) -> UnixTime {
    let (begin, lifetime) = span(validity);
    after(begin, lifetime.mul_f64(0.9))
}

/// Some moment within the window that the authority suggests; none if it suggests nothing or cannot be asked.
pub(super) async fn suggested(
    account: &Account,
    certificate: &CertificateIdentifier<'_>,
) -> Option<Suggestion> {
    let (info, again) = account.renewal_info(certificate).await.ok()?;
    let window = info.suggested_window;
    let seconds = |moment: i64| u64::try_from(moment).unwrap_or_default();
    let start = seconds(window.start.unix_timestamp());
    let end = seconds(window.end.unix_timestamp());
    let within = Duration::from_secs(end.saturating_sub(start));
    Some(Suggestion {
        at: after(start, spread(within)),
        again: again.clamp(LOOK_EVERY, LOOK_AT_LEAST),
    })
}

/// As its authority meant it.
pub(super) fn lifetime(validity: Validity) -> Duration {
    span(validity).1
}

fn span(validity: Validity) -> (u64, Duration) {
    let (begin, end) = (validity.not_before.as_secs(), validity.not_after.as_secs());
    (begin, Duration::from_secs(end.saturating_sub(begin)))
}

fn after(begin: u64, wait: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(begin).saturating_add(wait))
}

#[cfg(test)]
mod tests {
    use fender_runtime::deadline::Deadline;
    use instant_acme::Key;

    use super::super::https::{Heard, Https};
    use super::*;
    use crate::http::tests::Server;

    /// What an authority suggests whose directory and renewal information are both of this; and what it was asked.
    async fn suggested_by(members: &str) -> (Option<Suggestion>, Vec<String>) {
        let body = format!(
            r#"{{"newNonce":"https://ADDRESS/n","newAccount":"https://ADDRESS/a","newOrder":"https://ADDRESS/o"{members}}}"#
        );
        let head = "HTTP/1.1 200 OK\r\nretry-after: 60\r\nconnection: close\r\n\r\n";
        let mut server = Server::answering(format!("{head}{body}")).await;
        let (_, key) = Key::generate_pkcs8().unwrap();
        let way = Https::by(server.client(64 * 1024), &Heard::default());
        let builder = Account::builder_with_http(Box::new(way));
        let (id, directory) = (server.url("/account/1"), server.url("/directory"));
        let account = builder.from_parts(id.to_string(), key, directory.to_string());
        let account = account.await.unwrap();
        let certificate = CertificateIdentifier {
            authority_key_identifier: "AKI".into(),
            serial: "SERIAL".into(),
        };
        let suggestion = suggested(&account, &certificate);
        let patience = Deadline::after(Duration::from_secs(20));
        let suggestion = patience.bound(suggestion).await.unwrap();
        let mut asked = Vec::new();
        while let Ok(one) = server.asked.try_recv() {
            asked.extend(one.lines().next().map(str::to_owned));
        }
        (suggestion, asked)
    }

    #[tokio::test]
    async fn what_an_authority_suggests_is_taken_and_spread_over_its_window() {
        let members = r#","renewalInfo":"https://ADDRESS/renewal","suggestedWindow":
            {"start":"2027-01-20T00:00:00Z","end":"2027-01-21T00:00:00Z"}"#;
        let (suggestion, asked) = suggested_by(members).await;
        let suggestion = suggestion.unwrap();
        // In seconds since 1970, as `date` gives them.
        let window = 1_800_403_200..=1_800_489_600;
        assert!(
            window.contains(&suggestion.at.as_secs()),
            "{:?}",
            suggestion.at
        );
        // It would like to be asked each minute.
        assert_eq!(suggestion.again, LOOK_EVERY);
        assert_eq!(
            asked,
            [
                "GET /directory HTTP/1.1",
                "GET /renewal/AKI.SERIAL HTTP/1.1"
            ]
        );
    }

    #[tokio::test]
    async fn an_authority_that_suggests_nothing_or_nonsense_changes_nothing() {
        assert!(suggested_by("").await.0.is_none());
        let nonsense =
            r#","renewalInfo":"https://ADDRESS/renewal","suggestedWindow":{"start":"soon"}"#;
        assert!(suggested_by(nonsense).await.0.is_none());
        // A window that ends before it begins is its beginning.
        let backwards = r#","renewalInfo":"https://ADDRESS/renewal","suggestedWindow":
            {"start":"2027-01-20T00:00:00Z","end":"2027-01-01T00:00:00Z"}"#;
        let at = suggested_by(backwards).await.0.unwrap().at;
        assert_eq!(at.as_secs(), 1_800_403_200);
    }

    #[test]
    fn it_is_renewed_in_the_last_third_and_never_all_at_once() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let validity = Validity {
            not_before: at(1_000),
            not_after: at(91_000),
        };
        let mut moments: Vec<u64> = (0..64).map(|_| usual(validity).as_secs()).collect();
        assert!(
            moments
                .iter()
                .all(|moment| (61_000..=65_501).contains(moment)),
            "{moments:?}"
        );
        moments.sort_unstable();
        moments.dedup();
        assert!(moments.len() > 8);
        assert_eq!(latest(validity).as_secs(), 82_000);
        let backwards = Validity {
            not_before: at(91_000),
            not_after: at(1_000),
        };
        assert_eq!(usual(backwards).as_secs(), 91_000);
    }
}
