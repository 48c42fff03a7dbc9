//! This machine's credentials for AWS, found where AWS's SDKs look and in their order: variables, a web identity, the shared files, the
//! container's endpoint, the instance's. The first that is configured is the one; if it fails, that is said, and nobody else's
//! identity is taken instead.
//!
//! One set for all that is asked, got once however many wait for it, and renewed before it ends. While it is good it is used,
//! whether another can be had or not. Nothing of it is kept on disk.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html>

use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use fender_config::snapshot::{AwsRegion, AwsService};
use fender_identity::Secret;
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::SharedClock;
use fender_runtime::random;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::keys::{Granted, Keys, served};
use super::profile::{self, Base, Plan, Profiles, Role};
use super::settings::{self, AwsSettings};
use super::sts::Sts;
use super::wire::{Address, Failure, Request, Wire, own_file, read, said_in_json};
use crate::FetchError;
use crate::http::Method;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(5 * 60);
/// The same, where nobody has refused.
const LONGEST_OUTAGE: Duration = Duration::from_secs(30);
/// Credentials as young as this that are not accepted are not got anew once more.
const YOUNG: Duration = Duration::from_secs(10);
/// So long before their end credentials are renewed at the latest, in seconds; if that is more than a quarter of their time, then after
/// three quarters.
const MARGIN: u64 = 5 * 60;
/// Credentials that end within so many seconds are over: a request with them might come too late.
const LEAST: u64 = 5;
/// How long what is in a file without an end is used before the file is looked at again, in seconds.
const LOOK_AGAIN: u64 = 5 * 60;
/// How long an endpoint of the machine may take to answer. It is near, or not there.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest token.
const MAX_TOKEN: u64 = 64 * 1024;
/// Where ECS serves the credentials of a task.
const ECS: &str = "http://169.254.170.2";
/// Where an instance finds out about itself.
const INSTANCE: &str = "http://169.254.169.254";
const INSTANCE_CREDENTIALS: &str = "latest/meta-data/iam/security-credentials/";
/// The longest name of a role, and of what else an instance's endpoint answers that is put into a URL.
const LONGEST_ROLE: usize = 64;

/// The credentials of this machine.
#[derive(Debug)]
pub(super) struct Chain {
    settings: AwsSettings,
    wire: Arc<dyn Wire>,
    clock: SharedClock,
    state: Mutex<State>,
    /// Until when nobody needs to ask, if nobody could be asked.
    retry: StdMutex<Option<Instant>>,
}

#[derive(Debug)]
struct State {
    current: Option<Arc<Login>>,
    failed: Option<(FetchError, Instant)>,
    backoff: Backoff,
    /// No renewal before.
    again: Instant,
    epoch: u64,
}

/// One set.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) keys: Keys,
    epoch: u64,
    made: Instant,
    /// In seconds since 1970.
    until: Option<u64>,
    renew: Option<u64>,
}

impl Login {
    fn is_over(&self, now: u64) -> bool {
        self.until.is_some_and(|until| now + LEAST >= until)
    }

    fn is_due(&self, now: u64) -> bool {
        self.renew.is_some_and(|renew| now >= renew)
    }

    fn same_as(&self, other: &Self) -> bool {
        let parts = |login: &Self| login.keys.parts().cloned().collect::<Vec<_>>();
        let (one, other) = (parts(self), parts(other));
        one.len() == other.len() && one.iter().zip(&other).all(|(one, other)| one.ct_eq(other))
    }
}

impl Chain {
    pub(super) fn new(settings: AwsSettings, wire: Arc<dyn Wire>, clock: SharedClock) -> Self {
        Self {
            settings,
            wire,
            clock,
            state: Mutex::new(State {
                current: None,
                failed: None,
                backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
                again: Instant::now(),
                epoch: 0,
            }),
            retry: StdMutex::new(None),
        }
    }

    /// When it is worth trying again after nobody could be asked.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        *self.retry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to sign with.
    pub(super) async fn login(&self) -> Result<Arc<Login>, FetchError> {
        let mut state = self.state.lock().await;
        let now = self.now();
        if let Some(current) = state.current.clone().filter(|one| !one.is_over(now)) {
            if current.is_due(now) && Instant::now() >= state.again {
                match self.find().await {
                    Ok(granted) => return Ok(self.adopt(&mut state, granted)),
                    Err(error) => {
                        tracing::warn!(%error, "AWS credentials were not renewed yet");
                        state.again = Instant::now() + state.backoff.next();
                    }
                }
            }
            return Ok(current);
        }
        state.current = None;
        self.anew(&mut state).await
    }

