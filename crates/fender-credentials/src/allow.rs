//! Which directories and programs documents may name.
//!
//! A document that came from a control plane is not trusted with the whole file system: it reads and
//! writes only below directories that somebody on this machine allowed. A document that lies on this
//! machine was written by whoever could allow everything. Programs are allowed one by one
//! ([`Runner`](fender_runtime::program::Runner)), and so are variables ([`Environment`](fender_providers::environment::Environment)) and
//! secrets of AWS (`fender_providers::aws::AllowAws`).

use std::path::{Component, Path, PathBuf};

#[cfg(feature = "stores")]
use fender_providers::aws::AwsNotAllowed;
use fender_providers::file::FileSource;
use fender_providers::{FetchError, ReadFiles, Reading, Source};

/// The directories below which documents may name files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AllowDirs {
    /// Any: the documents are local.
    Any,
    /// These and what lies below them; an empty list allows nothing.
    Below(Vec<PathBuf>),
}

impl AllowDirs {
    /// Nothing.
    pub fn none() -> Self {
        Self::Below(Vec::new())
    }

    /// Whether `path` may be named. Returns the allowed directory it lies in, if there are any.
    ///
    /// This looks at the text alone. Whoever opens the path also keeps links from leading out of the
    /// directory.
    pub fn check(&self, path: &Path) -> Result<Option<&Path>, NotAllowed> {
        let refuse = |why: &'static str| NotAllowed {
            path: path.to_owned(),
            why,
        };
        if !path.is_absolute() {
            return Err(refuse("is not an absolute path"));
        }
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.components().all(plain) {
            return Err(refuse("goes through `..`; write the path it leads to"));
        }
        match self {
            Self::Any => Ok(None),
            Self::Below(allowed) => allowed
                .iter()
                .map(PathBuf::as_path)
                .find(|directory| path.starts_with(directory) && path != *directory)
                .map(Some)
                .ok_or_else(|| {
                    refuse("is in no directory that documents may use; name one with --allow-dir")
                }),
        }
    }
}

impl AllowDirs {
    /// The file at `path`, if it may be read.
    fn source(&self, path: &Path, limit: u64) -> Result<FileSource, FetchError> {
        let allowed = self.check(path);
        let source = match allowed.map_err(|error| FetchError::Denied(error.to_string()))? {
            None => FileSource::new(path),
            Some(root) => FileSource::below(root, path),
        };
        Ok(source.of_at_most(limit))
    }
}

impl ReadFiles for AllowDirs {
    fn read<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a> {
        Box::pin(async move {
            let source = self.source(path, limit)?;
            Ok(source.fetch().await?.value)
        })
    }

    fn read_private<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a> {
        Box::pin(async move {
            let source = self.source(path, limit)?.seen_by_no_other();
            Ok(source.fetch().await?.value)
        })
    }
}

/// A document names a path it may not.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{}` {why}", path.display())]
pub struct NotAllowed {
    path: PathBuf,
    why: &'static str,
}

impl NotAllowed {
    /// A program that may not be run.
    pub(crate) fn program(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            why: "is no program that documents may have run; name it with --allow-command",
        }
    }
}

impl NotAllowed {
    /// A variable that may not be read.
    pub(crate) fn variable(name: &str) -> Self {
        Self {
            path: name.into(),
            why: "is no variable that documents may name; allow it with --allow-environment",
        }
    }

    /// A kind of source that this build has no client of, as documents call it.
    #[cfg(not(feature = "stores"))]
    pub(crate) fn left_out(source: &str) -> Self {
        Self {
            path: source.into(),
            why: "is a source that this build of Fender leaves out: use one with the feature `stores`, which `fender --version` \
                  lists, or have the control plane fetch it by `via: control`",
        }
    }

    /// A secret of AWS that may not be asked for.
    #[cfg(feature = "stores")]
    pub(crate) fn aws(refused: AwsNotAllowed) -> Self {
        Self {
            path: refused.what.into(),
            why: refused.why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_from_elsewhere_names_nothing_by_default() {
        assert!(
            AllowDirs::none()
                .check(Path::new("/run/app/secret"))
                .is_err()
        );
    }

    #[test]
    fn a_path_below_an_allowed_directory_may_be_named() {
        let allow = AllowDirs::Below(vec!["/srv".into(), "/run/app".into()]);
        let found = allow.check(Path::new("/run/app/tls/key.pem")).unwrap();
        assert_eq!(found, Some(Path::new("/run/app")));
    }

    #[test]
    fn no_spelling_leads_out_of_an_allowed_directory() {
        let allow = AllowDirs::Below(vec!["/run/app".into()]);
        for path in [
            "/run/app",
            "/run/app/",
            "/run/application/secret",
            "/run/app/../../etc/passwd",
            "/run/app/x/../../../etc/passwd",
            "run/app/secret",
            "",
            "/",
        ] {
            assert!(allow.check(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn even_local_documents_name_plain_absolute_paths() {
        assert_eq!(AllowDirs::Any.check(Path::new("/etc/app/secret")), Ok(None));
        assert!(AllowDirs::Any.check(Path::new("secret")).is_err());
        assert!(AllowDirs::Any.check(Path::new("/etc/../secret")).is_err());
    }
}
