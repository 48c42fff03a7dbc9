//! A certificate authority of the tests, which signs whatever an attacker might bring.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// When an authority begins and ends, in seconds from now.
const BEGINS: i64 = -3600;
const ENDS: i64 = 86_400;

pub struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate shall say.
#[derive(Clone)]
pub struct Template {
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    /// Seconds from now; negative is the past.
    pub begins: i64,
    pub ends: i64,
    pub is_ca: bool,
}

impl Template {
    /// A sound X.509-SVID.
    pub fn svid(uri: &str) -> Self {
        Self {
            uris: vec![uri.to_owned()],
            dns: vec!["localhost".to_owned()],
            begins: -60,
            ends: 3600,
            is_ca: false,
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test");
        for uri in &self.uris {
            params.subject_alt_names.push(SanType::URI(
                Ia5String::try_from(uri.as_str()).expect("ASCII"),
            ));
        }
        for name in &self.dns {
            params.subject_alt_names.push(SanType::DnsName(
                Ia5String::try_from(name.as_str()).expect("ASCII"),
            ));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        if self.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        params.not_before = at(self.begins).into();
        params.not_after = at(self.ends).into();
        params
    }
}

pub struct Issued {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: KeyPair,
    pem: String,
}

impl Issued {
    pub fn identity(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (
            self.chain.clone(),
            PrivateKeyDer::Pkcs8(self.key.serialize_der().into()),
        )
    }

    /// The leaf.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Key and chain in one text.
    pub fn bundle(&self) -> String {
        format!("{}{}", self.key.serialize_pem(), self.pem)
    }

    /// Writes `certificate.pem` and `key.pem`, as Fender would have them.
    pub fn write(&self, directory: &Path) {
        fs::create_dir_all(directory).expect("make a directory");
        write_private(&directory.join("certificate.pem"), &self.pem);
        write_private(&directory.join("key.pem"), &self.key.serialize_pem());
    }
}

impl Authority {
    pub fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{trust_domain} root"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(
            Ia5String::try_from(format!("spiffe://{trust_domain}")).expect("ASCII"),
        )];
        params.not_before = at(BEGINS).into();
        params.not_after = at(ENDS).into();
        let key = KeyPair::generate().expect("make a key");
        let certificate = params.self_signed(&key).expect("sign");
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    pub fn write_bundle(&self, directory: &Path) -> PathBuf {
        fs::create_dir_all(directory).expect("make a directory");
        let path = directory.join("bundle.pem");
        fs::write(&path, self.certificate.pem()).expect("write the bundle");
        path
    }

    pub fn issue(&self, template: &Template) -> Issued {
        self.sign(&template.params())
    }

    /// A server's of these names, for clients outside the mesh.
    pub fn issue_for_names(&self, names: &[&str]) -> Issued {
        self.issue(&Template {
            uris: Vec::new(),
            dns: names.iter().map(|name| (*name).to_owned()).collect(),
            begins: -60,
            ends: 3600,
            is_ca: false,
        })
    }

    /// A server's, at an address, for as long as the authority is valid.
    pub fn issue_for_address(&self, address: IpAddr) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = at(BEGINS).into();
        params.not_after = at(ENDS).into();
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().expect("make a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("sign");
        Issued {
            chain: vec![certificate.der().clone()],
            pem: certificate.pem(),
            key,
        }
    }
}

/// What nobody signed but its own key.
pub fn self_signed(template: &Template) -> Issued {
    let key = KeyPair::generate().expect("make a key");
    let certificate = template.params().self_signed(&key).expect("sign");
    Issued {
        chain: vec![certificate.der().clone()],
        pem: certificate.pem(),
        key,
    }
}

fn at(seconds: i64) -> SystemTime {
    let offset = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::now() - offset
    } else {
        SystemTime::now() + offset
    }
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).expect("write a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set the mode");
}
