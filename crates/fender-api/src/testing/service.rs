//! The calls of the control plane for tests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fender_identity::{PeerSvid, SpiffeId, csr};
use fender_runtime::clock::sleep_until;
use fender_runtime::drain::Drain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::{Control, Heard, ORDERS, START, id};
use crate::code::Code;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::admin_server::Admin;
use crate::proto::control::v1::distribution_server::Distribution;
use crate::proto::control::v1::identity_server::Identity;
use crate::proto::control::v1::nodes_server::Nodes;
use crate::tls::ConnectInfo;

#[derive(Clone)]
pub(super) struct Service {
    pub(super) control: Arc<Control>,
    pub(super) drain: Drain,
}

impl Service {
    /// Resolves when the certificate of a connection has expired, as a stream must end then.
    async fn expired(control: Arc<Control>, info: ConnectInfo) -> Status {
        if let Some(peer) = info.peer.svid() {
            sleep_until(&*control.clock, peer.not_after()).await;
        }
        Code::NotAuthenticated.status("the certificate of this connection has expired")
    }
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Identity for Service {
    async fn attest(
        &self,
        request: Request<proto::AttestRequest>,
    ) -> Result<Response<proto::SvidResponse>, Status> {
        self.control.attest(request.into_inner()).map(Response::new)
    }

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::SvidResponse>, Status> {
        let info = request.extensions().get::<ConnectInfo>().unwrap().clone();
        self.control
            .renew(&info, request.into_inner())
            .map(Response::new)
    }

    async fn sign_jwt(
        &self,
        _: Request<proto::SignJwtRequest>,
    ) -> Result<Response<proto::SignedJwt>, Status> {
        Err(Code::IdentityUnknown.status("this control plane has no keys of tokens"))
    }
}

#[tonic::async_trait]
impl Distribution for Service {
    type SubscribeStream = Answer<proto::Update>;
    type WatchCredentialStream = Answer<proto::CredentialValue>;

