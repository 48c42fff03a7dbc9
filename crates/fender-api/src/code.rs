//! Why the other side said no, as a word that stays the same.
//!
//! A status message is for people and may change; a [`Code`] is for programs and may not. It travels in the metadata key
//! [`METADATA_KEY`] beside the gRPC status, and decides the exit code of whoever was refused.

use std::fmt;
use std::str::FromStr;

use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Code as Grpc, Status};

/// Where a [`Code`] travels.
pub const METADATA_KEY: &str = "fender-code";

/// Exit code for bad usage or bad documents.
pub const EXIT_USAGE: u8 = 64;
/// Exit code for a thing that was asked for and is not there.
pub const EXIT_MISSING: u8 = 66;
/// Exit code for a control plane that cannot be reached or is not able to answer.
pub const EXIT_UNAVAILABLE: u8 = 69;
/// Exit code for a deadline that passed.
pub const EXIT_TIMEOUT: u8 = 75;
/// Exit code for a request that was understood and refused.
pub const EXIT_REFUSED: u8 = 77;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $grpc:ident, $exit:ident;)*) => {
        /// A reason for a refusal. The words are part of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code there is, for documentation and tests.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// What the process that was refused exits with.
            pub fn exit_code(self) -> u8 {
                match self {
                    $(Self::$variant => $exit,)*
                }
            }

            fn grpc(self) -> Grpc {
                match self {
                    $(Self::$variant => Grpc::$grpc,)*
                }
            }
        }
    };
}

codes! {
    /// The join token was used before, with another key.
    TokenSpent = "token-spent", Unauthenticated, EXIT_REFUSED;
    /// The join token's time is over.
    TokenExpired = "token-expired", Unauthenticated, EXIT_REFUSED;
    /// Nobody here made this join token.
    TokenUnknown = "token-unknown", Unauthenticated, EXIT_REFUSED;
    /// The join token is for another workload than the one asked for.
    TokenWrongIdentity = "token-wrong-identity", PermissionDenied, EXIT_REFUSED;
    /// The workload's document does not let it attest this way.
    NotAttestable = "not-attestable", PermissionDenied, EXIT_REFUSED;
    /// What was shown does not prove to be the identity asked for, or nobody is let to prove it this way.
    EvidenceRefused = "evidence-refused", PermissionDenied, EXIT_REFUSED;
    /// No document describes this identity.
    IdentityUnknown = "identity-unknown", PermissionDenied, EXIT_REFUSED;
    /// The identity lies in a part of the trust domain that this call may not issue for.
    IdentityReserved = "identity-reserved", PermissionDenied, EXIT_REFUSED;
    /// The certificate expired longer ago than the renewal grace allows.
    RenewalExpired = "renewal-expired", Unauthenticated, EXIT_REFUSED;
    /// The signature of the expired certificate's key does not hold.
    ProofInvalid = "proof-invalid", Unauthenticated, EXIT_REFUSED;
    /// The certificate was revoked.
    Revoked = "revoked", PermissionDenied, EXIT_REFUSED;
    /// The call needs a client certificate and came without.
    NotAuthenticated = "not-authenticated", Unauthenticated, EXIT_REFUSED;
    /// The caller is known and may not do this.
    Denied = "denied", PermissionDenied, EXIT_REFUSED;
    /// The sidecar or tool is too old for this mesh.
    VersionRefused = "version-refused", FailedPrecondition, EXIT_REFUSED;
    /// Another revision is in force than the one the change was made for.
    RevisionChanged = "revision-changed", Aborted, EXIT_REFUSED;
    /// The documents would take an administrator's role away.
    CutsOffAdmin = "cuts-off-admin", FailedPrecondition, EXIT_REFUSED;
    /// The documents would take an identity away from those who run as it.
    DeletesInUse = "deletes-in-use", FailedPrecondition, EXIT_REFUSED;
    /// What was asked for does not exist, or is not the caller's to see.
    NotFound = "not-found", NotFound, EXIT_MISSING;
    /// The certificate request is malformed or asks for what is not issued.
    CsrInvalid = "csr-invalid", InvalidArgument, EXIT_USAGE;
    /// The request is malformed.
    BadRequest = "bad-request", InvalidArgument, EXIT_USAGE;
    /// Too many requests at once: come back later.
    Busy = "busy", ResourceExhausted, EXIT_UNAVAILABLE;
    /// The control plane cannot answer just now.
    Unavailable = "unavailable", Unavailable, EXIT_UNAVAILABLE;
    /// The control plane failed.
    Internal = "internal", Internal, EXIT_UNAVAILABLE;
    /// An answer did not come in time.
    Timeout = "timeout", DeadlineExceeded, EXIT_TIMEOUT;
    /// Found by the client: the root the server showed is not the one that was pinned.
    CaPinMismatch = "ca-pin-mismatch", Unauthenticated, EXIT_REFUSED;
    /// Found by the client: the server is not the control plane of the trust domain.
    ControlNotVerified = "control-not-verified", Unauthenticated, EXIT_REFUSED;
    /// Found by the client: the answer does not hold what was asked for.
    AnswerInvalid = "answer-invalid", Internal, EXIT_UNAVAILABLE;
}