    /// Another one than `refused`, which AWS does not accept; none if there is no other.
    pub(super) async fn instead_of(
        &self,
        refused: &Login,
    ) -> Result<Option<Arc<Login>>, FetchError> {
        let mut state = self.state.lock().await;
        match &state.current {
            Some(current) if current.epoch != refused.epoch => {
                return Ok(Some(Arc::clone(current)));
            }
            Some(_) if refused.made.elapsed() < YOUNG => return Ok(None),
            Some(_) | None => {}
        }
        state.current = None;
        let fresh = self.anew(&mut state).await?;
        Ok(Some(fresh).filter(|fresh| !fresh.same_as(refused)))
    }

    async fn anew(&self, state: &mut State) -> Result<Arc<Login>, FetchError> {
        if let Some((error, until)) = &state.failed
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        match self.find().await {
            Ok(granted) => Ok(self.adopt(state, granted)),
            Err(error) => {
                let wait = state.backoff.next();
                let wait = match error.is_refusal() {
                    true => wait,
                    false => wait.min(LONGEST_OUTAGE),
                };
                let until = Instant::now() + wait;
                state.failed = Some((error.clone(), until));
                *self.retry.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
                Err(error)
            }
        }
    }

    fn adopt(&self, state: &mut State, granted: Granted) -> Arc<Login> {
        let now = self.now();
        let Granted { keys, until, from } = granted;
        let lasts = until.map(|until| until.saturating_sub(now));
        let margin = lasts.map(|lasts| (lasts / 4).clamp(1, MARGIN));
        let jitter = margin.map(|margin| (margin as f64 * random::unit() / 4.0) as u64);
        let renew = until
            .zip(margin)
            .map(|(until, margin)| until - margin - jitter.unwrap_or_default().min(margin));
        let known = state.current.as_ref();
        if known.is_some_and(|known| known.until == until && until.is_some()) {
            // The same as before: whoever makes them does not have others yet.
            state.again = Instant::now() + state.backoff.next();
        } else {
            state.backoff.reset();
            state.again = Instant::now();
        }
        state.epoch += 1;
        let login = Arc::new(Login {
            keys,
            epoch: state.epoch,
            made: Instant::now(),
            until,
            renew: Some(renew.unwrap_or(now + LOOK_AGAIN)),
        });
        if known.is_none_or(|known| !known.same_as(&login)) {
            tracing::info!(%from, seconds = lasts, "AWS credentials");
        }
        state.failed = None;
        *self.retry.lock().unwrap_or_else(PoisonError::into_inner) = None;
        state.current = Some(Arc::clone(&login));
        login
    }

    fn now(&self) -> u64 {
        self.clock.now().as_secs()
    }

    /// Whoever is the first to have some.
    async fn find(&self) -> Result<Granted, FetchError> {
        let found = self.look().await?;
        let now = self.now();
        if found.until.is_some_and(|until| now + LEAST >= until) {
            return Err(outage(&format!(
                "those from {} have ended already; does this machine's clock go right?",
                found.from
            )));
        }
        Ok(found)
    }

    async fn look(&self) -> Result<Granted, FetchError> {
        if let Some(keys) = self.in_environment().map_err(|why| outage(&why))? {
            return Ok(keys);
        }
        if let Some(path) = self.settings.path(settings::WEB_IDENTITY_TOKEN_FILE) {
            let arn = self.settings.text(settings::ROLE_ARN);
            let arn = arn.ok_or_else(|| {
                outage("AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not")
            })?;
            let role = Role {
                arn: arn.to_owned(),
                session: self
                    .settings
                    .text(settings::ROLE_SESSION_NAME)
                    .map(ToOwned::to_owned),
                external_id: None,
                duration: None,
            };
            let region = self.region(None)?;
            return self.with_web_identity(&role, &path, &region).await;
        }
        if let Some(found) = self.in_profile().await? {
            return Ok(found);
        }
        if let Some(found) = self.of_container().await? {
            return Ok(found);
        }
        if self.settings.is_true(settings::INSTANCE_DISABLED) {
            return Err(outage(
                "there are none: no variables, no web identity, no profile, no container's endpoint, and AWS_EC2_METADATA_DISABLED is set",
            ));
        }
        self.of_instance().await
    }

    fn in_environment(&self) -> Result<Option<Granted>, String> {
        let of = |name| self.settings.secret(name).cloned();
        let (id, secret) = (of(settings::ACCESS_KEY_ID), of(settings::SECRET_ACCESS_KEY));
        match (id, secret) {
            (Some(id), Some(secret)) => {
                let keys = Keys::new(id, secret, of(settings::SESSION_TOKEN));
                Ok(Some(Granted {
                    keys: keys.map_err(|why| format!("in the environment {why}"))?,
                    until: None,
                    from: "the environment".to_owned(),
                }))
            }
            (None, None) => Ok(None),
            _ => Err(
                "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY one is set and the other is not"
                    .to_owned(),
            ),
        }
    }

