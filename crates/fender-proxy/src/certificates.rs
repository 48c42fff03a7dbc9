//! Certificates that a port shows beside the workload's own, for clients outside the mesh: read from files, or got by
//! somebody else from an authority or as a credential; and followed.
//!
//! Whoever issues them replaces the files. What fits together is served to the next connection; what does not is said once,
//! and the pair before it is kept. A pair that never fitted is not served: for its names a client gets the workload's own
//! certificate, as for any name that is nobody's. Where the names of one from an authority change, the one for the names
//! before stands in for those that both have, until the authority has issued the new one.
//!
//! One that is a credential is stood in for by nothing but itself under other names: where it is not there, has been taken back or
//! has ended, its names are refused; and so are those of one that nobody here gets from an authority. No path is opened that is not in the snapshot, and the snapshot has only
//! such as this sidecar was allowed to read. A private key that others can read is not taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fender_config::snapshot::{
    ANY_OTHER_NAME, CertificateFiles, CertificateSource, PortCertificate, Snapshot,
};
use fender_identity::Secret;
use fender_identity::tls::{Issued, NamedCertificate, NamedCertificateError, PemPair};
use fender_runtime::clock::UnixTime;
use fender_runtime::file::{self, Others};
use fender_runtime::metrics::{Exposition, Labels};
use tokio::task::JoinHandle;

use crate::metrics::declared;

/// The largest file of a chain or a key that is read.
const MAX_FILE: u64 = 256 * 1024;

/// Those that somebody else gets, as they are now.
pub type Standings = BTreeMap<PortCertificate, Issued>;

/// All that somebody else gets.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// From authorities.
    pub(crate) issued: Arc<Standings>,
    /// As credentials.
    pub(crate) credentials: Arc<Standings>,
}

impl Given {
    /// None of what lies in files.
    fn of(&self, wanted: &PortCertificate) -> Option<Issued> {
        let all = match &wanted.source {
            CertificateSource::Files(_) => return None,
            CertificateSource::Acme(_) => &self.issued,
            CertificateSource::Credential(_) => &self.credentials,
        };
        Some(all.get(wanted).cloned().unwrap_or_default())
    }
}

/// What a port shows beside the workload's own.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) named: Vec<NamedCertificate>,
    /// Names for which there is nothing to show.
    pub(crate) refused: Vec<String>,
}

impl Shown {
    /// Whether it is the very same.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let same = |(one, other): (&NamedCertificate, &NamedCertificate)| one.is(other);
        self.refused == other.refused
            && self.named.len() == other.named.len()
            && self.named.iter().zip(&other.named).all(same)
    }
}

/// What was found last.
#[derive(Debug, Default)]
pub(crate) struct Certificates(BTreeMap<PortCertificate, Held>);

#[derive(Clone, Debug, Default)]
struct Held {
    /// The last pair that fitted, as it was found and as it is served.
    seen: Option<Arc<PemPair>>,
    served: Option<NamedCertificate>,
    /// It was issued for other names.
    stands_in: bool,
    /// Whoever gave it has taken it back.
    withdrawn: bool,
    /// Why what is there now is not served.
    problem: Option<String>,
}

/// What lies in files now.
pub(crate) type Found = BTreeMap<PortCertificate, Issued>;

/// Looks at all that lie in files. Blocks: they may lie on a network.
pub(crate) fn find_files(wanted: Vec<PortCertificate>) -> Found {
    let found = wanted.into_iter().filter_map(|wanted| {
        let CertificateSource::Files(files) = &wanted.source else {
            return None;
        };
        let found = match read(files) {
            Ok(pair) => Issued {
                pair: Some(Arc::new(pair)),
                ..Issued::default()
            },
            Err(problem) => Issued {
                problem: Some(problem),
                ..Issued::default()
            },
        };
        Some((wanted, found))
    });
    found.collect()
}

/// Those of `wanted` that lie in files.
pub(crate) fn in_files(wanted: &[PortCertificate]) -> Vec<PortCertificate> {
    let files = wanted.iter().filter(|one| one.is_in_files());
    files.cloned().collect()
}

