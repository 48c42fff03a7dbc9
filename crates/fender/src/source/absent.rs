//! A build that runs from no file: there is no value of what the command line would name one by.

use fender_config::standalone::Standalone;
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;

use super::{Admit, Feed};
use crate::exit::Failure;
use crate::features::ConfigFile;

/// Has no file read again.
#[derive(Clone, Debug)]
pub(crate) enum Reloads {}

/// What became of a file that was read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reloaded {
    #[expect(dead_code, reason = "there is no file that could have changed")]
    Applied,
    #[expect(dead_code, reason = "there is no file that could be read again")]
    Unchanged,
}

impl Reloads {
    pub(crate) async fn ask(&self) -> Result<Reloaded, String> {
        match *self {}
    }
}

pub(crate) fn read_standalone(file: &ConfigFile) -> Result<Standalone, Failure> {
    match *file {}
}

pub(super) async fn open(
    file: &ConfigFile,
    _: Admit,
    _: &SharedClock,
    _: &Drain,
    _: Deadline,
) -> Result<Feed, Failure> {
    match *file {}
}
