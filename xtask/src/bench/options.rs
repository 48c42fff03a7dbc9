//! What is asked of the bench on the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::Extent;
use super::subject::{SPECS, Spec};
use super::work::{WORKS, Work};

/// The test that is no row of the table: what Fender's processes hold, alone and under a control
/// plane.
pub(super) const FOOTPRINT: &str = "footprint";

#[derive(Debug)]
pub(crate) enum Asked {
    Measure(Options),
    Instructions(Options),
    Crosscheck(Options),
    List,
    /// Print the page of these results.
    Show(PathBuf),
    /// Put these results, the first of them whole, or those that the page names already, into the documentation.
    WriteDocs(Vec<PathBuf>),
    Control {
        extent: Extent,
        store: Option<String>,
    },
    Mask {
        extent: Extent,
        /// The binary to measure; none: one is built as it is published.
        fender: Option<PathBuf>,
    },
}

pub(crate) struct Options {
    pub(super) subjects: Vec<&'static Spec>,
    pub(super) works: Vec<&'static Work>,
    pub(super) footprint: bool,
    pub(super) fender: Option<PathBuf>,
    /// What that binary was built from, for the record.
    pub(super) source: Option<String>,
    /// Whether to run before all other programs.
    pub(super) priority: bool,
    /// Of the connections that are held, only one of so many.
    pub(super) thinned: usize,
    pub(super) rounds: usize,
    pub(super) window: Duration,
    /// What others may take, in hundredths of a core.
    pub(super) quiet: f64,
    /// How long the whole run waits for that.
    pub(super) patience: Duration,
    /// What the results are called, where they are kept.
    pub(super) name: Option<String>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let subjects: Vec<_> = self.subjects.iter().map(|spec| spec.name).collect();
        let works: Vec<_> = self.works.iter().map(|work| work.name).collect();
        write!(formatter, "{works:?} of {subjects:?}")
    }
}

impl Asked {
    pub(crate) fn parse(arguments: &[&str]) -> Result<Self> {
        if let ["control", rest @ ..] = arguments {
            return control(rest);
        }
        if let ["mask", rest @ ..] = arguments {
            return mask(rest);
        }
        if let ["--write-docs", files @ ..] = arguments {
            return Ok(Self::WriteDocs(files.iter().map(PathBuf::from).collect()));
        }
        if let ["--show", file] = arguments {
            return Ok(Self::Show(PathBuf::from(file)));
        }
        let mut given = Given::default();
        let mut list = false;
        let mut asked: fn(Options) -> Self = Self::Measure;
        let mut words = arguments.iter().copied();
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .with_context(|| format!("`{word}` takes a value"))
            };
            match word {
                "--list" => list = true,
                "--instructions" => asked = Self::Instructions,
                "--crosscheck" => asked = Self::Crosscheck,
                "--quick" => given.quick = true,
                "--peers" => given.peers = Some(value()?),
                "-s" => given.subjects = Some(value()?),
                "-t" => given.tests = Some(value()?),
                "--priority" => given.priority = true,
                "--fender" => given.fender = Some(value()?),
                "--source" => given.source = Some(value()?),
                "--rounds" => given.rounds = Some(number(word, value()?)?),
                "--seconds" => given.seconds = Some(number(word, value()?)?),
                "--quiet" => given.quiet = Some(number(word, value()?)?),
                "--patience" => given.patience = Some(number(word, value()?)?),
                "--name" => given.name = Some(value()?),
                _ => bail!("`bench` has no option `{word}`"),
            }
        }
        if list {
            return Ok(Self::List);
        }
        Ok(asked(given.options()?))
    }
}

fn control(mut rest: &[&str]) -> Result<Asked> {
    let mut extent = Extent::Full;
    if let ["--quick", more @ ..] = rest {
        (extent, rest) = (Extent::Quick, more);
    }
    let store = match rest {
        [] => None,
        ["--store", url] => Some((*url).to_owned()),
        _ => bail!("`bench control` takes `--quick` and `--store URL`"),
    };
    Ok(Asked::Control { extent, store })
}

fn mask(mut rest: &[&str]) -> Result<Asked> {
    let mut extent = Extent::Full;
    if let ["--quick", more @ ..] = rest {
        (extent, rest) = (Extent::Quick, more);
    }
    let fender = match rest {
        [] => None,
        ["--fender", file] => Some(PathBuf::from(file)),
        _ => bail!("`bench mask` takes `--quick` and `--fender FILE`"),
    };
    Ok(Asked::Mask { extent, fender })
}

/// As it was written.
#[derive(Default)]
struct Given<'a> {
    quick: bool,
    priority: bool,
    peers: Option<&'a str>,
    subjects: Option<&'a str>,
    tests: Option<&'a str>,
    fender: Option<&'a str>,
    source: Option<&'a str>,
    rounds: Option<f64>,
    seconds: Option<f64>,
    quiet: Option<f64>,
    patience: Option<f64>,
    name: Option<&'a str>,
}

