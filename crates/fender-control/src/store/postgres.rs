//! The way to a PostgreSQL server, and what every connection to it asks for.
//!
//! What is asked for guards against a replica or a network that falls silent. A transaction that nobody continues is
//! ended by the server, so that it holds no lock for longer; and a commit is answered only when it is on disk, whatever
//! the server's default is.

use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection as _};

use super::StoreError;
use super::place::Access;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(5);
/// Readers at once, the listener among them.
const READERS: u32 = 8;
/// The writer's, and one that is being closed.
const WRITERS: u32 = 3;
/// After how long unused a connection is tried before it is trusted: the server may have been restarted.
const UNTRIED: Duration = Duration::from_secs(1);

/// Said on every new connection.
const SETTINGS: &str = "SELECT \
    set_config('idle_in_transaction_session_timeout', '5s', false), \
    set_config('lock_timeout', '8s', false), \
    set_config('statement_timeout', '9s', false), \
    set_config('tcp_keepalives_idle', '5', false), \
    set_config('tcp_keepalives_interval', '2', false), \
    set_config('tcp_keepalives_count', '3', false), \
    CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false) END";

impl Access {
    /// Connections for the writer and for readers, to a schema that is up to date.
    pub(super) async fn connect(&self) -> Result<(PgPool, PgPool), StoreError> {
        let options = self
            .options
            .clone()
            .application_name("fender control")
            .disable_statement_logging();
        let writes = pool(WRITERS)
            .connect_with(options.clone())
            .await
            .map_err(|source| StoreError::Open {
                place: self.place(),
                source,
            })?;
        // Of replicas that start together one migrates and the others wait.
        sqlx::migrate!("./migrations/postgres")
            .run(&writes)
            .await
            .map_err(|source| StoreError::Migrate {
                place: self.place(),
                source,
            })?;
        Ok((writes, pool(READERS).connect_lazy_with(options)))
    }
}

fn pool(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(CONNECT)
        .test_before_acquire(false)
        .before_acquire(|connection, about| {
            Box::pin(async move {
                if about.idle_for < UNTRIED {
                    return Ok(true);
                }
                Ok(matches!(
                    tokio::time::timeout(CONNECT, connection.ping()).await,
                    Ok(Ok(()))
                ))
            })
        })
        .after_connect(|connection, _| {
            Box::pin(async move { sqlx::query(SETTINGS).execute(connection).await.map(drop) })
        })
}
