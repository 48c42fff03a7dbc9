//! The pipeline of a certificate. Each stage consumes the one before and is the only way to make the next:
//!
//! attested ([`Attested`]) → template ([`Template`]) → validated ([`Valid`]) → signed ([`Signed`]) → what was signed is
//! validated again, from its bytes, as a peer would ([`Issued`]) → recorded ([`Recorded`]).
//!
//! Only a recorded certificate can be given away. Nothing of a request but its key reaches a certificate: the identity
//! is the attested one, the DNS names are the document's, the rest is decided here.

use std::collections::BTreeSet;
use std::time::Duration;

use fender_identity::csr::Csr;
use fender_identity::verify::{self, Refusal};
use fender_identity::{Bundles, DenyList, Serial, SpiffeId, Validity};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::make::{random_serial, set_validity};
use super::{Authority, CaError, Issuing, State, lifetimes};
use crate::evidence::Evidence;
use crate::store::certificates::{self, CertificateRow, Known};
use crate::store::{Store, StoreError, audit, tokens};

/// DNS names one certificate may carry.
const MAX_DNS_NAMES: usize = 64;

/// Stage 1: somebody proved to be `identity` and to hold the key of `csr`.
#[derive(Debug)]
pub(crate) struct Attested {
    identity: SpiffeId,
    csr: Csr,
    grant: Grant,
    evidence: Evidence,
}

/// What the documents and the call allow this identity.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) lifetime: Duration,
    pub(crate) dns_names: Vec<String>,
}

impl Attested {
    /// Refuses a request for any other identity than the attested one.
    pub(crate) fn new(
        identity: SpiffeId,
        csr: Csr,
        grant: Grant,
        evidence: Evidence,
    ) -> Result<Self, IssueError> {
        if csr.id != identity {
            return Err(IssueError::OtherIdentity);
        }
        Ok(Self {
            identity,
            csr,
            grant,
            evidence,
        })
    }

    fn template(
        self,
        issuing: &Issuing,
        denied: &DenyList,
        now: UnixTime,
    ) -> Result<Template, IssueError> {
        let mut validity =
            lifetimes::validity(now, self.grant.lifetime, issuing.validity.not_after);
        // What a revoked node's agent vouched for begins behind the revocation, as what it is given itself does.
        let agent = self
            .evidence
            .node()
            .map(|node| SpiffeId::for_agent(self.identity.trust_domain(), node));
        for id in std::iter::once(&self.identity).chain(&agent) {
            let Some(begins) = denied.begins(id) else {
                continue;
            };
            if begins > now {
                return Err(IssueError::JustRevoked);
            }
            validity.not_before = validity.not_before.max(begins);
        }
        Ok(Template {
            serial: random_serial()?,
            validity,
            attested: self,
        })
    }
}

/// Stage 2: what the certificate will say.
#[derive(Debug)]
pub(crate) struct Template {
    attested: Attested,
    serial: Serial,
    validity: Validity,
}

impl Template {
    /// The rules no document can bend.
    fn validate(self, authority: &Authority, now: UnixTime) -> Result<Valid, IssueError> {
        let Attested {
            identity, grant, ..
        } = &self.attested;
        if identity.trust_domain() != authority.trust_domain() {
            return Err(IssueError::ForeignTrustDomain);
        }
        let longest = if identity.admin_name().is_some() {
            lifetimes::ADMIN
        } else if identity.is_reserved() && !identity.is_control() && identity.node().is_none() {
            return Err(IssueError::Reserved);
        } else {
            lifetimes::WORKLOAD
                .max(lifetimes::CONTROL)
                .max(lifetimes::PERSON)
        };
        if grant.lifetime.is_zero() || grant.lifetime > longest {
            return Err(IssueError::Lifetime);
        }
        if !self.validity.includes(now) || self.validity.not_after <= now {
            return Err(IssueError::IssuerExpired);
        }
        if grant.dns_names.len() > MAX_DNS_NAMES {
            return Err(IssueError::DnsNames);
        }
        Ok(Valid(self))
    }
}

