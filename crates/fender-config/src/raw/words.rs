//! The words that stand for a choice in documents, each once.

use fender_policy::Action;

use super::*;

macro_rules! words {
    ($type:ty: $($word:literal => $choice:expr),+) => {
        impl Choice for $type {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, $choice)),+];
        }
    };
}

words!(Profile: "production" => Self::Production, "development" => Self::Development);
words!(Role: "viewer" => Self::Viewer, "operator" => Self::Operator, "security" => Self::Security);
words!(SessionResumption: "tickets" => Self::Tickets, "never" => Self::Never);
words!(TlsVersion: "1.2" => Self::Tls12, "1.3" => Self::Tls13);
words!(Fallback: "deny" => Self::Deny, "allow" => Self::Allow, "audit" => Self::Audit);
words!(Protocol: "http" => Self::Http, "tcp" => Self::Tcp);
words!(ClientCertificate: "require" => Self::Require, "accept" => Self::Accept, "ignore" => Self::Ignore);
words!(ProxyVersion: "v2" => Self);
words!(AppProtocol: "http1" => Self::Http1, "h2c" => Self::H2c);
words!(TermsOfService: "agreed" => Self);
words!(AppProxyProtocol: "v2" => Self::V2);
words!(ForwardedFields: "x-forwarded" => Self::XForwarded, "forwarded" => Self::Forwarded, "both" => Self::Both, "none" => Self::Nothing);
words!(Option<MtlsMode>: "UNSET" => None, "STRICT" => Some(MtlsMode::Strict), "PERMISSIVE" => Some(MtlsMode::Permissive), "DISABLE" => Some(MtlsMode::Disable));
words!(EscapedSlash: "reject" => Self::Reject, "keep" => Self::Keep, "decode" => Self::Decode);
words!(PathException: "dot-segment-parameters" => Self::DotSegmentParameters, "overlong-utf8" => Self::OverlongUtf8,
    "double-encoding" => Self::DoubleEncoding);
words!(OwnCertificate: "present" => Self::Present, "withhold" => Self::Withhold);
words!(Verify: "full" => Self);
words!(Via: "sidecar" => Self::Sidecar, "control" => Self::Control);
words!(NotifySignal: "HUP" => Self::Hup, "USR1" => Self::Usr1, "USR2" => Self::Usr2);
words!(NotifyMethod: "POST" => Self::Post, "PUT" => Self::Put, "GET" => Self::Get);
words!(UrlForm: "value" => Self::Value, "aws" => Self::Aws);
words!(OnExit: "wipe" => Self::Wipe, "keep" => Self::Keep);
words!(Format: "json" => Self::Json, "yaml" => Self::Yaml, "dotenv" => Self::Dotenv, "properties" => Self::Properties,
    "pem" => Self::Pem, "pkcs12" => Self::Pkcs12);
words!(Storage: "memory" => Self::Memory, "disk" => Self::Disk);
words!(Action: "ALLOW" => Self::Allow, "DENY" => Self::Deny, "AUDIT" => Self::Audit);

impl Choice for SopsFormat {
    const WORDS: &'static [(&'static str, Self)] = Self::NAMED;
}

impl Choice for CipherSuite {
    const WORDS: &'static [(&'static str, Self)] = Self::NAMED;
}

impl Choice for Group {
    const WORDS: &'static [(&'static str, Self)] = Self::NAMED;
}
