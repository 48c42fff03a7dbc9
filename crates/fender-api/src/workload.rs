//! A client of any SPIFFE Workload API: Fender's own, SPIRE's, anybody's.
//!
//! It connects to a local socket, looks who listens there, asks who this process is and whom it may trust, and hears of
//! every change. What comes is bounded and has the shape of a certificate with its key; whether anybody should believe it
//! is for whoever asked. Nothing is said to a listener of another user than root, our own, or the one that is named.

use std::future::{Ready, ready};
use std::io;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use fender_identity::verify::MAX_CHAIN;
use fender_identity::{
    Bundle, BundleError, Bundles, DenyList, Malformed, Secret, SpiffeId, SpiffeIdError, Svid,
    SvidError, TrustDomain, concatenated, revoked_serials,
};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tower_service::Service;

use crate::proto::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::proto::spiffe::{JwtsvidRequest, X509svid, X509svidRequest, X509svidResponse};

/// The largest message: what gRPC takes when nobody says otherwise.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// What may be under way to us before we read it.
const WINDOW: u32 = 64 * 1024;
const MAX_SVIDS: usize = 64;
const MAX_TRUST_DOMAINS: usize = 256;
const MAX_ROOTS: usize = 64;
const MAX_LISTS: usize = 256;
/// The longest token that is taken.
const MAX_TOKEN: usize = 16 * 1024;
/// How much of a refusal's text is kept.
const MAX_REASON: usize = 512;

/// What an API said of us and of whom to trust, at one moment.
#[derive(Debug)]
pub struct Received {
    /// Never empty; the first is the default one.
    pub svids: Vec<Svid>,
    /// Of every trust domain it named.
    pub bundles: Bundles,
    /// What its revocation lists name. Their signatures are not looked at: who gives the roots over this socket could give
    /// others. A number is refused whichever authority gave it out. If they cannot be taken, why not: nobody loses an
    /// identity over it, and whoever was denied before still is.
    pub denied: Result<DenyList, FetchError>,
}

/// What an API says from now on.
#[derive(Debug)]
pub struct Updates {
    stream: Streaming<X509svidResponse>,
}

/// A socket, and who may listen there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub socket: PathBuf,
    /// The user that must listen there. None: root, or the one that we are.
    pub uid: Option<u32>,
}

impl From<&Path> for Endpoint {
    fn from(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            uid: None,
        }
    }
}

impl Endpoint {
    /// Whoever listens made the socket, and decides whom we believe.
    fn check(&self, listener: u32) -> Result<(), FetchError> {
        let own = rustix::process::geteuid().as_raw();
        let expected = match self.uid {
            Some(uid) => listener == uid,
            None => listener == 0 || listener == own,
        };
        match expected {
            true => Ok(()),
            false => Err(FetchError::Squatted {
                socket: self.socket.clone(),
                uid: listener,
            }),
        }
    }
}

/// Connects to the socket and asks.
pub async fn watch(endpoint: &Endpoint) -> Result<Updates, FetchError> {
    let channel = connect(endpoint).await?;
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let response = client.fetch_x509svid(meant(X509svidRequest {})).await?;
    Ok(Updates {
        stream: response.into_inner(),
    })
}

/// Asks for a JWT-SVID of this identity for one audience. What is in it is for whom it is shown to.
pub async fn jwt_svid(
    endpoint: &Endpoint,
    audience: &str,
    id: &SpiffeId,
) -> Result<Secret, FetchError> {
    let channel = connect(endpoint).await?;
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let request = JwtsvidRequest {
        audience: vec![audience.to_owned()],
        spiffe_id: id.to_string(),
    };
    let response = client.fetch_jwtsvid(meant(request)).await?;
    let signed = response.into_inner().svids.into_iter().next();
    let signed = signed.ok_or(FetchError::Nobody)?;
    let token = Secret::from(signed.svid);
    let said: SpiffeId = signed.spiffe_id.parse()?;
    if said != *id {
        return Err(FetchError::OtherToken {
            asked: id.clone(),
            said,
        });
    }
    if token.is_empty() || token.len() > MAX_TOKEN {
        return Err(FetchError::NoToken);
    }
    Ok(token)
}

impl Updates {
    /// The next thing it says. Cancel safe.
    pub async fn next(&mut self) -> Result<Received, FetchError> {
        match self.stream.message().await? {
            Some(response) => response.try_into(),
            None => Err(FetchError::Ended),
        }
    }
}

/// A request that says it is meant for a Workload API.
pub fn meant<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// gRPC over a local socket, without TLS: the kernel says who listens.
pub async fn connect(endpoint: &Endpoint) -> Result<Channel, FetchError> {
    let unreachable = |source| FetchError::Unreachable {
        socket: endpoint.socket.clone(),
        source,
    };
    let stream = UnixStream::connect(&endpoint.socket)
        .await
        .map_err(unreachable)?;
    endpoint.check(stream.peer_cred().map_err(unreachable)?.uid())?;
    tonic::transport::Endpoint::from_static("http://localhost")
        .http2_max_header_list_size(16 * 1024)
        .initial_stream_window_size(WINDOW)
        .connect_with_connector(Once(Some(TokioIo::new(stream))))
        .await
        .map_err(|error| unreachable(io::Error::other(error)))
}

/// Gives its connection to the first who asks, and nothing afterwards.
struct Once(Option<TokioIo<UnixStream>>);

impl Service<Uri> for Once {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(
            self.0.take().ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotConnected, "the connection is over")
            }),
        )
    }
}

