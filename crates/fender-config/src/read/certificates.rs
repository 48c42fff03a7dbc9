//! Certificates that a port shows beside the workload's own: whence they come, and for which names each is.
//!
//! Of one authority no name is asked for twice: the second order would only undo what the first one prepares.

use std::collections::BTreeMap;

use super::port::Taken;
use super::workload::refer;
use super::{Known, file_path, whole};
use crate::ObjectName;
use crate::address::is_host_name;
use crate::documents::{Credential, InboundPort, Kind};
use crate::problem::{Place, Problem, Report};
use crate::raw;
use crate::snapshot::{
    ANY_OTHER_NAME, Acme, AcmeChallenge, CertificateFiles, CertificateSource, ClientCertificate,
    ExternalAccount, Mtls, PortCertificate, Protocol,
};
use crate::yaml::{At, Reader};

/// As many as public authorities put into one certificate.
const MAX_NAMES: usize = 100;

const DIRECTORY_HELP: &str = "write `https://HOST/PATH`, as the authority gives it";

/// Whose ports they are, and which credentials may be named there.
#[derive(Clone, Copy)]
pub(super) struct Holder<'a> {
    pub(super) known: &'a Known<'a>,
    /// None if its name is wrong, which is told there.
    pub(super) namespace: Option<&'a str>,
    /// Those that it may have, as they are written.
    pub(super) credentials: &'a [At<String>],
}

/// All of one port. No name is for two of them.
pub(super) fn read(
    reader: &mut Reader<'_>,
    ports: &mut Taken,
    holder: Holder<'_>,
    written: &[At<raw::PortCertificate>],
) -> Vec<PortCertificate> {
    let mut taken = Vec::new();
    let mut all = Vec::new();
    for at in written {
        let source = source(reader, ports, holder, at);
        let names = names(reader, at.value.names.as_ref(), &mut taken);
        if let Some(acme) = &at.value.acme {
            let names = at.value.names.as_ref();
            refuse_what_acme_cannot(reader, acme, names.map_or(&[][..], |names| &names.value));
        }
        if let Some(credential) = &at.value.credential
            && names.iter().all(|name| name == ANY_OTHER_NAME)
        {
            let message = "it is not said for which names a credential is the certificate";
            let help = "list them, `names: [ shop.example.com ]`: then nobody who may change the secret can answer for others, \
                and while it is not there those names are refused";
            reader.wrong(credential, "fender::missing-field", message, help);
        }
        all.extend(source.map(|source| PortCertificate { source, names }));
    }
    all
}

/// Whether anybody could be shown what a port has to show. `place` is where its workload stands.
pub(super) fn judge(
    report: &mut Report,
    place: &Place,
    workload: &str,
    port: &InboundPort,
    mtls: Mtls,
) {
    let mut wrong = |code, what: &str, help: &str| {
        let message = format!("the port `{}` of `{workload}` {what}", port.listen);
        report.add(Problem::new(place.clone(), code, message).help(help));
    };
    if mtls == Mtls::Disabled && !port.certificates.is_empty() {
        let help = "remove `certificates`, or give the port another mode than DISABLE";
        let what = "has certificates and speaks no TLS";
        wrong("fender::no-tls", what, help);
    }
    let others = port.certificates.iter().any(PortCertificate::is_for_others);
    if mtls == Mtls::Strict(ClientCertificate::Require) && others {
        let help = "whoever may come in there is of the mesh and must meet the workload: remove `*`, or write \
            `clientCertificate: accept`";
        let what = "lets in workloads of the mesh only, and has a certificate for strangers";
        wrong("fender::strict-port", what, help);
    }
    let by_alpn = |one: &PortCertificate| {
        one.acme()
            .is_some_and(|acme| acme.challenge == AcmeChallenge::TlsAlpn)
    };
    if port.certificates.iter().any(by_alpn) {
        if port.protocol == Protocol::Tcp {
            let help = "no protocol is agreed upon in TLS at a `tcp` port: write `httpChallenge: 0.0.0.0:80`";
            let what = "is `tcp`, and an authority is to be answered there";
            wrong("fender::unanswerable", what, help);
        }
        if mtls == Mtls::Strict(ClientCertificate::Require) {
            let help = "an authority shows no certificate of the mesh: write `clientCertificate: accept`, or \
                `httpChallenge: 0.0.0.0:80`";
            let what =
                "lets in workloads of the mesh only, and an authority is to be answered there";
            wrong("fender::unanswerable", what, help);
        }
    }
}