    async fn in_profile(&self) -> Result<Option<Granted>, FetchError> {
        let [credentials, config] = self.settings.profile_files();
        let credentials = self.shared_file(credentials).await?;
        let config = self.shared_file(config).await?;
        let named = self.settings.text(settings::PROFILE);
        if credentials.is_none() && config.is_none() && named.is_none() {
            return Ok(None);
        }
        let profiles = profile::read(credentials.as_ref(), config.as_ref());
        let profiles = profiles.map_err(|why| outage(&why))?;
        let name = named.unwrap_or("default");
        let plan = match profiles.plan(name) {
            Ok(Some(plan)) => plan,
            Ok(None) => return Ok(None),
            // Nobody said that there is one.
            Err(_) if named.is_none() && !profiles.has(name) => return Ok(None),
            Err(why) => return Err(outage(&why)),
        };
        self.follow(plan, &profiles, name).await.map(Some)
    }

    async fn follow(
        &self,
        plan: Plan,
        profiles: &Profiles,
        name: &str,
    ) -> Result<Granted, FetchError> {
        let Plan { base, roles } = plan;
        let region = || self.region(profiles.region(name));
        let from = format!("the profile `{name}`");
        let wanted = |what: &str| outage(&format!("{from} wants {what}, and there is none"));
        let mut found = match base {
            Base::Keys(keys) => Granted {
                keys,
                until: None,
                from: from.clone(),
            },
            Base::Environment => {
                let found = self.in_environment().map_err(|why| outage(&why))?;
                found.ok_or_else(|| wanted("that of the environment"))?
            }
            Base::Container => {
                let found = self.of_container().await?;
                found.ok_or_else(|| wanted("that of a container"))?
            }
            Base::Instance => self.of_instance().await?,
            Base::WebIdentity { role, token } => {
                self.with_web_identity(&role, &token, &region()?).await?
            }
        };
        for role in roles {
            let region = region()?;
            let sts = self.sts(&region)?;
            let granted = sts.with_keys(&role, &found.keys).await;
            found = granted.map_err(|failure| assumed(failure, &role))?;
        }
        Ok(found)
    }

    /// One of the shared files, if it is there.
    async fn shared_file(
        &self,
        path: Option<std::path::PathBuf>,
    ) -> Result<Option<Secret>, FetchError> {
        let Some(path) = path else {
            return Ok(None);
        };
        match own_file(&path, profile::LIMIT).await {
            Ok(text) => Ok(Some(text)),
            Err(FetchError::Missing(_)) => Ok(None),
            // Where nobody put one at the start, a confined process does not see one later.
            Err(FetchError::Denied(_)) if !self.settings.names_profiles() => Ok(None),
            Err(error) => Err(outage(&error.to_string())),
        }
    }

    async fn with_web_identity(
        &self,
        role: &Role,
        path: &std::path::Path,
        region: &AwsRegion,
    ) -> Result<Granted, FetchError> {
        let token = own_line(path).await?;
        let granted = self.sts(region)?.with_web_identity(role, &token).await;
        granted.map_err(|failure| assumed(failure, role))
    }

    fn sts<'a>(&'a self, region: &'a AwsRegion) -> Result<Sts<'a>, FetchError> {
        let at = match self.settings.endpoint(AwsService::Sts) {
            Some(url) => Address::of_store(&url.map_err(|why| outage(&why))?),
            None => own_address(region, AwsService::Sts).map_err(|why| outage(&why))?,
        };
        Ok(Sts {
            wire: &*self.wire,
            at,
            region: region.as_str(),
            now: self.now(),
        })
    }

    /// Where roles are assumed: as the machine says, not as a document does.
    fn region(&self, of_profile: Option<&str>) -> Result<AwsRegion, FetchError> {
        let said = self.settings.region();
        let said = said.or_else(|| {
            let text = of_profile?;
            let parsed = text
                .parse()
                .map_err(|error| format!("region of the profile: {error}"));
            Some(parsed)
        });
        let none = "AWS_REGION is not set, which says where the role is to be assumed";
        said.unwrap_or(Err(none.to_owned()))
            .map_err(|why| outage(&why))
    }

