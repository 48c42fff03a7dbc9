//! The SPIFFE Workload API: who the caller is, and whom it may trust.
//!
//! A call without the metadata `workload.spiffe.io: true` is refused before anything is looked up: only somebody who means
//! to ask can set it, and not whoever makes an honest client send a request somewhere.
//!
//! <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md>

use std::pin::Pin;
use std::sync::Arc;

use fender_api::proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApi;
use fender_api::proto::spiffe::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
    X509svid, X509svidRequest, X509svidResponse,
};
use fender_identity::jwt;
use fender_identity::jwt::svid::{MAX_AUDIENCE, check_audiences};
use fender_identity::{Bundle, SpiffeId, Svid, Trust, TrustDomain};
use futures_util::Stream;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use rustls_pki_types::UnixTime;
use tonic::{Request, Response, Status};

use crate::call::refusal;
use crate::server::Calls;
use crate::{Caller, Entitled, Identities};

const HEADER: &str = "workload.spiffe.io";

type Push<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

pub(crate) struct WorkloadApi<I> {
    calls: Calls<I>,
}

impl<I: Identities> WorkloadApi<I> {
    pub(crate) fn new(calls: Calls<I>) -> Self {
        Self { calls }
    }
}

#[tonic::async_trait]
impl<I: Identities> SpiffeWorkloadApi for WorkloadApi<I> {
    type FetchX509SVIDStream = Push<X509svidResponse>;
    type FetchX509BundlesStream = Push<X509BundlesResponse>;
    type FetchJWTBundlesStream = Push<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        meant(&request)?;
        let admitted = self.calls.admit(&request)?;
        let entitled = self.calls.follow(&admitted.caller).await?;
        let pushed = self.calls.push(admitted, entitled, Own::of, Own::message);
        Ok(Response::new(Box::pin(pushed)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        meant(&request)?;
        let admitted = self.calls.admit(&request)?;
        let entitled = self.calls.follow(&admitted.caller).await?;
        let pushed = self.calls.push(
            admitted,
            entitled,
            |entitled| Known(entitled.trust.clone()),
            |Known(trust)| {
                Ok(X509BundlesResponse {
                    crl: lists(trust),
                    bundles: trust.bundles.iter().map(by_trust_domain).collect(),
                })
            },
        );
        Ok(Response::new(Box::pin(pushed)))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        meant(&request)?;
        let admitted = self.calls.admit(&request)?;
        let JwtsvidRequest {
            audience,
            spiffe_id,
        } = request.into_inner();
        check_audiences(&audience).map_err(|why| Status::invalid_argument(why.to_string()))?;
        let id = match spiffe_id.as_str() {
            "" => None,
            text => Some(text.parse::<SpiffeId>().map_err(|error| {
                Status::invalid_argument(format!("`spiffe_id` is not an identity: {error}"))
            })?),
        };
        let caller = &admitted.caller;
        let issued = self
            .calls
            .identities
            .jwt_svid(caller, &audience, id.as_ref())
            .await
            .map_err(|why| refusal(caller, why))?;
        let token = issued.token.expose_str();
        let token = token.ok_or_else(|| Status::internal("the token is not text"))?;
        Ok(Response::new(JwtsvidResponse {
            svids: vec![Jwtsvid {
                spiffe_id: issued.id.to_string(),
                svid: token.to_owned(),
                hint: String::new(),
            }],
        }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        meant(&request)?;
        let admitted = self.calls.admit(&request)?;
        let entitled = self.calls.follow(&admitted.caller).await?;
        let pushed = self.calls.push(
            admitted,
            entitled,
            |entitled| Arc::clone(&entitled.trust.jwt),
            |keys| {
                Ok(JwtBundlesResponse {
                    bundles: keys.iter().map(key_set).collect(),
                })
            },
        );
        Ok(Response::new(Box::pin(pushed)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        meant(&request)?;
        let admitted = self.calls.admit(&request)?;
        let entitled = self.calls.follow(&admitted.caller).await?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || audience.len() > MAX_AUDIENCE {
            return Err(Status::invalid_argument(format!(
                "`audience` is empty, or longer than {MAX_AUDIENCE} bytes"
            )));
        }
        let trust = entitled.borrow().trust.clone();
        let valid = validate(&svid, &audience, &trust, self.calls.clock.now());
        let valid = valid.map_err(|why| {
            let Caller { uid, pid, .. } = admitted.caller;
            tracing::info!(uid, pid, %why, "a token that a local process was shown is refused");
            // Whoever asks is the token's reader, and may know why it is not good.
            Status::invalid_argument(why)
        })?;
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: valid.id().to_string(),
            claims: Some(structure(valid.claims().all())),
        }))
    }
}

/// A token that proves an identity to this reader, and not one that was revoked since.
fn validate(
    token: &str,
    audience: &str,
    trust: &Trust,
    now: UnixTime,
) -> Result<jwt::svid::JwtSvid, String> {
    let keys = |trust_domain: &TrustDomain| trust.jwt.get(trust_domain);
    let read = jwt::svid::verify(token, audience, &keys, now).map_err(|why| why.to_string())?;
    if trust.denied.denies_token(read.id(), read.claims().issued) {
        return Err("the identity was revoked after the token was issued".to_owned());
    }
    Ok(read)
}

fn structure(object: &jwt::Object) -> Struct {
    let fields = object.iter();
    Struct {
        fields: fields
            .map(|(name, claim)| (name.clone(), value(claim)))
            .collect(),
    }
}

/// Numbers are as large as the Workload API's: a double.
fn value(claim: &jwt::Value) -> prost_types::Value {
    let kind = match claim {
        jwt::Value::Null => Kind::NullValue(0),
        jwt::Value::Bool(bool) => Kind::BoolValue(*bool),
        jwt::Value::Integer(number) => Kind::NumberValue(*number as f64),
        jwt::Value::Fraction(number) => Kind::NumberValue(*number),
        jwt::Value::Text(text) => Kind::StringValue(text.clone()),
        jwt::Value::List(list) => Kind::ListValue(ListValue {
            values: list.iter().map(value).collect(),
        }),
        jwt::Value::Object(object) => Kind::StructValue(structure(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn key_set((trust_domain, keys): (&TrustDomain, &jwt::Keys)) -> (String, Vec<u8>) {
    let set = keys.to_json(jwt::svid::USE);
    (format!("spiffe://{trust_domain}"), set.into_bytes())
}

/// The caller means to ask this API, and nobody makes it.
fn meant<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get(HEADER) {
        Some(value) if value.as_bytes() == b"true" => Ok(()),
        Some(_) | None => Err(Status::invalid_argument(format!(
            "the metadata `{HEADER}: true` is missing"
        ))),
    }
}

/// What the answer to FetchX509SVID is made of.
struct Own {
    svids: Vec<Arc<Svid>>,
    known: Known,
}

/// Whom to believe, as far as an answer tells it.
struct Known(Trust);

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.0.bundles == other.0.bundles && self.0.crls == other.0.crls
    }
}

/// Two certificates are one if they were signed as one: a key has one certificate at a time.
impl PartialEq for Own {
    fn eq(&self, other: &Self) -> bool {
        let chains = |own: &Self| {
            own.svids
                .iter()
                .map(|svid| svid.chain().to_vec())
                .collect::<Vec<_>>()
        };
        self.known == other.known && chains(self) == chains(other)
    }
}

impl Own {
    fn of(entitled: &Entitled) -> Self {
        Self {
            svids: entitled.svids.clone(),
            known: Known(entitled.trust.clone()),
        }
    }

    fn message(&self) -> Result<X509svidResponse, Status> {
        let svids: Result<Vec<_>, _> = self.svids.iter().map(|svid| self.svid(svid)).collect();
        let own: Vec<&TrustDomain> = self
            .svids
            .iter()
            .map(|svid| svid.id().trust_domain())
            .collect();
        let foreign = self
            .known
            .0
            .bundles
            .iter()
            .filter(|bundle| !own.contains(&bundle.trust_domain()));
        Ok(X509svidResponse {
            svids: svids?,
            crl: lists(&self.known.0),
            federated_bundles: foreign.map(by_trust_domain).collect(),
        })
    }

    fn svid(&self, svid: &Svid) -> Result<X509svid, Status> {
        let bundle = self.known.0.bundles.get(svid.id().trust_domain());
        let bundle =
            bundle.ok_or_else(|| Status::unavailable("the trust bundle is not there yet"))?;
        let key = svid.key_pkcs8();
        let key = key.ok_or_else(|| Status::internal("the key is not PKCS#8"))?;
        Ok(X509svid {
            spiffe_id: svid.id().to_string(),
            x509_svid: joined(svid.chain()),
            x509_svid_key: key.expose().to_vec(),
            bundle: joined(bundle.roots()),
            hint: String::new(),
        })
    }
}

fn by_trust_domain(bundle: &Bundle) -> (String, Vec<u8>) {
    (
        format!("spiffe://{}", bundle.trust_domain()),
        joined(bundle.roots()),
    )
}

fn joined(certificates: &[impl AsRef<[u8]>]) -> Vec<u8> {
    certificates
        .iter()
        .flat_map(AsRef::as_ref)
        .copied()
        .collect()
}

/// The revocation lists of the mesh's authorities.
fn lists(trust: &Trust) -> Vec<Vec<u8>> {
    trust.crls.iter().map(|list| list.to_vec()).collect()
}