/// Stage 3: may be signed.
#[derive(Debug)]
pub(crate) struct Valid(Template);

impl Valid {
    fn sign(self, issuing: &Issuing) -> Result<Signed, IssueError> {
        let Self(template) = self;
        let Attested {
            identity,
            csr,
            grant,
            ..
        } = &template.attested;

        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(template.serial.as_bytes()));
        set_validity(&mut params, template.validity);
        params.distinguished_name = subject(identity);
        params.subject_alt_names = vec![SanType::URI(
            identity.as_str().try_into().map_err(CaError::from)?,
        )];
        for name in &grant.dns_names {
            let name = name.as_str().try_into().map_err(CaError::from)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;

        let leaf = params
            .signed_by(&csr.key, &issuing.issuer)
            .map_err(CaError::from)?
            .into();
        Ok(Signed {
            template,
            leaf,
            issuers: issuing.chain().collect(),
            authority: issuing.serial.clone(),
        })
    }
}

/// A workload is `O=NAMESPACE, CN=NAME`: databases map these to their users. Identity is the URI, never this.
fn subject(identity: &SpiffeId) -> DistinguishedName {
    let (organization, name) = if let Some(workload) = identity.workload() {
        (workload.namespace().to_owned(), workload.name().to_owned())
    } else if let Some(admin) = identity.admin_name() {
        ("fender administrators".to_owned(), admin.to_owned())
    } else if let Some(node) = identity.node() {
        ("fender agents".to_owned(), node.to_string())
    } else {
        ("fender".to_owned(), "control".to_owned())
    };
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, organization);
    subject.push(DnType::CommonName, name);
    subject
}

/// Stage 4: signed, and not yet believed.
#[derive(Debug)]
pub(crate) struct Signed {
    template: Template,
    leaf: CertificateDer<'static>,
    issuers: Vec<CertificateDer<'static>>,
    authority: Serial,
}

impl Signed {
    /// Reads the bytes back: the chain must hold against our own bundle for both roles, and say exactly what the
    /// template said, about the key of the request.
    fn check(self, issuing: &Issuing, state: &State, now: UnixTime) -> Result<Issued, IssueError> {
        let Self {
            template:
                Template {
                    attested,
                    serial,
                    validity,
                },
            leaf,
            issuers,
            authority,
        } = self;
        let believe = |chain: &[CertificateDer<'_>], role, bundles: &Bundles| {
            let peer = verify::verify(chain, role, bundles, now, &|_| Ok(()))
                .map_err(IssueError::Unverifiable)?;
            match *peer.id() == attested.identity && *peer.serial() == serial {
                true => Ok(()),
                false => Err(IssueError::NotAsMeant),
            }
        };
        // What the authorities above are good for, and that they signed each other, was seen when the first leaf was
        // followed to the root. What this one is good for is compared below: three signatures less for each.
        if issuing.leads_to_root(now) {
            believe(
                std::slice::from_ref(&leaf),
                verify::Role::Server,
                &issuing.as_root,
            )?;
        } else {
            let chain: Vec<_> = std::iter::once(&leaf).chain(&issuers).cloned().collect();
            believe(&chain, verify::Role::Server, &state.bundles)?;
            believe(&chain, verify::Role::Client, &state.bundles)?;
        }
        if !says(&leaf, &attested, validity) {
            return Err(IssueError::NotAsMeant);
        }
        issuing.followed.get_or_init(|| ());
        let row = CertificateRow {
            serial,
            provenance: attested.evidence.provenance(&attested.identity),
            identity: attested.identity,
            leaf,
            authority,
            key_sha256: attested.csr.spki_sha256,
            validity,
        };
        Ok(Issued { row, issuers })
    }
}

