//! What sources need of the process that asks them. It decides nothing: the process does.

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use fender_identity::{Secret, Svid};
use tokio::sync::watch;

use crate::FetchError;

/// A secret on its way from a file.
pub type Reading<'a> = Pin<Box<dyn Future<Output = Result<Secret, FetchError>> + Send + 'a>>;

/// Reads the files that documents name, where this machine lets documents name them.
pub trait ReadFiles: fmt::Debug + Send + Sync + 'static {
    /// The whole of a file of at most `limit` bytes.
    fn read<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a>;

    /// The same of a file that opens others: refused if anybody but root and this process's user may read or write it.
    fn read_private<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a>;
}

/// Who this process's workload is, to stores that it logs in to as itself.
pub trait Workload: fmt::Debug + Send + Sync + 'static {
    /// Its certificate, as it is and as it changes.
    fn svid(&self) -> watch::Receiver<Arc<Svid>>;

    /// A JWT-SVID for whoever goes by the name `audience`.
    fn token<'a>(&'a self, audience: &'a str) -> Reading<'a>;
}

/// What becomes of the leases that are held, when this process ends.
pub trait AtEnd: Send + Sync + 'static {
    /// Whether somebody goes on using what was leased.
    fn keep_leases(&self) -> bool;
}

impl<F: Fn() -> bool + Send + Sync + 'static> AtEnd for F {
    fn keep_leases(&self) -> bool {
        self()
    }
}
