//! Against an AWS in memory, by a paused clock.

mod identities;
mod secrets;
mod server;

use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::{
    AwsParameterVersion, AwsPlace, AwsSecret, AwsSecretVersion, AwsStore,
};
use fender_identity::Secret;
use fender_runtime::clock::{TestClock, UnixTime};
use tokio::time::Instant;

use self::server::Server;
use super::*;

const MINUTE: Duration = Duration::from_secs(60);
/// 2027-01-15T08:00:00Z.
const NOW: u64 = 1_800_000_000;

/// Everything around one AWS.
struct World {
    server: Arc<Server>,
    clock: Arc<TestClock>,
    aws: Aws,
}

impl World {
    /// With these variables set.
    fn with(variables: &[(&'static str, &str)]) -> Self {
        Self::allowing(variables, AllowAws::Any)
    }

    /// With keys that never end.
    fn new() -> Self {
        Self::with(&KEYS)
    }

    fn allowing(variables: &[(&'static str, &str)], allow: AllowAws) -> Self {
        let server = Arc::new(Server::default());
        let clock = TestClock::new(UnixTime::since_unix_epoch(Duration::from_secs(NOW)));
        let set = variables
            .iter()
            .map(|(name, value)| (*name, Secret::from((*value).to_owned())));
        let access = AwsAccess {
            settings: AwsSettings::new(set),
            allow,
        };
        let aws = Aws::by(
            access,
            Arc::new(Arc::clone(&server)),
            Arc::<TestClock>::clone(&clock),
        );
        Self { server, clock, aws }
    }

    fn source(&self, secret: &AwsSecret) -> AwsSource {
        self.aws.source(secret)
    }

    async fn fetch(&self, secret: &AwsSecret) -> Result<String, FetchError> {
        text(self.source(secret).fetch().await)
    }

    /// Both clocks go on.
    async fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }
}

const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "AKIDENV"),
    ("AWS_SECRET_ACCESS_KEY", "canary-secret-key"),
];

fn text(fetched: Result<Fetched, FetchError>) -> Result<String, FetchError> {
    fetched.map(|fetched| fetched.value.expose_str().unwrap().to_owned())
}

fn store() -> AwsStore {
    AwsStore {
        region: "eu-central-1".parse().unwrap(),
        endpoint: None,
        roots: None,
    }
}

fn secret(id: &str, key: Option<&str>) -> AwsSecret {
    let version = AwsSecretVersion::Stage("AWSCURRENT".to_owned());
    let id = id.parse().unwrap();
    at(AwsPlace::Secret { id, version }, key)
}

fn parameter(name: &str, version: AwsParameterVersion) -> AwsSecret {
    let name = name.parse().unwrap();
    at(AwsPlace::Parameter { name, version }, None)
}

fn at(at: AwsPlace, key: Option<&str>) -> AwsSecret {
    AwsSecret {
        store: store(),
        at,
        key: key.map(ToOwned::to_owned),
        refresh: MINUTE,
    }
}
