//! A secret of Docker, Compose or Swarm: a file that the engine mounted into this container.
//!
//! It asks no engine: whoever may talk to one is every container on it. What is there, the service was given; what is not,
//! is missing, and the error says where to list it. The file is read as [`crate::file`] reads any, with the bound that
//! Swarm puts on a secret, and no link leads out of the directory.

use std::path::Path;
use std::time::Duration;

use fender_config::snapshot::DockerSecret;

use crate::file::FileSource;
use crate::{FetchError, Fetched, Source};

/// The most Swarm takes as a secret.
pub const LIMIT: u64 = 500 * 1024;

/// A mounted secret.
#[derive(Debug)]
pub struct DockerSource {
    secret: DockerSecret,
    file: FileSource,
}

impl DockerSource {
    /// `secret` in its directory.
    pub fn new(secret: DockerSecret) -> Self {
        let directory = secret.directory.clone();
        Self::below(&directory, secret)
    }

    /// The same, as long as the directory too lies below `root`, or is it.
    pub fn below(root: &Path, secret: DockerSecret) -> Self {
        let file = FileSource::below(root, secret.path()).of_at_most(LIMIT);
        Self { secret, file }
    }
}

impl Source for DockerSource {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let answer = self.file.fetch().await;
        if let Err(FetchError::Missing(_)) = answer {
            return Err(FetchError::Missing(format!(
                "`{}` is not in `{}`; list it under `secrets` of this container's service",
                self.secret.name,
                self.secret.directory.display()
            )));
        }
        answer
    }

    fn interval(&self) -> Duration {
        self.file.interval()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn secret(directory: &Path) -> DockerSecret {
        DockerSecret {
            name: "smtp".parse().unwrap(),
            directory: directory.to_owned(),
        }
    }

    async fn fetch(directory: &TempDir) -> Result<Fetched, FetchError> {
        DockerSource::new(secret(directory.path())).fetch().await
    }

    #[tokio::test]
    async fn the_bytes_of_the_mounted_file_are_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("smtp"), b"pass\xffword\n").unwrap();
        let fetched = fetch(&directory).await.unwrap();
        assert_eq!(fetched.value.expose(), b"pass\xffword\n");
    }

    #[tokio::test]
    async fn what_the_service_was_not_given_is_missing_and_the_error_says_where_to_list_it() {
        let directory = tempfile::tempdir().unwrap();
        let error = fetch(&directory).await.unwrap_err();
        assert!(matches!(error, FetchError::Missing(_)), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("`smtp`") && text.contains("under `secrets`"),
            "{text}"
        );
        let nowhere = DockerSource::new(secret(&directory.path().join("nowhere")));
        let error = nowhere.fetch().await.unwrap_err();
        assert!(
            matches!(error, FetchError::Missing(_)),
            "no directory: {error}"
        );
    }

    #[tokio::test]
    async fn a_secret_may_weigh_what_swarm_takes_and_no_byte_more() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("smtp");
        let most = usize::try_from(LIMIT).unwrap();
        fs::write(&file, vec![b'x'; most]).unwrap();
        assert_eq!(fetch(&directory).await.unwrap().value.expose().len(), most);
        fs::write(&file, vec![b'x'; most + 1]).unwrap();
        let error = fetch(&directory).await.unwrap_err();
        assert!(matches!(error, FetchError::Malformed(_)), "{error}");
        assert!(error.to_string().contains("500 KiB"), "{error}");
    }

    #[tokio::test]
    async fn a_link_that_leads_out_of_the_directory_is_denied() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let target = elsewhere.path().join("canary");
        fs::write(&target, "canary-7d1f").unwrap();
        symlink(&target, directory.path().join("smtp")).unwrap();
        let error = fetch(&directory).await.unwrap_err();
        assert!(matches!(error, FetchError::Denied(_)), "{error}");
    }

    #[tokio::test]
    async fn a_directory_that_is_a_link_leads_out_of_no_root() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("smtp"), "canary-7d1f").unwrap();
        let link = root.path().join("secrets");
        symlink(elsewhere.path(), &link).unwrap();
        let error = DockerSource::below(root.path(), secret(&link))
            .fetch()
            .await
            .unwrap_err();
        assert!(matches!(error, FetchError::Denied(_)), "{error}");
    }

    #[tokio::test]
    async fn nothing_that_can_be_printed_holds_the_value() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("smtp");
        fs::write(&file, "canary-7d1f").unwrap();
        let source = DockerSource::new(secret(directory.path()));
        let fetched = source.fetch().await.unwrap();
        let large = "canary-7d1f".repeat(usize::try_from(LIMIT).unwrap() / 10);
        fs::write(&file, large).unwrap();
        let error = source.fetch().await.unwrap_err();
        let printed = format!("{source:?} {fetched:?} {error} {error:?}");
        assert!(!printed.contains("canary"), "{printed}");
    }
}
