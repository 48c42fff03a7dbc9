//! One way to ask either database: SQL that both read the same, with values of three kinds, and rows by column name.
//!
//! Portable SQL is: `$1` for values, `RETURNING`, `ON CONFLICT`, `UPDATE … FROM (VALUES …)`, whose columns both call
//! `column1` and so on. The columns of a schema are BIGINT, TEXT and BYTEA, or what SQLite calls these. Where the two
//! differ (how a transaction begins), the writer and the opening know, and nobody else.

use std::fmt::Write as _;
use std::future::Future;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteError, SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Decode, Postgres, Row, SqlSafeStr, SqlStr, Sqlite, Type};

use super::feed::Topic;
use super::{Reader, StoreError};

/// How long a server may take for one statement. One that a cut network swallowed is never answered.
const ANSWER: Duration = Duration::from_secs(10);
/// What both schemas' triggers say of a certificate that was revoked while it was on its way.
const REVOKED: &str = "revoked meanwhile";
/// Rows of one statement, at most. Fewer are a power of two, so that few statements have to be prepared, and each once.
const ROWS: usize = 256;
/// Statements a connection keeps prepared: more than there are, so that none is prepared over and over.
pub(super) const STATEMENTS: usize = 512;

/// Connections to one database.
#[derive(Clone, Debug)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Pool {
    pub(super) async fn acquire(&self) -> Result<Connection, StoreError> {
        let link = match self {
            Pool::Sqlite(pool) => Link::Sqlite(pool.acquire().await?),
            Pool::Postgres(pool) => Link::Postgres(pool.acquire().await?),
        };
        Ok(Connection {
            link,
            health: Health::Well,
            changed: Vec::new(),
        })
    }

    fn kind(&self) -> Kind {
        match self {
            Pool::Sqlite(_) => Kind::Sqlite,
            Pool::Postgres(_) => Kind::Postgres,
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }
}

/// A connection, inside whatever transaction was begun on it.
#[derive(Debug)]
pub(crate) struct Connection {
    link: Link,
    health: Health,
    changed: Vec<Topic>,
}

#[derive(Debug)]
enum Link {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

/// What the statements on a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    Well,
    /// One failed since the transaction or the savepoint began: what was done in it must not be kept.
    Failed,
    /// Nothing more can be asked.
    Lost,
}

impl Connection {
    /// Tells whoever follows a topic, on every replica, once the change is committed.
    pub(crate) fn changed(&mut self, topic: Topic) {
        if !self.changed.contains(&topic) {
            self.changed.push(topic);
        }
    }

    pub(super) fn take_changed(&mut self) -> Vec<Topic> {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// What failed has been undone.
    pub(super) fn undone(&mut self) {
        self.health = match self.health {
            Health::Well | Health::Failed => Health::Well,
            Health::Lost => Health::Lost,
        };
    }

    pub(super) fn kind(&self) -> Kind {
        match self.link {
            Link::Sqlite(_) => Kind::Sqlite,
            Link::Postgres(_) => Kind::Postgres,
        }
    }

    /// Several statements in one round trip. `script` holds nothing that anybody else wrote.
    pub(super) async fn script(&mut self, script: String) -> Result<(), StoreError> {
        let script = sqlx::raw_sql(AssertSqlSafe(script));
        let done = match &mut self.link {
            Link::Sqlite(link) => script.execute(&mut **link).await.map(drop),
            Link::Postgres(link) => answered(script.execute(&mut **link)).await.map(drop),
        };
        self.note(done)
    }

    fn note<T>(&mut self, done: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        done.map_err(|error| {
            let failed = match Fate::of(&error) {
                Fate::Lost => Health::Lost,
                Fate::Again | Fate::Final => Health::Failed,
            };
            self.health = self.health.max(failed);
            if let (Health::Lost, Link::Postgres(link)) = (self.health, &mut self.link) {
                link.close_on_drop();
            }
            let refused = error.as_database_error();
            match refused.is_some_and(|refused| refused.message() == REVOKED) {
                true => StoreError::Revoked,
                false => StoreError::Database(error),
            }
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

/// What an error says about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The connection is gone, or the server is about to be.
    Lost,
    /// Somebody else was in the way; undone and done again it may succeed.
    Again,
    /// It would fail again.
    Final,
}

impl Fate {
    pub(super) fn of(error: &sqlx::Error) -> Self {
        use sqlx::Error;
        if let Error::Database(refused) = error {
            let code = refused.code();
            if refused.try_downcast_ref::<SqliteError>().is_some() {
                return match code.as_deref().map(str::parse::<i32>) {
                    // BUSY and LOCKED, whatever is said besides in the upper bits.
                    Some(Ok(code)) if matches!(code & 0xff, 5 | 6) => Fate::Again,
                    Some(_) | None => Fate::Final,
                };
            }
            return match code.as_deref() {
                // Serialization failure, deadlock, lock not available in time.
                Some("40001" | "40P01" | "55P03") => Fate::Again,
                // Shut down, crashed, starting, read only after a failover, idle too long, full.
                Some("57P01" | "57P02" | "57P03" | "25006" | "25P03" | "53300") => Fate::Lost,
                Some(code) if code.len() == 5 && code.starts_with("08") => Fate::Lost,
                Some(_) | None => Fate::Final,
            };
        }
        let lost = matches!(
            error,
            Error::Io(_)
                | Error::Tls(_)
                | Error::Protocol(_)
                | Error::PoolTimedOut
                | Error::PoolClosed
                | Error::WorkerCrashed
        );
        if lost { Fate::Lost } else { Fate::Final }
    }
}

async fn answered<T>(
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the database did not answer in time",
        ))),
    }
}