/// What there is of all of them: what was found in files, and what somebody else has got by now. Files that nobody has read are a
/// problem like any other.
pub(crate) fn together(
    wanted: Vec<PortCertificate>,
    found: &Found,
    given: &Given,
) -> Vec<(PortCertificate, Issued)> {
    let all = wanted.into_iter().map(|wanted| {
        let there = given.of(&wanted).or_else(|| found.get(&wanted).cloned());
        let there = there.unwrap_or_else(|| Issued {
            problem: Some(format!(
                "certificate {}: its files are not read in time",
                shown(&wanted)
            )),
            ..Issued::default()
        });
        (wanted, there)
    });
    all.collect()
}

/// The first look at files, before anybody is served. Blocks, but no longer than `patience`: the look goes on beside the work.
pub(crate) fn first_look(
    files: Vec<PortCertificate>,
    patience: Duration,
) -> (Found, Option<JoinHandle<Found>>) {
    look_for(files, patience, find_files)
}

fn look_for(
    files: Vec<PortCertificate>,
    patience: Duration,
    look: impl FnOnce(Vec<PortCertificate>) -> Found + Send + 'static,
) -> (Found, Option<JoinHandle<Found>>) {
    if files.is_empty() {
        return (Found::new(), None);
    }
    let (tell, told) = mpsc::channel();
    tokio::task::spawn_blocking(move || {
        // Who does not wait for it any more has ended.
        let _ = tell.send(look(files));
    });
    if let Ok(found) = told.recv_timeout(patience) {
        return (found, None);
    }
    let late = tokio::task::spawn_blocking(move || told.recv().unwrap_or_default());
    (Found::new(), Some(late))
}

fn read(files: &CertificateFiles) -> Result<PemPair, String> {
    let read = |path, others| file::read(path, MAX_FILE, others).map_err(|error| error.to_string());
    Ok(PemPair {
        chain: read(&files.certificate, Others::Whoever)?,
        key: Secret::new(read(&files.key, Others::GroupReads)?),
    })
}

/// Every certificate that a snapshot names, once.
pub(crate) fn wanted(snapshot: &Snapshot) -> Vec<PortCertificate> {
    let ports = snapshot.inbound.iter();
    let mut wanted: Vec<_> = ports.flat_map(|port| &port.certificates).cloned().collect();
    wanted.sort();
    wanted.dedup();
    wanted
}

/// How one of them is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// Those of the document, else those that it is served for.
    pub names: Vec<String>,
    /// Of what is served. None: the workload's own stands in for it.
    pub not_after: Option<UnixTime>,
    /// Why what is there now is not served.
    pub problem: Option<String>,
}

impl Certificates {
    /// Takes in what was found, and forgets what is not wanted any more. Whether anything else is served now.
    pub(crate) fn take(&mut self, found: Vec<(PortCertificate, Issued)>, now: UnixTime) -> bool {
        let before = std::mem::take(&mut self.0);
        let mut changed = false;
        for (wanted, found) in found {
            let mut held = match before.get(&wanted) {
                Some(held) => held.clone(),
                None => Held::standing_in(&wanted, &before, now),
            };
            changed |= held.take(&wanted, found, now);
            self.0.insert(wanted, held);
        }
        changed
    }

    /// What a port shows beside the workload's own.
    pub(crate) fn of(&self, certificates: &[PortCertificate]) -> Shown {
        let mut shown = Shown::default();
        for wanted in certificates {
            let held = self.0.get(wanted);
            let served = held.and_then(|held| held.served.as_ref());
            // Also those of its names for which it does not stand in.
            if wanted.credential().is_some() || held.is_some_and(|held| held.withdrawn) {
                let is_served =
                    |name: &String| served.is_some_and(|served| served.names().contains(name));
                let refused = wanted.names.iter().filter(|name| !is_served(name));
                shown.refused.extend(refused.cloned());
            }
            shown.named.extend(served.cloned());
        }
        shown
    }