/// Whether a certificate carries this key, these dates, both purposes and exactly these names.
fn says(leaf: &CertificateDer<'_>, attested: &Attested, validity: Validity) -> bool {
    let Ok((rest, leaf)) = X509Certificate::from_der(leaf) else {
        return false;
    };
    let Ok(Some(names)) = leaf.subject_alternative_name() else {
        return false;
    };
    let mut found = BTreeSet::new();
    for name in &names.value.general_names {
        let new = match name {
            GeneralName::URI(uri) => found.insert(("uri", *uri)),
            GeneralName::DNSName(dns) => found.insert(("dns", *dns)),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => return false,
        };
        if !new {
            return false;
        }
    }
    let mut meant = BTreeSet::from([("uri", attested.identity.as_str())]);
    meant.extend(
        attested
            .grant
            .dns_names
            .iter()
            .map(|name| ("dns", name.as_str())),
    );

    let seconds = |moment: UnixTime| i64::try_from(moment.as_secs()).ok();
    let purposes = leaf.extended_key_usage();
    let both = purposes.is_ok_and(|purposes| {
        purposes.is_some_and(|purposes| purposes.value.server_auth && purposes.value.client_auth)
    });
    rest.is_empty()
        && both
        && found == meant
        && leaf.public_key().raw == attested.csr.public_key_der
        && Some(leaf.validity().not_before.timestamp()) == seconds(validity.not_before)
        && Some(leaf.validity().not_after.timestamp()) == seconds(validity.not_after)
}

/// Stage 5: is what was meant. It must be recorded before anybody gets it.
#[derive(Debug)]
pub(crate) struct Issued {
    row: CertificateRow,
    issuers: Vec<CertificateDer<'static>>,
}

impl Issued {
    pub(crate) async fn record(self, store: &Store) -> Result<Recorded, StoreError> {
        let recorded = self.once_recorded();
        store.write(certificates::Record(self.row)).await?;
        Ok(recorded)
    }

    pub(crate) async fn record_audited(
        self,
        store: &Store,
        entry: audit::Entry,
    ) -> Result<Recorded, StoreError> {
        let recorded = self.once_recorded();
        store
            .write(certificates::RecordAudited(self.row, entry))
            .await?;
        Ok(recorded)
    }

    #[cfg(test)]
    pub(crate) fn validity(&self) -> Validity {
        self.row.validity
    }

    pub(super) fn once_recorded(&self) -> Recorded {
        Recorded::of(&self.row.leaf, &self.issuers)
    }

    /// Records it together with the end of the token it is paid with.
    pub(crate) async fn spend(
        self,
        store: &Store,
        secret_sha256: tokens::Hash,
        at: UnixTime,
    ) -> Result<Result<Recorded, tokens::Worthless>, StoreError> {
        let recorded = self.once_recorded();
        let spend = tokens::Spend {
            secret_sha256,
            certificate: self.row,
            at,
        };
        Ok(match store.write(spend).await? {
            tokens::Spent::Now => Ok(recorded),
            tokens::Spent::Before(known) => Ok(Recorded::again(*known)),
            tokens::Spent::Refused(why) => Err(why),
        })
    }
}

/// Stage 6: on record, and the caller's.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    chain: Vec<CertificateDer<'static>>,
}

impl Recorded {
    /// A certificate the caller already has a right to.
    pub(crate) fn again(known: Known) -> Self {
        Self::of(&known.leaf, &known.issuers)
    }

    fn of(leaf: &CertificateDer<'static>, issuers: &[CertificateDer<'static>]) -> Self {
        Self {
            chain: std::iter::once(leaf).chain(issuers).cloned().collect(),
        }
    }

    /// Leaf first; the root is not part of it.
    pub(crate) fn into_chain(self) -> Vec<CertificateDer<'static>> {
        self.chain
    }
}

