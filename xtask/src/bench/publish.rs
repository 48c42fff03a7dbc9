//! Puts results into the documentation: tables between marks in the page, and the chart beside it.
//!
//! The page names the files its figures come from, so that they can be made again and compared: no
//! number there is typed by hand, and `cargo xtask docs --check` fails when one is. The first is shown whole. Of the
//! others, which another machine found, it tells what became of the goals.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::results::Results;
use super::{chart, page};

const PAGE: &str = "docs/guide/performance.md";
const CHART: &str = "docs/guide/img/performance.svg";
const RESULTS: &str = "bench/results";

const IMAGE: &str = "![What each proxy costs as a multiple of Fender](img/performance.svg)";

/// Followed by the names of the files, or by none while no run has been kept.
const NAMES: &str = "<!-- figures of bench/results/";
const END: &str = "<!-- end -->";

/// With files, their results; without one, those the page has, told anew.
pub(super) fn write(root: &Path, files: &[PathBuf]) -> Result<()> {
    let there = read(root, PAGE)?;
    let names = match files {
        [] => named(&there)?.to_owned(),
        files => {
            let names: Result<Vec<String>> = files.iter().map(|file| kept(root, file)).collect();
            names?.join(" ")
        }
    };
    let (text, chart) = generate(root, &there, &names)?;
    let chart = chart.map(|chart| (CHART, chart));
    for (place, text) in [(PAGE, text)].into_iter().chain(chart) {
        let file = root.join(place);
        let directory = file.parent().context("a file lies in a directory")?;
        fs::create_dir_all(directory).context("make a directory")?;
        fs::write(&file, text).with_context(|| format!("write `{place}`"))?;
        println!("wrote {place}");
    }
    Ok(())
}

/// What of the page or its chart is not as its results say, if something is.
pub(crate) fn stale(root: &Path) -> Result<Option<&'static str>> {
    let there = read(root, PAGE)?;
    let (text, chart) = generate(root, &there, named(&there)?)?;
    if text != there {
        return Ok(Some(PAGE));
    }
    Ok(match chart {
        Some(chart) if read(root, CHART)? != chart => Some(CHART),
        Some(_) | None => None,
    })
}

/// The page, and the chart where there are results to draw.
fn generate(root: &Path, there: &str, names: &str) -> Result<(String, Option<String>)> {
    let old = format!("{NAMES}{} -->", named(there)?);
    let text = there.replacen(&old, &format!("{NAMES}{names} -->"), 1);
    let all: Result<Vec<Results>> = names
        .split_whitespace()
        .map(|name| Results::read(&root.join(RESULTS).join(name)))
        .collect();
    let all = all?;
    let Some((results, elsewhere)) = all.split_first() else {
        let text = placed(&text, "taken", "No run has been kept yet.")?;
        let text = placed(&text, "goals", "")?;
        let text = placed(&text, "elsewhere", "")?;
        return Ok((placed(&text, "tables", "")?, None));
    };
    let text = placed(
        &text,
        "taken",
        &format!("{IMAGE}\n\n{}", page::taken(results)?),
    )?;
    let text = placed(&text, "goals", &page::goals(results)?)?;
    let text = placed(&text, "elsewhere", &page::elsewhere(elsewhere)?)?;
    let text = placed(&text, "tables", &page::tables(results)?)?;
    Ok((text, Some(chart::svg(results)?)))
}

/// The name of a file of results that is kept where the page can refer to it.
fn kept(root: &Path, file: &Path) -> Result<String> {
    let name = file.file_name().context("name a file of results")?;
    let name = name.to_string_lossy().into_owned();
    ensure!(
        root.join(RESULTS).join(&name).is_file(),
        "`{name}` is not in `{RESULTS}`, which the page refers to: put it there"
    );
    ensure!(
        !name.contains(char::is_whitespace),
        "`{name}` has a space in its name, which would make two of it on the page: rename it"
    );
    Ok(name)
}

/// The files of results that a page names, a space between two.
fn named(page: &str) -> Result<&str> {
    let rest = page.split_once(NAMES).map(|(_, rest)| rest);
    let name = rest
        .and_then(|rest| rest.split_once(" -->"))
        .map(|(name, _)| name);
    name.with_context(|| format!("`{PAGE}` does not say `{NAMES}FILE -->`"))
}

/// The page with `text` between the mark of this name and the end mark after it.
fn placed(page: &str, name: &str, text: &str) -> Result<String> {
    let mark = format!("<!-- {name} -->\n");
    let Some((before, rest)) = page.split_once(&mark) else {
        bail!("`{PAGE}` has no mark `<!-- {name} -->`")
    };
    let after = rest.split_once(END).map(|(_, after)| after);
    let after = after.with_context(|| format!("`<!-- {name} -->` in `{PAGE}` has no `{END}`"))?;
    Ok(format!("{before}{mark}\n{}\n\n{END}{after}", text.trim()))
}

fn read(root: &Path, place: &str) -> Result<String> {
    fs::read_to_string(root.join(place)).with_context(|| format!("read `{place}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_the_marks_is_replaced_and_nothing_else() {
        let page = "a\n<!-- goals -->\nold\n<!-- end -->\nb\n<!-- tables -->\nkept\n<!-- end -->\n";
        let new = placed(page, "goals", "new\n").unwrap();
        assert_eq!(
            new,
            "a\n<!-- goals -->\n\nnew\n\n<!-- end -->\nb\n<!-- tables -->\nkept\n<!-- end -->\n"
        );
        assert_eq!(placed(&new, "goals", "new").unwrap(), new, "once is enough");
        assert!(placed(page, "else", "new").is_err());
    }

    #[test]
    fn a_page_names_its_results() {
        let page = "x <!-- figures of bench/results/2026-01-31-full.json --> y";
        assert_eq!(named(page).unwrap(), "2026-01-31-full.json");
        let two = format!("{NAMES}one.json two.json -->");
        assert_eq!(named(&two).unwrap(), "one.json two.json");
        assert_eq!(named(&format!("{NAMES} -->")).unwrap(), "", "no run yet");
        assert!(named("none").is_err());
    }
}