    async fn of_container(&self) -> Result<Option<Granted>, FetchError> {
        let relative = self.settings.text(settings::RELATIVE_URI);
        let full = self.settings.text(settings::FULL_URI);
        let (name, url) = match (relative, full) {
            (Some(path), _) if path.starts_with('/') => {
                (settings::RELATIVE_URI, format!("{ECS}{path}"))
            }
            (Some(_), _) => {
                let why = format!("{} does not begin with `/`", settings::RELATIVE_URI);
                return Err(outage(&why));
            }
            (None, Some(url)) => (settings::FULL_URI, url.to_owned()),
            (None, None) => return Ok(None),
        };
        let to = Address::of_machine(&url).map_err(|why| outage(&format!("{name}: {why}")))?;
        let token = match self.settings.path(settings::AUTHORIZATION_TOKEN_FILE) {
            Some(path) => Some(own_line(&path).await?),
            None => self.settings.secret(settings::AUTHORIZATION_TOKEN).cloned(),
        };
        let proofs: Vec<_> = token.iter().collect();
        let headers = token.iter().cloned();
        let headers = headers.map(|token| ("authorization", token)).collect();
        let place = "the container's endpoint";
        let body = self.get(Method::Get, to, headers, &proofs, place).await?;
        let read = served(&body, place.to_owned());
        read.map(Some)
            .map_err(|why| outage(&format!("{place}: {why}")))
    }

    /// By a session (IMDSv2), and in no other way.
    async fn of_instance(&self) -> Result<Granted, FetchError> {
        let place = "the instance's endpoint (none of the other places that AWS's SDKs look at is configured)";
        let base = self.settings.text(settings::INSTANCE_ENDPOINT);
        let base = base.unwrap_or(INSTANCE).trim_end_matches('/');
        let at = |path: &str| {
            let parsed = Address::of_machine(&format!("{base}/{path}"));
            parsed.map_err(|why| outage(&format!("{}: {why}", settings::INSTANCE_ENDPOINT)))
        };
        let hour = Secret::from("3600".to_owned());
        let headers = vec![("x-aws-ec2-metadata-token-ttl-seconds", hour)];
        let session = self
            .get(Method::Put, at("latest/api/token")?, headers, &[], place)
            .await?;
        let session = Secret::new(session.expose().trim_ascii().to_vec());
        let shown = || vec![("x-aws-ec2-metadata-token", session.clone())];
        let path = at(INSTANCE_CREDENTIALS)?;
        let role = self
            .get(Method::Get, path, shown(), &[&session], place)
            .await?;
        let role = role.expose_str().unwrap_or_default().trim();
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@-_".contains(&byte);
        let dots = matches!(role, "." | "..");
        if role.is_empty() || role.len() > LONGEST_ROLE || dots || !role.bytes().all(named) {
            return Err(outage(&format!("{place}: it names no role")));
        }
        let path = at(&format!("{INSTANCE_CREDENTIALS}{role}"))?;
        let body = self
            .get(Method::Get, path, shown(), &[&session], place)
            .await?;
        let read = served(&body, format!("the instance's role `{role}`"));
        read.map_err(|why| outage(&format!("{place}: {why}")))
    }

    async fn get(
        &self,
        method: Method,
        to: Address,
        headers: Vec<(&'static str, Secret)>,
        proofs: &[&Secret],
        place: &str,
    ) -> Result<Secret, FetchError> {
        let request = Request {
            method,
            to,
            headers,
            body: None,
            patience: PATIENCE,
            roots: None,
        };
        let answered = self.wire.ask(&request).await;
        // Whatever it is, it says nothing of a secret.
        read(answered, said_in_json, proofs)
            .map_err(|failure| outage(&failure.into_error(place).to_string()))
    }
}

/// AWS's own place of an API.
pub(super) fn own_address(region: &AwsRegion, service: AwsService) -> Result<Address, String> {
    let url = format!("https://{}", region.host(service));
    let url: fender_config::StoreUrl = url.parse().map_err(|error| format!("{error}"))?;
    Ok(Address::of_store(&url))
}

/// The one line of a file that the machine's operator named, read anew each time: whoever made it makes it anew.
async fn own_line(path: &std::path::Path) -> Result<Secret, FetchError> {
    let read = own_file(path, MAX_TOKEN).await;
    let read = read.map_err(|error| outage(&error.to_string()))?;
    let line = Secret::new(read.expose().trim_ascii().to_vec());
    let visible = line
        .expose()
        .iter()
        .all(|b| b.is_ascii_graphic() || *b == b' ');
    if line.is_empty() || !visible {
        return Err(outage(&format!(
            "`{}` does not hold one line of visible characters",
            path.display()
        )));
    }
    Ok(line)
}

/// That a role may not be assumed is a refusal; whatever else happens says nothing of the secrets.
fn assumed(failure: Failure, role: &Role) -> FetchError {
    let place = format!("AWS credentials: the role `{}`", role.arn.escape_default());
    match failure.into_error(&place) {
        denied @ FetchError::Denied(_) => denied,
        FetchError::Outage(why) | FetchError::Missing(why) | FetchError::Malformed(why) => {
            FetchError::Outage(why)
        }
    }
}

fn outage(why: &str) -> FetchError {
    FetchError::Outage(format!("AWS credentials: {why}"))
}