impl Authority {
    /// Stages 2 to 5.
    pub(crate) fn issue(&self, attested: Attested, now: UnixTime) -> Result<Issued, IssueError> {
        let state = self.state();
        let issuing = match attested.identity.is_control() {
            true => &state.serving,
            false => &state.issuing,
        };
        attested
            .template(issuing, &self.denied.borrow(), now)?
            .validate(self, now)?
            .sign(issuing)?
            .check(issuing, &state, now)
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    #[error("the request is for another identity than the one that was proven")]
    OtherIdentity,
    #[error("the identity belongs to another trust domain")]
    ForeignTrustDomain,
    #[error("the identity is reserved")]
    Reserved,
    #[error("the lifetime is zero or longer than allowed")]
    Lifetime,
    #[error("the identity was revoked just now, or by a clock that is ahead: ask again")]
    JustRevoked,
    #[error("the intermediate certificate authority has expired")]
    IssuerExpired,
    #[error("more than {MAX_DNS_NAMES} DNS names")]
    DnsNames,
    #[error("what was signed does not verify: {0}")]
    Unverifiable(Refusal),
    #[error("what was signed is not what was meant")]
    NotAsMeant,
    #[error(transparent)]
    Ca(#[from] CaError),
}

#[cfg(test)]
mod tests {
    use fender_identity::csr::{self, NewKey};
    use fender_runtime::drain::Drain;

    use super::super::seal::SealingKey;
    use super::*;

    fn attested(name: &str, dns_names: &[&str]) -> Attested {
        let id: SpiffeId = format!("spiffe://acme.test/ns/shop/sa/{name}")
            .parse()
            .unwrap();
        let request = csr::parse(&NewKey::generate().unwrap().csr_der(&id).unwrap()).unwrap();
        let dns_names = dns_names.iter().map(ToString::to_string).collect();
        let grant = Grant {
            lifetime: Duration::from_secs(3600),
            dns_names,
        };
        Attested::new(id, request, grant, Evidence::Control).unwrap()
    }

    #[tokio::test]
    async fn what_was_signed_is_not_believed_unless_it_says_what_was_meant() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.db");
        let store = Store::open(&path, &Drain::new()).await.unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let sealing = SealingKey::new(&[1; 32]).unwrap();
        let authority = Authority::open(
            &store,
            sealing,
            "acme.test".parse().unwrap(),
            "here".parse().unwrap(),
            &super::super::tests::lifetimes(),
            now,
        )
        .await
        .unwrap();
        let state = authority.state();
        let sign = |attested: Attested| {
            let template = attested
                .template(&state.issuing, &DenyList::default(), now)
                .unwrap();
            template
                .validate(&authority, now)
                .unwrap()
                .sign(&state.issuing)
                .unwrap()
        };
        assert!(!state.issuing.leads_to_root(now), "nobody has looked");
        sign(attested("orders", &["a.internal"]))
            .check(&state.issuing, &state, now)
            .unwrap();
        // From here on the root is not asked again, unless it has ended.
        assert!(state.issuing.leads_to_root(now));
        let end = state.bundle.ends();
        let later = UnixTime::since_unix_epoch(Duration::from_secs(end.as_secs() + 1));
        assert!(!state.issuing.leads_to_root(later));

        // Signed for somebody else, for another key, with other names; and not signed by us at all.
        for other in [
            attested("inventory", &["a.internal"]),
            attested("orders", &["a.internal"]),
        ] {
            let mut swapped = sign(attested("orders", &["a.internal"]));
            swapped.leaf = sign(other).leaf;
            assert!(matches!(
                swapped.check(&state.issuing, &state, now),
                Err(IssueError::NotAsMeant)
            ));
        }
        let mut renamed = sign(attested("orders", &["a.internal"]));
        renamed.template.attested.grant.dns_names = vec!["b.internal".to_owned()];
        assert!(matches!(
            renamed.check(&state.issuing, &state, now),
            Err(IssueError::NotAsMeant)
        ));
        let mut broken = sign(attested("orders", &[]));
        let mut bytes = broken.leaf.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        broken.leaf = bytes.into();
        assert!(matches!(
            broken.check(&state.issuing, &state, now),
            Err(IssueError::Unverifiable(_))
        ));
    }
}