/// No name of a workload's ports is asked for by two different orders.
pub(super) fn judge_orders(
    report: &mut Report,
    place: &Place,
    workload: &str,
    ports: &[InboundPort],
) {
    let mut ordered: BTreeMap<&str, &PortCertificate> = BTreeMap::new();
    let certificates = ports.iter().flat_map(|port| &port.certificates);
    for one in certificates.filter(|one| one.acme().is_some()) {
        let mut names = one.listed();
        let other = names.find(|name| *ordered.entry(name).or_insert(one) != one);
        if let Some(name) = other {
            let message = format!("two certificates of `{workload}` ask for `{name}` by ACME");
            let help = "write the same `acme` and the same `names` at both ports, and it is asked for once";
            report.add(Problem::new(place.clone(), "fender::duplicate", message).help(help));
        }
    }
}

/// Whether each of these credentials reaches somebody: the application, or clients of a port.
pub(crate) fn judge_credentials<'a>(
    report: &mut Report,
    place: &Place,
    workload: &str,
    ports: &[InboundPort],
    credentials: impl Iterator<Item = &'a Credential>,
) {
    for Credential { name, .. } in credentials.filter(|one| one.deliver.is_empty()) {
        let mut shown = ports.iter().flat_map(|port| &port.certificates);
        if !shown.any(|certificate| certificate.credential() == Some(name)) {
            let message = format!(
                "`{workload}` has the credential `{name}`, which is delivered nowhere and is no port's certificate"
            );
            let help = format!(
                "write `deliver` in the Credential, or `certificates: [ {{ credential: {}, names: [ … ] }} ]` at a port",
                name.name()
            );
            report.add(Problem::new(place.clone(), "fender::no-delivery", message).help(help));
        }
    }
}

fn source(
    reader: &mut Reader<'_>,
    ports: &mut Taken,
    holder: Holder<'_>,
    at: &At<raw::PortCertificate>,
) -> Option<CertificateSource> {
    let raw::PortCertificate {
        files,
        acme: order,
        credential: name,
        names: _,
    } = &at.value;
    match (files, order, name) {
        (Some(files), None, None) => {
            let certificate = file_path(reader, &files.value.certificate);
            let key = file_path(reader, &files.value.key);
            Some(CertificateSource::Files(CertificateFiles {
                certificate: certificate?,
                key: key?,
            }))
        }
        (None, Some(at), None) => acme(reader, ports, &at.value).map(CertificateSource::Acme),
        (None, None, Some(at)) => credential(reader, holder, at).map(CertificateSource::Credential),
        (_, _, _) => {
            let message = "a certificate comes from exactly one place";
            let help = "write `files: { certificate: /path.pem, key: /path.key }`, or `acme` with the `directory` of an \
                authority, or `credential` with the name of a Credential";
            reader.wrong(at, "fender::missing-field", message, help);
            None
        }
    }
}

/// One that the workload may have: it must be among its `credentials` too, where all of them are.
fn credential(reader: &mut Reader<'_>, holder: Holder<'_>, at: &At<String>) -> Option<ObjectName> {
    let name = refer(
        reader,
        holder.known,
        Kind::Credential,
        holder.namespace?,
        at,
    )?;
    let full = name.to_string();
    let is_it = |listed: &At<String>| listed.value == name.name() || listed.value == full;
    if !holder.credentials.iter().any(is_it) {
        let message = format!("the credential `{name}` is not one of its `credentials`");
        let help = format!("write `credentials: [ {} ]` beside `inbound`", name.name());
        reader.wrong(at, "fender::not-its-credential", message, help);
        return None;
    }
    Some(name)
}