    /// Those without which a port is not what its document says: each as a sentence. One that was taken back is none of them.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = self.0.iter().filter(|(wanted, held)| {
            wanted.credential().is_some() && held.served.is_none() && !held.withdrawn
        });
        let missing = missing.map(|(wanted, _)| {
            let names = wanted.names.join(" ");
            format!(
                "the certificate for {names}, {}, is not there",
                shown(wanted)
            )
        });
        missing.collect()
    }

    /// The names of all of them.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let wanted = self.0.keys().flat_map(PortCertificate::listed);
        let wanted = wanted.map(str::to_owned);
        let served = self.0.values().filter_map(|held| held.served.as_ref());
        let served = served.flat_map(NamedCertificate::names).cloned();
        wanted
            .chain(served)
            .filter(|name| name != ANY_OTHER_NAME)
            .collect()
    }

    /// How each is doing; those that have ended are wrong by themselves.
    pub(crate) fn status(&self, now: UnixTime) -> Vec<CertificateStatus> {
        let status = self.0.iter().map(|(wanted, held)| {
            let names = match (&held.served, wanted.names.as_slice()) {
                (Some(served), []) => served.names().to_vec(),
                (Some(_) | None, names) => names.to_vec(),
            };
            let not_after = held.served.as_ref().map(|held| held.validity().not_after);
            let ended = not_after.filter(|end| *end < now);
            let ended = ended.map(|_| format!("the certificate {} has expired", shown(wanted)));
            CertificateStatus {
                names,
                not_after,
                problem: held.problem.clone().or(ended),
            }
        });
        status.collect()
    }
}

/// Adds what a monitoring system is told of them.
pub(crate) fn tell(certificates: &[CertificateStatus], told: &mut Exposition) {
    let label = |(number, status): (usize, &CertificateStatus)| -> Labels {
        let name = status.names.first().cloned().unwrap_or_default();
        let number = number.to_string();
        vec![("name", name.into()), ("certificate", number.into())]
    };
    let labelled = || certificates.iter().enumerate();
    let ends = labelled().filter_map(|(number, status)| {
        let end = status.not_after?.as_secs();
        Some((label((number, status)), end))
    });
    told.numbers(&declared::PORT_CERTIFICATE_EXPIRY, ends.collect());
    let wrong = labelled().map(|(number, status)| {
        let problem = u64::from(status.problem.is_some());
        (label((number, status)), problem)
    });
    told.numbers(&declared::PORT_CERTIFICATE_PROBLEM, wrong.collect());
}

impl Held {
    /// What one that is new begins with: whatever was served until now for the most of its names. Whoever gets it from an
    /// authority has not been heard of it yet, and its files are read anew. For a credential only the same one stands in.
    fn standing_in(
        wanted: &PortCertificate,
        before: &BTreeMap<PortCertificate, Self>,
        now: UnixTime,
    ) -> Self {
        let served = before.iter().filter_map(|(other, held)| {
            match &wanted.source {
                CertificateSource::Files(_) => return None,
                CertificateSource::Acme(_) => {}
                CertificateSource::Credential(name) if other.credential() == Some(name) => {}
                CertificateSource::Credential(_) => return None,
            }
            held.served.as_ref()?.standing_in(&wanted.names)
        });
        let valid = served.filter(|served| served.validity().includes(now));
        let served = valid
            .max_by_key(|served| (served.names().len(), served.validity().not_after.as_secs()));
        Self {
            stands_in: served.is_some(),
            served,
            ..Self::default()
        }
    }