impl TryFrom<X509svidResponse> for Received {
    type Error = FetchError;

    fn try_from(response: X509svidResponse) -> Result<Self, FetchError> {
        let X509svidResponse {
            svids,
            federated_bundles,
            crl,
        } = response;
        if svids.is_empty() {
            return Err(FetchError::Nobody);
        }
        if svids.len() > MAX_SVIDS || federated_bundles.len() > MAX_TRUST_DOMAINS {
            return Err(FetchError::TooMany);
        }
        let mut bundles = Bundles::new();
        for (name, roots) in federated_bundles {
            // As a SPIFFE ID by the standard; some write the name alone.
            let name = name.strip_prefix("spiffe://").unwrap_or(&name);
            bundles.insert(bundle(name.parse()?, &roots)?);
        }
        let mut read = Vec::new();
        for message in svids {
            let svid = svid(&message)?;
            // Of its own trust domain it is the certificate that brings the roots.
            bundles.insert(bundle(svid.id().trust_domain().clone(), &message.bundle)?);
            read.push(svid);
        }
        Ok(Self {
            svids: read,
            bundles,
            denied: denied(&crl),
        })
    }
}

/// Fewer would be read than are meant if one could not be: then nothing is taken.
fn denied(lists: &[Vec<u8>]) -> Result<DenyList, FetchError> {
    if lists.len() > MAX_LISTS {
        return Err(FetchError::TooManyRevocations);
    }
    let mut denied = DenyList::default();
    for list in lists {
        for serial in revoked_serials(list)? {
            denied.deny_serial(serial);
        }
        if denied.serials().count() > DenyList::MAX_SERIALS {
            return Err(FetchError::TooManyRevocations);
        }
    }
    Ok(denied)
}

fn svid(message: &X509svid) -> Result<Svid, FetchError> {
    let chain = concatenated(&message.x509_svid, MAX_CHAIN)?;
    let key = PrivatePkcs8KeyDer::from(message.x509_svid_key.clone());
    let svid = Svid::from_parts(chain, PrivateKeyDer::Pkcs8(key))?;
    let said: SpiffeId = message.spiffe_id.parse()?;
    if *svid.id() != said {
        let held = svid.id().clone();
        return Err(FetchError::OtherName { said, held });
    }
    Ok(svid)
}

fn bundle(trust_domain: TrustDomain, roots: &[u8]) -> Result<Bundle, FetchError> {
    Ok(Bundle::new(trust_domain, concatenated(roots, MAX_ROOTS)?)?)
}

/// Why an API gave nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Nobody is there.
    #[error("no Workload API answers at `{}`", socket.display())]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody who may not listens there, and heard nothing.
    #[error(
        "user {uid} listens at `{}`, who is neither root nor this user nor the one that is named: somebody else has taken \
         the place of the Workload API, or its user must be named", socket.display()
    )]
    Squatted {
        /// Where.
        socket: PathBuf,
        /// Who.
        uid: u32,
    },
    /// It knows us, and has no identity for us.
    #[error("the Workload API has no identity for this process: {reason}")]
    Denied {
        /// In its words.
        reason: String,
    },
    /// It failed, or the connection did.
    #[error("the Workload API failed: {reason}")]
    Failed {
        /// In its words.
        reason: String,
    },
    /// It ended the stream.
    #[error("the Workload API ended its answer")]
    Ended,
    /// It answered without an identity.
    #[error("the Workload API answered with no identity")]
    Nobody,
    /// More than anybody needs.
    #[error(
        "the Workload API answered with more than {MAX_SVIDS} identities or {MAX_TRUST_DOMAINS} trust domains"
    )]
    TooMany,
    /// More than can be kept.
    #[error(
        "the Workload API answered with more than {MAX_LISTS} revocation lists or {} revoked certificates",
        DenyList::MAX_SERIALS
    )]
    TooManyRevocations,
    /// A certificate is for somebody else than said.
    #[error("the certificate of `{said}` is for `{held}`")]
    OtherName {
        /// As the message says.
        said: SpiffeId,
        /// As the certificate says.
        held: SpiffeId,
    },
    /// A token is for somebody else than it was asked for.
    #[error("the Workload API was asked for a token of `{asked}` and gave one of `{said}`")]
    OtherToken {
        /// Whom it was asked for.
        asked: SpiffeId,
        /// As the message says.
        said: SpiffeId,
    },
    /// It is none.
    #[error("the Workload API gave a token that is empty or has more than {MAX_TOKEN} bytes")]
    NoToken,
    /// A chain or a bundle.
    #[error("a certificate in the Workload API's answer cannot be read")]
    Malformed(#[from] Malformed),
    /// A certificate with its key.
    #[error("a certificate in the Workload API's answer cannot be used")]
    Svid(#[from] SvidError),
    /// A trust bundle.
    #[error("a trust bundle in the Workload API's answer cannot be used")]
    Bundle(#[from] BundleError),
    /// A name.
    #[error("a name in the Workload API's answer is no identity")]
    Name(#[from] SpiffeIdError),
}

/// The text comes from outside: it is cut, and nothing in it can move a cursor.
impl From<Status> for FetchError {
    fn from(status: Status) -> Self {
        let reason = status.message().chars().filter(|c| !c.is_control());
        let reason = reason.take(MAX_REASON).collect();
        if status.code() == Code::PermissionDenied {
            return Self::Denied { reason };
        }
        Self::Failed {
            reason: format!("{:?}: {reason}", status.code()),
        }
    }
}