/// Whom a question goes to.
pub(crate) enum Whom<'a> {
    /// Sees its own transaction.
    Connection(&'a mut Connection),
    /// Any connection: sees what is committed.
    Reader(&'a Reader),
}

impl Whom<'_> {
    /// For another question.
    pub(crate) fn again(&mut self) -> Whom<'_> {
        match self {
            Whom::Connection(connection) => Whom::Connection(connection),
            Whom::Reader(reader) => Whom::Reader(reader),
        }
    }
}

impl<'a> From<&'a mut Connection> for Whom<'a> {
    fn from(connection: &'a mut Connection) -> Self {
        Whom::Connection(connection)
    }
}

impl<'a> From<&'a Reader> for Whom<'a> {
    fn from(reader: &'a Reader) -> Self {
        Whom::Reader(reader)
    }
}

/// The database's own time, in seconds since 1970, which is the same for all replicas.
pub(super) async fn moment<'a>(whom: impl Into<Whom<'a>>) -> Result<i64, StoreError> {
    let whom = whom.into();
    let kind = match &whom {
        Whom::Connection(connection) => connection.kind(),
        Whom::Reader(reader) => reader.pool.kind(),
    };
    let row = query(match kind {
        Kind::Sqlite => "SELECT unixepoch() AS moment",
        Kind::Postgres => "SELECT extract(epoch FROM clock_timestamp())::bigint AS moment",
    });
    row.one(whom).await?.get("moment")
}

/// A value on its way into a statement.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Integer(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

macro_rules! value {
    ($($from:ty => $kind:ident($value:ident) $to:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                Value::$kind($to)
            }
        })*
    };
}

value! {
    i64 => Integer(value) Some(value);
    Option<i64> => Integer(value) value;
    String => Text(value) Some(value);
    &str => Text(value) Some(value.to_owned());
    Option<String> => Text(value) value;
    Vec<u8> => Bytes(value) Some(value);
    Option<Vec<u8>> => Bytes(value) value;
    &[u8] => Bytes(value) Some(value.to_vec());
    &[u8; 32] => Bytes(value) Some(value.to_vec());
}

/// A statement with its values.
#[derive(Debug)]
#[must_use]
pub(crate) struct Query {
    sql: SqlStr,
    values: Vec<Value>,
}

pub(crate) fn query(sql: &'static str) -> Query {
    Query {
        sql: sql.into_sql_str(),
        values: Vec::new(),
    }
}