    async fn subscribe(
        &self,
        request: Request<Streaming<proto::Report>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let info = request.extensions().get::<ConnectInfo>().unwrap().clone();
        if info.peer.id() != Some(&id(ORDERS)) || info.chain.is_empty() {
            return Err(Code::NotAuthenticated.status("who?"));
        }
        if let Some(code) = *self.control.refuse_streams.lock().unwrap() {
            return Err(code.status("as the test wants it"));
        }
        let (send, receive) = mpsc::channel(4);
        let mut updates = self.control.updates.subscribe();
        let mut trust = self.control.trust.subscribe();
        updates.mark_changed();
        trust.mark_changed();
        let mut reports = request.into_inner();
        let control = self.control.clone();
        let drain = self.drain.clone();
        self.drain.spawn(async move {
            let mut expired = std::pin::pin!(Self::expired(control.clone(), info));
            loop {
                tokio::select! {
                    biased;
                    () = drain.stopping() => return,
                    status = &mut expired => return drop(send.send(Err(status)).await),
                    Ok(()) = trust.changed() => {
                        let kind = Some(proto::update::Kind::Trust(trust.borrow_and_update().clone()));
                        if send.send(Ok(proto::Update { kind })).await.is_err() {
                            return;
                        }
                    }
                    report = reports.next() => match report {
                        Some(Ok(proto::Report { kind: Some(kind) })) => {
                            let ended = matches!(kind, proto::report::Kind::Ended(_));
                            control.tell(Heard::Report(kind));
                            if ended && control.takes_ends.load(Ordering::Relaxed) {
                                let kind = Some(proto::update::Kind::Taken(proto::Taken {}));
                                let _ = send.send(Ok(proto::Update { kind })).await;
                            }
                        }
                        Some(_) | None => return,
                    },
                    Ok(()) = updates.changed() => {
                        let snapshot = updates.borrow_and_update().clone();
                        let Some(snapshot) = snapshot else { continue };
                        let kind = Some(proto::update::Kind::Snapshot(snapshot));
                        if send.send(Ok(proto::Update { kind })).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn watch_credential(
        &self,
        request: Request<proto::CredentialRequest>,
    ) -> Result<Response<Self::WatchCredentialStream>, Status> {
        if request.get_ref().name != "shop/smtp" {
            return Err(Code::Denied.status("not yours"));
        }
        let (send, receive) = mpsc::channel(4);
        let mut values = self.control.credential.subscribe();
        let drain = self.drain.clone();
        let info = request.extensions().get::<ConnectInfo>().unwrap().clone();
        let control = self.control.clone();
        self.drain.spawn(async move {
            let mut expired = std::pin::pin!(Self::expired(control, info));
            loop {
                let value = values.borrow_and_update().clone();
                if send.send(Ok(value)).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = drain.stopping() => return,
                    status = &mut expired => return drop(send.send(Err(status)).await),
                    changed = values.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

impl Service {
    fn administrator<T>(request: &Request<T>) -> Result<(), Status> {
        let info = request.extensions().get::<ConnectInfo>().unwrap();
        match info.peer.id().and_then(SpiffeId::admin_name) {
            Some(_) => Ok(()),
            None => Err(Code::Denied.status("this call is for administrators")),
        }
    }
}

#[tonic::async_trait]
impl Admin for Service {
    type CredentialsStream =
        Pin<Box<dyn Stream<Item = Result<proto::CredentialsAnswer, Status>> + Send>>;

    /// Some holders of one, and no head.
    async fn credentials(
        &self,
        request: Request<proto::CredentialsRequest>,
    ) -> Result<Response<Self::CredentialsStream>, Status> {
        Self::administrator(&request)?;
        let told = proto::CredentialHolders {
            name: request.into_inner().name,
            ..Default::default()
        };
        let kind = proto::credentials_answer::Kind::Holders(told);
        let told = Ok(proto::CredentialsAnswer { kind: Some(kind) });
        Ok(Response::new(Box::pin(tokio_stream::iter([told]))))
    }

    /// Finds one thing wrong with each file.
    async fn apply(
        &self,
        request: Request<proto::ApplyRequest>,
    ) -> Result<Response<proto::ApplyResponse>, Status> {
        Self::administrator(&request)?;
        let files = request.into_inner().files.into_iter();
        let problem = |file: proto::SourceFile| proto::Problem {
            file: file.name,
            message: format!("{} bytes are too many", file.text.len()),
            ..Default::default()
        };
        let problems = files.map(problem).collect();
        Ok(Response::new(proto::ApplyResponse {
            problems,
            ..Default::default()
        }))
    }

    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::CreateTokenResponse>, Status> {
        Self::administrator(&request)?;
        let token = self.control.token(1, None);
        Ok(Response::new(proto::CreateTokenResponse {
            secret: token.secret().expose().to_vec(),
            identity: token.identity().to_string(),
            ca_pins: token
                .pins()
                .iter()
                .map(|pin| pin.as_bytes().to_vec())
                .collect(),
            expires_unix: (START + request.get_ref().ttl_seconds) as i64,
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<proto::ListTokensRequest>,
    ) -> Result<Response<proto::ListTokensResponse>, Status> {
        Self::administrator(&request)?;
        // Whatever is asked for: as a server that does not move on.
        Ok(Response::new(proto::ListTokensResponse {
            tokens: Vec::new(),
            next: "a".to_owned(),
        }))
    }

    async fn revoke_tokens(
        &self,
        request: Request<proto::RevokeTokensRequest>,
    ) -> Result<Response<proto::RevokeTokensResponse>, Status> {
        Self::administrator(&request)?;
        Err(Code::NotFound.status("no such token"))
    }

    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        Err(Code::Internal.status("not in tests"))
    }

    async fn explain(
        &self,
        _: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::DecisionRecord>, Status> {
        Err(Code::NotFound.status("no such decision"))
    }

    async fn revoke(
        &self,
        request: Request<proto::RevokeRequest>,
    ) -> Result<Response<proto::Revocation>, Status> {
        Self::administrator(&request)?;
        Err(Code::NotFound.status("nobody is concerned"))
    }

    async fn list_revocations(
        &self,
        request: Request<proto::ListRevocationsRequest>,
    ) -> Result<Response<proto::ListRevocationsResponse>, Status> {
        Self::administrator(&request)?;
        Ok(Response::new(proto::ListRevocationsResponse::default()))
    }

    async fn revocation_lists(
        &self,
        _: Request<proto::RevocationListsRequest>,
    ) -> Result<Response<proto::RevocationListsResponse>, Status> {
        Err(Code::NotFound.status("this control plane signs no lists"))
    }

    async fn audit_log(
        &self,
        request: Request<proto::AuditLogRequest>,
    ) -> Result<Response<proto::AuditLogResponse>, Status> {
        Self::administrator(&request)?;
        // Whatever is asked for: as a server that does not move on.
        let entries = vec![proto::AuditEntry {
            sequence: 1,
            ..proto::AuditEntry::default()
        }];
        Ok(Response::new(proto::AuditLogResponse { entries }))
    }

    async fn revisions(
        &self,
        request: Request<proto::RevisionsRequest>,
    ) -> Result<Response<proto::RevisionsResponse>, Status> {
        Self::administrator(&request)?;
        // Whatever is asked for: as a server that does not move on.
        let revisions = vec![proto::Revision {
            number: 7,
            ..proto::Revision::default()
        }];
        let in_force = 7;
        Ok(Response::new(proto::RevisionsResponse {
            revisions,
            in_force,
        }))
    }

    async fn show_revision(
        &self,
        request: Request<proto::ShowRevisionRequest>,
    ) -> Result<Response<proto::ShowRevisionResponse>, Status> {
        Self::administrator(&request)?;
        Err(Code::NotFound.status("no such revision"))
    }

    async fn compare(
        &self,
        request: Request<proto::CompareRequest>,
    ) -> Result<Response<proto::CompareResponse>, Status> {
        Self::administrator(&request)?;
        Err(Code::NotFound.status("no such revision"))
    }

    async fn issue_svid(
        &self,
        request: Request<proto::IssueSvidRequest>,
    ) -> Result<Response<proto::SvidResponse>, Status> {
        Self::administrator(&request)?;
        let csr = csr::parse(&request.get_ref().csr).unwrap();
        Ok(Response::new(self.control.issue(&csr)))
    }

    async fn rotate_authority(
        &self,
        request: Request<proto::RotateAuthorityRequest>,
    ) -> Result<Response<proto::Authority>, Status> {
        Self::administrator(&request)?;
        Ok(Response::new(proto::Authority {
            subject: request.get_ref().role().as_str_name().to_owned(),
            ..proto::Authority::default()
        }))
    }
}

/// Everybody may be `shop/orders`.
#[tonic::async_trait]
impl Nodes for Service {
    type FollowStream = Answer<proto::NodeUpdate>;

    async fn entitle(
        &self,
        request: Request<proto::Facts>,
    ) -> Result<Response<proto::Entitlement>, Status> {
        let info = request.extensions().get::<ConnectInfo>().unwrap();
        self.control.tell(Heard::Entitle {
            by: info.remote.to_string(),
        });
        Ok(Response::new(proto::Entitlement {
            identities: vec![ORDERS.to_owned()],
        }))
    }

    async fn issue_for(
        &self,
        request: Request<proto::IssueForRequest>,
    ) -> Result<Response<proto::SvidResponse>, Status> {
        let csr = csr::parse(&request.get_ref().csr).unwrap();
        Ok(Response::new(self.control.issue(&csr)))
    }

    async fn sign_jwt_for(
        &self,
        _: Request<proto::SignJwtForRequest>,
    ) -> Result<Response<proto::SignedJwt>, Status> {
        Err(Code::IdentityUnknown.status("this control plane has no keys of tokens"))
    }

    async fn follow(
        &self,
        request: Request<proto::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let info = request.extensions().get::<ConnectInfo>().unwrap();
        let serial = info.peer.svid().map(PeerSvid::serial);
        if serial.is_some() && serial == self.control.revoked_agent.lock().unwrap().as_ref() {
            return Err(Code::Revoked.status("as the test wants it"));
        }
        let (send, receive) = mpsc::channel(4);
        let mut trust = self.control.trust.subscribe();
        let mut placed = self.control.placed.subscribe();
        trust.mark_changed();
        placed.mark_changed();
        let drain = self.drain.clone();
        self.drain.spawn(async move {
            loop {
                let kind = tokio::select! {
                    biased;
                    () = drain.stopping() => return,
                    Ok(()) = trust.changed() => {
                        proto::node_update::Kind::Trust(trust.borrow_and_update().clone())
                    }
                    Ok(()) = placed.changed() => {
                        proto::node_update::Kind::PlacedAt(*placed.borrow_and_update())
                    }
                };
                if send
                    .send(Ok(proto::NodeUpdate { kind: Some(kind) }))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}
