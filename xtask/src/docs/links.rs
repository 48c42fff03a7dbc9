//! Links between our own pages: every file is there, and so is the heading that is pointed at.
//!
//! Addresses on the network are not visited: a check must not depend on somebody else's server.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Where pages are; the rest of the repository has none.
const PLACES: &[&str] = &[
    "",
    "bench",
    "docs",
    "docs/adr",
    "docs/guide",
    "docs/reference",
    "examples/compose",
    "examples/compose-init",
    "fuzz",
];

pub(super) fn check(root: &Path) -> Result<()> {
    let mut broken = Vec::new();
    let mut pages = 0;
    for place in PLACES {
        let directory = root.join(place);
        let entries =
            fs::read_dir(&directory).with_context(|| format!("read `{}`", directory.display()))?;
        for entry in entries {
            let page = entry?.path();
            if page.extension().is_some_and(|extension| extension == "md") {
                pages += 1;
                broken.extend(broken_links(&page)?.into_iter().map(|link| {
                    format!(
                        "{}: `{link}`",
                        page.strip_prefix(root).unwrap_or(&page).display()
                    )
                }));
            }
        }
    }
    if broken.is_empty() {
        println!("{pages} pages, every link leads somewhere");
        return Ok(());
    }
    bail!("links that lead nowhere:\n{}", broken.join("\n"))
}

fn broken_links(page: &Path) -> Result<Vec<String>> {
    let text = read(page)?;
    let mut broken = Vec::new();
    for link in links(&text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (file, heading) = link.split_once('#').unwrap_or((link, ""));
        let target: PathBuf = if file.is_empty() {
            page.to_owned()
        } else {
            page.parent()
                .context("a page lies in a directory")?
                .join(file)
        };
        let found = target.exists()
            && (heading.is_empty() || anchors(&read(&target)?).any(|anchor| anchor == heading));
        if !found {
            broken.push(link.to_owned());
        }
    }
    Ok(broken)
}

fn read(page: &Path) -> Result<String> {
    fs::read_to_string(page).with_context(|| format!("read `{}`", page.display()))
}

/// Targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(link, _)| link)
}

/// What GitHub makes of each heading.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let kept = line.trim_start_matches('#').trim().to_lowercase();
            kept.chars()
                .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'))
                .map(|letter| if letter == ' ' { '-' } else { letter })
                .collect()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_found_in_the_middle_of_a_line() {
        let text = "see [one](a.md#x) and ![two](b.png), or https://example.com/";
        assert_eq!(links(text).collect::<Vec<_>>(), ["a.md#x", "b.png"]);
    }

    #[test]
    fn headings_become_anchors_as_on_the_web() {
        let text = "# Restarting the owner's `namespace`\ntext\n## A & b";
        assert_eq!(
            anchors(text).collect::<Vec<_>>(),
            ["restarting-the-owners-namespace", "a--b"]
        );
    }

    #[test]
    fn a_link_to_a_missing_file_or_heading_is_broken() {
        let directory = std::env::temp_dir().join(format!("xtask-links-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let page = directory.join("a.md");
        fs::write(
            &page,
            "# Here\n[1](#here) [2](#there) [3](b.md) [4](a.md) [5](https://x.test/)",
        )
        .unwrap();
        let broken = broken_links(&page).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(broken, ["#there", "b.md"]);
    }
}