impl Code {
    /// The status that says so, with a sentence for people. The sentence must hold nothing the peer may not know.
    pub fn status(self, message: impl Into<String>) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(METADATA_KEY, AsciiMetadataValue::from_static(self.as_str()));
        Status::with_metadata(self.grpc(), message, metadata)
    }

    /// The code of a status: the one it carries, or the nearest there is to its gRPC code.
    pub fn of(status: &Status) -> Code {
        if let Some(code) = carried(status.metadata()) {
            return code;
        }
        match status.code() {
            Grpc::Unauthenticated => Code::NotAuthenticated,
            Grpc::PermissionDenied => Code::Denied,
            Grpc::NotFound => Code::NotFound,
            Grpc::InvalidArgument | Grpc::OutOfRange => Code::BadRequest,
            Grpc::FailedPrecondition => Code::VersionRefused,
            Grpc::ResourceExhausted => Code::Busy,
            Grpc::DeadlineExceeded => Code::Timeout,
            Grpc::Ok
            | Grpc::Cancelled
            | Grpc::Unknown
            | Grpc::AlreadyExists
            | Grpc::Aborted
            | Grpc::Unimplemented
            | Grpc::Internal
            | Grpc::Unavailable
            | Grpc::DataLoss => Code::Unavailable,
        }
    }

    /// Whether asking again later may help.
    pub fn is_passing(self) -> bool {
        matches!(self.exit_code(), EXIT_UNAVAILABLE | EXIT_TIMEOUT)
    }
}

fn carried(metadata: &MetadataMap) -> Option<Code> {
    metadata.get(METADATA_KEY)?.to_str().ok()?.parse().ok()
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a [`Code`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not a code of the control protocol")]
pub struct UnknownCode;

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        Code::ALL
            .iter()
            .copied()
            .find(|code| code.as_str() == text)
            .ok_or(UnknownCode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_a_status() {
        for &code in Code::ALL {
            assert_eq!(Code::of(&code.status("no")), code);
            assert_eq!(code.as_str().parse::<Code>().unwrap(), code);
        }
    }

    #[test]
    fn a_code_from_a_newer_server_falls_back_to_the_grpc_code() {
        let mut status = Status::permission_denied("no");
        status.metadata_mut().insert(
            METADATA_KEY,
            AsciiMetadataValue::from_static("invented-later"),
        );
        assert_eq!(Code::of(&status), Code::Denied);
        assert_eq!(Code::of(&status).exit_code(), EXIT_REFUSED);
    }

    #[test]
    fn only_outages_and_timeouts_are_worth_another_try() {
        assert!(Code::Unavailable.is_passing());
        assert!(Code::Timeout.is_passing());
        assert!(!Code::TokenSpent.is_passing());
        assert!(!Code::BadRequest.is_passing());
    }
}