    fn take(&mut self, wanted: &PortCertificate, found: Issued, now: UnixTime) -> bool {
        let is_heard = found.problem.is_some();
        let mut problem = found.problem;
        let has_ended = |served: &NamedCertificate| served.validity().not_after < now;
        self.withdrawn = found.withdrawn;
        let mut changed = false;
        if found.withdrawn
            || wanted.credential().is_some() && self.served.as_ref().is_some_and(has_ended)
        {
            changed = self.served.take().is_some();
            (self.seen, self.stands_in) = (None, false);
        }
        let is_seen = |pair: &Arc<PemPair>| {
            let seen = self.seen.as_ref().is_some_and(|seen| seen.equals(pair));
            seen && self.stands_in == found.stands_in
        };
        if let Some(pair) = found.pair.filter(|pair| !is_seen(pair)) {
            match judge(wanted, &pair, found.stands_in, now) {
                Ok(certificate) => {
                    tracing::info!(
                        certificate = shown(wanted),
                        names = ?certificate.names(),
                        not_after = certificate.validity().not_after.as_secs(),
                        "showing another certificate"
                    );
                    self.served = Some(certificate);
                    self.seen = Some(pair);
                    self.stands_in = found.stands_in;
                    changed = true;
                }
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        let problem = problem.map(|problem| match &self.served {
            Some(served) if self.stands_in => {
                let names = served.names().join(" ");
                format!("{problem}; the one before stands in for {names}")
            }
            Some(_) => format!("{problem}; keeping the one before"),
            None if wanted.credential().is_some() || self.withdrawn => {
                format!("{problem}; its names are refused")
            }
            None => format!("{problem}; its names get the workload's own certificate"),
        });
        // What others have found wrong they have said in the log themselves.
        let is_ours = match &wanted.source {
            CertificateSource::Files(_) => true,
            CertificateSource::Acme(_) => false,
            CertificateSource::Credential(_) => !is_heard,
        };
        if let Some(problem) = &problem
            && is_ours
            && self.problem.as_ref() != Some(problem)
        {
            tracing::error!(problem, "a certificate cannot be served");
        }
        self.problem = problem;
        changed
    }
}

fn judge(
    wanted: &PortCertificate,
    pair: &PemPair,
    stands_in: bool,
    now: UnixTime,
) -> Result<NamedCertificate, String> {
    let certificate = match stands_in {
        false => NamedCertificate::from_pem(pair, &wanted.names),
        true => NamedCertificate::from_pem(pair, &[]).and_then(|whole| {
            let wrong = || NamedCertificateError::WrongName(wanted.names.join(" "));
            whole.standing_in(&wanted.names).ok_or_else(wrong)
        }),
    };
    let certificate =
        certificate.map_err(|error| format!("certificate {}: {error}", shown(wanted)))?;
    match certificate.validity().includes(now) {
        true => Ok(certificate),
        false => Err(format!("certificate {} is not valid now", shown(wanted))),
    }
}

/// In words, for lines.
fn shown(wanted: &PortCertificate) -> String {
    match &wanted.source {
        CertificateSource::Files(files) => {
            let (certificate, key) = (files.certificate.display(), files.key.display());
            format!("`{certificate}` with key `{key}`")
        }
        CertificateSource::Acme(acme) => format!("from `{}`", acme.directory),
        CertificateSource::Credential(name) => format!("of the credential `{name}`"),
    }
}

#[cfg(test)]
mod tests {
    use fender_config::snapshot::{Acme, AcmeChallenge};

    use super::*;

    const A: &str = "a.example.com";
    const B: &str = "b.example.com";
    const C: &str = "c.example.com";

    fn wanted(names: &[&str]) -> PortCertificate {
        PortCertificate {
            source: CertificateSource::Acme(Acme {
                directory: "https://ca.example.net/directory".parse().unwrap(),
                challenge: AcmeChallenge::TlsAlpn,
                contact: None,
                roots: None,
                external_account: None,
            }),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn issued(names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let chain = params.self_signed(&key).unwrap().pem().into_bytes();
        let key = Secret::new(key.serialize_pem().into_bytes());
        Issued {
            pair: Some(Arc::new(PemPair { chain, key })),
            ..Issued::default()
        }
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    /// In the summer of 2026.
    const NOW: u64 = 1_782_864_000;
    const A_YEAR: u64 = 365 * 24 * 60 * 60;

    /// For what one is served after this was found.
    fn served(all: &mut Certificates, names: &[&str], found: Issued, now: u64) -> Vec<String> {
        let wanted = wanted(names);
        all.take(vec![(wanted.clone(), found)], at(now));
        let served = all.0.get(&wanted).and_then(|held| held.served.as_ref());
        served.map_or_else(Vec::new, |served| served.names().to_vec())
    }

    #[test]
    fn what_is_served_stands_in_for_the_names_that_are_left_until_there_is_one_for_all() {
        let mut all = Certificates::default();
        assert_eq!(served(&mut all, &[A, B], issued(&[A, B]), NOW), [A, B]);
        // Nobody has heard of the new one yet; then of one that was issued for the old names, which is the same.
        assert_eq!(served(&mut all, &[A, C], Issued::default(), NOW), [A]);
        let waiting = Issued {
            stands_in: true,
            problem: Some("none yet".to_owned()),
            ..issued(&[A, B])
        };
        assert_eq!(served(&mut all, &[A, C], waiting, NOW), [A]);
        let told = all.status(at(NOW)).remove(0);
        let problem = told.problem.unwrap();
        assert!(
            problem.contains("the one before stands in for a.example.com"),
            "{problem}"
        );
        assert_eq!(served(&mut all, &[A, C], issued(&[A, C]), NOW), [A, C]);
        assert_eq!(all.status(at(NOW)).remove(0).problem, None);
        // None of its names is left.
        assert!(served(&mut all, &[B], Issued::default(), NOW).is_empty());
    }

    #[test]
    fn the_names_of_one_that_nobody_gets_are_refused_and_get_nothing_that_was_there_before() {
        let nobody = Issued {
            problem: Some("left out".to_owned()),
            withdrawn: true,
            ..Issued::default()
        };
        let mut all = Certificates::default();
        assert_eq!(served(&mut all, &[A, B], issued(&[A, B]), NOW), [A, B]);
        assert!(served(&mut all, &[A, C], nobody, NOW).is_empty());
        let shown = all.of(&[wanted(&[A, C])]);
        assert!(shown.named.is_empty());
        assert_eq!(shown.refused, [A, C]);
        let problem = all.status(at(NOW)).remove(0).problem.unwrap();
        assert!(problem.contains("its names are refused"), "{problem}");
        // One that is yet to come is not refused: the workload's own is shown meanwhile.
        assert!(served(&mut all, &[A, C], Issued::default(), NOW).is_empty());
        assert!(all.of(&[wanted(&[A, C])]).refused.is_empty());
    }

    #[test]
    fn what_has_ended_or_lies_in_files_stands_in_for_nothing() {
        let mut all = Certificates::default();
        assert_eq!(served(&mut all, &[A, B], issued(&[A, B]), NOW), [A, B]);
        assert!(served(&mut all, &[A, C], Issued::default(), NOW + A_YEAR).is_empty());
        assert_eq!(served(&mut all, &[A, B], issued(&[A, B]), NOW), [A, B]);
        let files = PortCertificate {
            source: CertificateSource::Files(CertificateFiles {
                certificate: "/etc/a.pem".into(),
                key: "/etc/a.key".into(),
            }),
            ..wanted(&[A])
        };
        all.take(vec![(files, Issued::default())], at(NOW));
        assert!(all.0.values().all(|held| held.served.is_none()));
    }

    #[tokio::test]
    async fn attack_a_file_that_never_answers_keeps_no_sidecar_from_starting() {
        let files = PortCertificate {
            source: CertificateSource::Files(CertificateFiles {
                certificate: "/net/gone/a.pem".into(),
                key: "/net/gone/a.key".into(),
            }),
            ..wanted(&[A])
        };
        let all = vec![files.clone(), wanted(&[B])];
        let given = Given {
            issued: Arc::new(Standings::from([(wanted(&[B]), issued(&[B]))])),
            credentials: Arc::default(),
        };
        // A file system that hangs, until its server is there again.
        let (answer, answered) = mpsc::channel::<()>();
        let late = Found::from([(files.clone(), issued(&[A]))]);
        let patience = Duration::from_millis(10);
        let (found, looking) = look_for(in_files(&all), patience, move |_| {
            answered.recv().unwrap();
            late
        });
        let found = together(all.clone(), &found, &given);
        let mut certificates = Certificates::default();
        certificates.take(found, at(NOW));
        let problems: Vec<_> = certificates.status(at(NOW));
        let hanging = problems[0].problem.as_deref().unwrap();
        assert!(hanging.contains("not read in time"), "{hanging}");
        assert_eq!(problems[1].problem, None, "others are none the worse");
        // It is not lost.
        answer.send(()).unwrap();
        let found = looking.unwrap().await.unwrap();
        certificates.take(together(all, &found, &given), at(NOW));
        assert_eq!(certificates.status(at(NOW))[0].problem, None);
    }
}