/// Statements over many rows: in `sql`, `{rows}` stands for `($1, $2), ($3, $4)` and so on.
pub(crate) fn query_rows<const N: usize>(
    sql: &'static str,
    rows: impl IntoIterator<Item = [Value; N]>,
) -> Vec<Query> {
    let rows: Vec<_> = rows.into_iter().collect();
    let (mut queries, mut left) = (Vec::new(), rows.len());
    let mut rows = rows.into_iter();
    while left > 0 {
        let number = (1 << left.ilog2()).min(ROWS);
        let values: Vec<_> = rows.by_ref().take(number).flatten().collect();
        let mut places = String::new();
        for place in 1..=values.len() {
            places.push_str(match (place % N == 1 || N == 1, place) {
                (true, 1) => "(",
                (true, _) => "), (",
                (false, _) => ", ",
            });
            // Writing to a String cannot fail.
            let _ = write!(places, "${place}");
        }
        places.push(')');
        queries.push(Query {
            // Places only: no value ever becomes part of the text.
            sql: AssertSqlSafe(sql.replace("{rows}", &places)).into_sql_str(),
            values,
        });
        left -= number;
    }
    queries
}

/// Asks `$query` by `$method` on whichever link it is; the records come back as ours.
macro_rules! ask {
    ($db:expr, $query:expr, $method:ident, $sqlite:expr, $postgres:expr) => {{
        let mut acquired;
        let db = match $db.into() {
            Whom::Connection(connection) => connection,
            Whom::Reader(reader) => {
                acquired = reader.pool.acquire().await?;
                &mut acquired
            }
        };
        let done = match &mut db.link {
            Link::Sqlite(link) => $query.for_sqlite().$method(&mut **link).await.map($sqlite),
            Link::Postgres(link) => answered($query.for_postgres().$method(&mut **link))
                .await
                .map($postgres),
        };
        db.note(done)
    }};
}

impl Query {
    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    pub(crate) async fn optional<'a>(
        self,
        db: impl Into<Whom<'a>>,
    ) -> Result<Option<Record>, StoreError> {
        ask!(
            db,
            self,
            fetch_optional,
            |row| row.map(Record::Sqlite),
            |row| row.map(Record::Postgres)
        )
    }

    pub(crate) async fn one<'a>(self, db: impl Into<Whom<'a>>) -> Result<Record, StoreError> {
        ask!(db, self, fetch_one, Record::Sqlite, Record::Postgres)
    }

    pub(crate) async fn all<'a>(self, db: impl Into<Whom<'a>>) -> Result<Vec<Record>, StoreError> {
        ask!(
            db,
            self,
            fetch_all,
            |rows| rows.into_iter().map(Record::Sqlite).collect(),
            |rows| rows.into_iter().map(Record::Postgres).collect()
        )
    }

    /// The number of rows it touched.
    pub(crate) async fn execute<'a>(self, db: impl Into<Whom<'a>>) -> Result<u64, StoreError> {
        ask!(db, self, execute, |done| done.rows_affected(), |done| done
            .rows_affected())
    }

    fn for_sqlite(self) -> sqlx::query::Query<'static, Sqlite, SqliteArguments> {
        let query = sqlx::query(self.sql);
        self.values
            .into_iter()
            .fold(query, |query, value| match value {
                Value::Integer(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
            })
    }

    fn for_postgres(self) -> sqlx::query::Query<'static, Postgres, PgArguments> {
        let query = sqlx::query(self.sql);
        self.values
            .into_iter()
            .fold(query, |query, value| match value {
                Value::Integer(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
            })
    }
}

/// Runs statements one after the other. The number of rows they touched.
pub(crate) async fn execute_all(
    queries: Vec<Query>,
    db: &mut Connection,
) -> Result<u64, StoreError> {
    let mut touched = 0_u64;
    for query in queries {
        touched = touched.saturating_add(query.execute(&mut *db).await?);
    }
    Ok(touched)
}

/// One row of an answer.
#[derive(Debug)]
pub(crate) enum Record {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Record {
    pub(crate) fn get<T: Column>(&self, column: &str) -> Result<T, StoreError> {
        Ok(match self {
            Record::Sqlite(row) => row.try_get(column)?,
            Record::Postgres(row) => row.try_get(column)?,
        })
    }
}

/// What a column can be read as: `i64`, `String`, `Vec<u8>`, and each of these where the column may be empty.
pub(crate) trait Column:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl<T> Column for T where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}
