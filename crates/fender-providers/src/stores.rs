//! Stores of secrets that are asked over the network: one login, one client and one budget for each, however many
//! credentials come from it.

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use fender_config::snapshot::{AwsSecret, VaultSecret};
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;

use crate::FetchError;
use crate::aws::{Aws, AwsAccess, AwsNotAllowed, AwsSource};
use crate::vault::{VaultSource, Vaults};

/// A secret on its way from a file.
pub type Reading<'a> = Pin<Box<dyn Future<Output = Result<Secret, FetchError>> + Send + 'a>>;

/// Reads the files that documents name, where this machine lets documents name them.
pub trait ReadFiles: fmt::Debug + Send + Sync + 'static {
    /// The whole of a file of at most `limit` bytes.
    fn read<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a>;
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

/// Every store that is asked. Clones are the same.
#[derive(Clone)]
pub struct Stores {
    vaults: Vaults,
    aws: Aws,
}

impl Stores {
    /// What is logged in, is logged out of when `drain` stops.
    pub fn new(
        files: impl ReadFiles,
        aws: AwsAccess,
        at_end: impl AtEnd,
        clock: SharedClock,
        drain: &Drain,
    ) -> Self {
        let files: Arc<dyn ReadFiles> = Arc::new(files);
        let aws = Aws::new(aws, Arc::clone(&files), Arc::clone(&clock));
        let vaults = Vaults::new(files, Arc::new(at_end), clock, drain.clone());
        Self { vaults, aws }
    }

    /// A secret of a Vault.
    pub fn vault(&self, secret: &VaultSecret) -> VaultSource {
        self.vaults.source(secret)
    }

    /// Whether documents may have this of AWS read here.
    pub fn check_aws(&self, secret: &AwsSecret) -> Result<(), AwsNotAllowed> {
        self.aws.check(secret)
    }

    /// A secret or a parameter of AWS; denied if it may not be read here.
    pub fn aws(&self, secret: &AwsSecret) -> AwsSource {
        self.aws.source(secret)
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}