impl Given<'_> {
    fn options(&self) -> Result<Options> {
        let extent = if self.quick {
            Extent::Quick
        } else {
            Extent::Full
        };
        let whole = self.tests.is_none() && self.subjects.is_none() && extent == Extent::Full;
        let rounds = self.rounds.unwrap_or(extent.rounds());
        ensure!(
            (1.0..=100.0).contains(&rounds),
            "`--rounds` is from 1 to 100"
        );
        let seconds = self.seconds.unwrap_or(extent.seconds());
        ensure!(
            (0.1..=600.0).contains(&seconds),
            "`--seconds` is from 0.1 to 600"
        );
        // A quick run waits for nobody.
        let patience = self.patience.unwrap_or(if self.quick { 0.0 } else { 5.0 });
        ensure!(
            (0.0..=600.0).contains(&patience),
            "`--patience` is minutes, from 0 to 600"
        );
        ensure!(
            self.source.is_none() || self.fender.is_some(),
            "`--source` is for a binary given by `--fender`; of one built here the commit is known"
        );
        Ok(Options {
            subjects: self.subjects()?,
            works: self.works()?,
            footprint: self
                .tests
                .is_none_or(|names| names.split(',').any(|name| name == FOOTPRINT)),
            fender: self.fender.map(PathBuf::from),
            source: self.source.map(str::to_owned),
            priority: self.priority,
            thinned: if self.quick { 10 } else { 1 },
            rounds: rounds as usize,
            window: Duration::from_secs_f64(seconds),
            quiet: self.quiet.unwrap_or(20.0),
            patience: Duration::from_secs_f64(60.0 * patience),
            name: self
                .name
                .or(whole.then_some("full"))
                .map(file_name)
                .transpose()?,
        })
    }

    fn subjects(&self) -> Result<Vec<&'static Spec>> {
        if let Some(names) = self.subjects {
            return names
                .split(',')
                .map(|name| {
                    Spec::of(name).with_context(|| format!("no subject `{name}`; see --list"))
                })
                .collect();
        }
        match self.peers.unwrap_or("standard") {
            "standard" => Ok(SPECS.iter().filter(|spec| spec.standard).collect()),
            "all" => Ok(SPECS.iter().collect()),
            other => bail!("`--peers` is `standard` or `all`, not `{other}`"),
        }
    }

    fn works(&self) -> Result<Vec<&'static Work>> {
        let Some(names) = self.tests else {
            return Ok(WORKS.iter().collect());
        };
        names
            .split(',')
            .filter(|name| *name != FOOTPRINT)
            .map(|name| Work::of(name).with_context(|| format!("no test `{name}`; see --list")))
            .collect()
    }
}

fn number(option: &str, value: &str) -> Result<f64> {
    value
        .parse()
        .with_context(|| format!("`{option}` takes a number, not `{value}`"))
}

/// It becomes part of a file's name.
fn file_name(name: &str) -> Result<String> {
    let fits =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    ensure!(
        !name.is_empty() && name.chars().all(fits),
        "`--name` is of small letters, digits and `-`, not `{name}`"
    );
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let asked = Asked::parse(&words)?;
        let Asked::Measure(options) = asked else {
            bail!("not measured but {asked:?}")
        };
        Ok(options)
    }

    #[test]
    fn everything_of_the_standard_peers_is_measured_and_kept_unless_less_is_asked_for() {
        let whole = options("").unwrap();
        assert_eq!(whole.works.len(), WORKS.len());
        assert!(whole.subjects.len() < SPECS.len() && whole.footprint);
        assert_eq!(whole.name.as_deref(), Some("full"));
        let part = options("-t h1_mtls -s fender,nginx --quiet 10").unwrap();
        assert_eq!(
            (part.works.len(), part.subjects.len(), part.footprint),
            (1, 2, false)
        );
        assert_eq!(part.name, None);
        let quick = options("--quick --peers all").unwrap();
        assert_eq!((quick.subjects.len(), quick.name), (SPECS.len(), None));
        assert_eq!(quick.patience, Duration::ZERO);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let refused = |line| options(line).unwrap_err().to_string();
        assert_eq!(refused("-t h3"), "no test `h3`; see --list");
        assert_eq!(refused("-s apache"), "no subject `apache`; see --list");
        assert_eq!(refused("--rounds"), "`--rounds` takes a value");
        assert_eq!(
            refused("--rounds many"),
            "`--rounds` takes a number, not `many`"
        );
        assert_eq!(refused("--fast"), "`bench` has no option `--fast`");
        assert!(refused("--name ../x").contains("small letters"));
        assert!(refused("--source v1").contains("`--fender`"));
    }

    #[test]
    fn the_control_plane_has_a_bench_of_its_own() {
        let asked = Asked::parse(&["control", "--quick", "--store", "postgres://h/d"]).unwrap();
        let Asked::Control { extent, store } = asked else {
            panic!("{asked:?}")
        };
        assert_eq!(
            (extent, store.as_deref()),
            (Extent::Quick, Some("postgres://h/d"))
        );
        assert!(Asked::parse(&["control", "--fast"]).is_err());
    }
}
