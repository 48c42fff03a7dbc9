//! Documents from disk: a file, or every `.yaml` and `.yml` below a directory, in name order.
//!
//! Bounded before anything is read: in the size of each file and in their number.

use std::fs;
use std::io::Read;
use std::path::Path;
#[cfg(feature = "administration")]
use std::path::PathBuf;

#[cfg(feature = "administration")]
use anyhow::bail;
use anyhow::{Context, Result};
use fender_config::Source;

/// One byte more than the parser accepts is enough to be told so by name.
const FILE_LIMIT: u64 = fender_config::MAX_SOURCE_BYTES as u64 + 1;
#[cfg(feature = "administration")]
const FILES_LIMIT: usize = 1_000;
#[cfg(feature = "administration")]
const DEPTH_LIMIT: usize = 8;

/// Reads what `path` names; file names in problems are as the person wrote them.
#[cfg(feature = "administration")]
pub(crate) fn documents(path: &Path) -> Result<Vec<Source>> {
    let metadata =
        fs::metadata(path).with_context(|| format!("read documents from `{}`", path.display()))?;
    let mut files = Vec::new();
    if metadata.is_dir() {
        collect(path, 0, &mut files)?;
        if files.is_empty() {
            bail!("no `.yaml` or `.yml` file in `{}`", path.display());
        }
    } else {
        files.push(path.to_owned());
    }
    files.iter().map(|file| source(file)).collect()
}

/// Reads one file of documents.
pub(crate) fn source(file: &Path) -> Result<Source> {
    let name = file.display().to_string();
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(FILE_LIMIT).read_to_end(&mut bytes))
        .with_context(|| format!("read `{name}`"))?;
    // The parser refuses a file of this size by name; whether its tail is text does not matter.
    let text = if bytes.len() as u64 == FILE_LIMIT {
        String::from_utf8_lossy(&bytes).into_owned()
    } else {
        String::from_utf8(bytes).map_err(|error| {
            anyhow::anyhow!(
                "`{name}` is not UTF-8 at byte {}",
                error.utf8_error().valid_up_to()
            )
        })?
    };
    Ok(Source { name, text })
}

#[cfg(feature = "administration")]
fn collect(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    if depth > DEPTH_LIMIT {
        bail!(
            "`{}` is nested more than {DEPTH_LIMIT} directories deep",
            directory.display()
        );
    }
    let read = |error| {
        anyhow::Error::new(error).context(format!("read directory `{}`", directory.display()))
    };
    let mut entries = fs::read_dir(directory)
        .map_err(read)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(read)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        // Kubernetes mounts keep their generations in `..data`; editors hide theirs behind a dot.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            collect(&path, depth + 1, files)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml")
        {
            files.push(path);
        }
        if files.len() > FILES_LIMIT {
            bail!("more than {FILES_LIMIT} files of documents; split the directory");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "administration")]
    fn a_directory_is_read_in_name_order_without_hidden_files() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", ".hidden.yaml", "notes.txt"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        fs::create_dir(directory.path().join("..data")).unwrap();
        fs::write(directory.path().join("..data/c.yaml"), "c").unwrap();
        let texts: Vec<_> = documents(directory.path())
            .unwrap()
            .into_iter()
            .map(|source| source.text)
            .collect();
        assert_eq!(texts, ["a.yml", "b.yaml"]);
    }

    #[test]
    #[cfg(feature = "administration")]
    fn an_empty_directory_is_an_error_that_says_what_was_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let error = documents(directory.path()).unwrap_err().to_string();
        assert!(error.contains(".yaml"), "{error}");
    }

    #[test]
    fn text_that_is_not_utf_8_names_the_byte() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.yaml");
        fs::write(&file, b"kind: \xff").unwrap();
        let error = source(&file).unwrap_err().to_string();
        assert!(error.contains("byte 6"), "{error}");
    }
}