fn acme(reader: &mut Reader<'_>, ports: &mut Taken, written: &raw::Acme) -> Option<Acme> {
    let directory = reader.parse(&written.directory, "fender::bad-url", DIRECTORY_HELP);
    let raw::TermsOfService = reader.choose("termsOfService", &written.terms_of_service)?;
    let contact = written.contact.as_ref().map(|at| contact(reader, at));
    let challenge = match &written.http_challenge {
        None => Some(AcmeChallenge::TlsAlpn),
        Some(at) => ports
            .answer(reader, at)
            .map(|listen| AcmeChallenge::Http { listen }),
    };
    let roots = written.roots.as_ref();
    let roots = roots.map(|roots| file_path(reader, &roots.file));
    let account = written.external_account.as_ref();
    let account = account.map(|at| external_account(reader, &at.value));
    Some(Acme {
        directory: directory?,
        challenge: challenge?,
        contact: whole(contact)?,
        roots: whole(roots)?,
        external_account: whole(account)?,
    })
}

fn contact(reader: &mut Reader<'_>, at: &At<String>) -> Option<String> {
    let parts = at.value.split_once('@');
    let is_local = |local: &str| {
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || b".!#$&'*+-/=^_`{|}~".contains(&byte);
        !local.is_empty() && local.bytes().all(allowed)
    };
    if parts.is_some_and(|(local, host)| is_local(local) && is_host_name(host)) {
        return Some(at.value.clone());
    }
    let message = format!("`{}` is not a mail address", at.value);
    let help = "write one address, without `mailto:`: `security@example.com`";
    reader.wrong(at, "fender::bad-contact", message, help);
    None
}

fn external_account(
    reader: &mut Reader<'_>,
    written: &raw::ExternalAccount,
) -> Option<ExternalAccount> {
    let key = file_path(reader, &written.key);
    let key_id = &written.key_id;
    let visible = |byte: u8| byte.is_ascii_graphic();
    if key_id.value.is_empty() || !key_id.value.bytes().all(visible) {
        let message = format!("`{}` is not usable as a key id", key_id.value);
        let help = "copy it as the authority gives it: letters, digits and signs, no space";
        reader.wrong(key_id, "fender::bad-key-id", message, help);
        return None;
    }
    Some(ExternalAccount {
        key_id: key_id.value.clone(),
        key: key?,
    })
}

/// Names are asked for one by one, and no challenge that is answered here proves all below one of them.
fn refuse_what_acme_cannot(reader: &mut Reader<'_>, acme: &At<raw::Acme>, names: &[At<String>]) {
    if names.iter().all(|at| at.value == ANY_OTHER_NAME) {
        let message = "it is not said for which names a certificate is to be asked for";
        let help = "list them: `names: [ shop.example.com ]`";
        reader.wrong(acme, "fender::missing-field", message, help);
    }
    if let Some(at) = names.get(MAX_NAMES) {
        let message = format!("a certificate for more than {MAX_NAMES} names");
        let help = "authorities refuse it; make another certificate of the rest";
        reader.wrong(at, "fender::too-many", message, help);
    }
    for at in names.iter().filter(|at| at.value.starts_with("*.")) {
        let message = format!("`{}` cannot be asked for", at.value);
        let help = "authorities want it proven by a DNS record: list each name, or get it elsewhere and write `files`";
        reader.wrong(at, "fender::unsupported", message, help);
    }
}

/// In lower case. `taken` are those of the certificates before it.
fn names(
    reader: &mut Reader<'_>,
    written: Option<&At<Vec<At<String>>>>,
    taken: &mut Vec<String>,
) -> Vec<String> {
    let Some(written) = written else {
        return Vec::new();
    };
    if written.value.is_empty() {
        let help = "leave `names` out to mean all that are in the certificate";
        let message = "a certificate for no name";
        reader.wrong(written, "fender::empty-list", message, help);
    }
    let mut names = Vec::new();
    for at in &written.value {
        let name = at.value.to_ascii_lowercase();
        let host = name.strip_prefix("*.").unwrap_or(&name);
        if name != ANY_OTHER_NAME && !is_host_name(host) {
            let message = format!("`{}` is not a DNS name", at.value);
            let help = "labels of letters, digits and `-`, joined by dots; `*` only as the whole first label, or alone";
            reader.wrong(at, "fender::bad-dns-name", message, help);
        } else if taken.contains(&name) {
            let message = format!("two certificates of this port are for `{name}`");
            reader.wrong(at, "fender::duplicate", message, "leave it to one of them");
        } else {
            taken.push(name.clone());
            names.push(name);
        }
    }
    names
}
