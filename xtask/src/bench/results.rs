//! What a run found, as it is kept in `bench/results/*.json`: every sample, and nothing derived from
//! them. Tables, goals and charts are made from this alone, so that they can be made again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::machine::Machine;

/// The format; raised when a reader of the old one would be misled.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Results {
    format: u32,
    /// The day, as `2026-01-31`.
    pub(super) date: String,
    /// What was measured: the commit that the binary was built from, or how it was given.
    pub(super) source: String,
    pub(super) machine: Machine,
    pub(super) rounds: usize,
    /// Of each window that is counted.
    pub(super) seconds: f64,
    pub(super) subjects: Vec<Measured>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) footprints: Vec<Footprint>,
    pub(super) samples: Vec<Sample>,
    /// What could not be measured, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) failures: Vec<Failure>,
}

/// A subject as it was found on the machine.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Measured {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) version: String,
    /// What it writes and counts while it is measured.
    pub(super) observed_by: String,
}

/// What a process of Fender holds in memory when nothing happens.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Footprint {
    pub(super) process: String,
    pub(super) rss_mb: f64,
    pub(super) pss_mb: f64,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sample {
    pub(super) work: String,
    pub(super) subject: String,
    pub(super) round: usize,
    /// What other processes of the machine took of a core meanwhile, and what its host took of us.
    pub(super) others_percent: f64,
    pub(super) stolen_percent: f64,
    pub(super) figures: BTreeMap<String, f64>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failure {
    pub(super) work: String,
    pub(super) subject: String,
    pub(super) why: String,
}

impl Sample {
    pub(super) fn noise(&self) -> f64 {
        self.others_percent + self.stolen_percent
    }

    fn figure(&self, key: &str) -> Option<f64> {
        self.figures.get(key).copied()
    }
}

impl Results {
    pub(super) fn new(
        date: String,
        source: String,
        machine: Machine,
        rounds: usize,
        seconds: f64,
    ) -> Self {
        Self {
            format: FORMAT,
            date,
            source,
            machine,
            rounds,
            seconds,
            subjects: Vec::new(),
            footprints: Vec::new(),
            samples: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub(super) fn read(file: &Path) -> Result<Self> {
        let name = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("read `{name}`"))?;
        let results: Self = serde_json::from_str(&text).with_context(|| {
            format!("`{name}` holds no results of this bench in format {FORMAT}")
        })?;
        anyhow::ensure!(
            results.format == FORMAT,
            "`{name}` has format {}, this bench reads {FORMAT}: run it again",
            results.format
        );
        Ok(results)
    }

    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("write the results as JSON")?;
        fs::write(file, format!("{text}\n")).with_context(|| format!("write `{}`", file.display()))
    }

    fn of<'a>(&'a self, work: &'a str, subject: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.work == work && sample.subject == subject)
    }

    pub(super) fn values(&self, work: &str, figure: &str, subject: &str) -> Vec<f64> {
        let samples = self.of(work, subject);
        samples.filter_map(|sample| sample.figure(figure)).collect()
    }

    /// The median of the ratios within rounds, so that what disturbed a round weighs on both alike. Each is a test and a subject.
    pub(super) fn ratio(
        &self,
        figure: &str,
        one: (&str, &str),
        other: (&str, &str),
    ) -> Option<f64> {
        let ratios = self.of(one.0, one.1).filter_map(|sample| {
            let beside = self
                .of(other.0, other.1)
                .find(|beside| beside.round == sample.round)?;
            let (own, theirs) = (sample.figure(figure)?, beside.figure(figure)?);
            (theirs != 0.0).then(|| own / theirs)
        });
        median(ratios.collect())
    }
}

/// The middle, or what lies between the two middle ones; nothing of nothing.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied()?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = values.get(middle.checked_sub(1)?).copied()?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Results of one machine: for each test and subject the CPU time of each round.
    pub(in super::super) fn results(rows: &[(&str, &str, &[f64])]) -> Results {
        let machine = Machine {
            processor: "test".to_owned(),
            cores: 2,
            memory_gb: 8,
            kernel: "6.1".to_owned(),
        };
        let (date, source) = ("2026-01-31".to_owned(), "0123456".to_owned());
        let mut results = Results::new(date, source, machine, 3, 4.0);
        for (work, subject, values) in rows {
            let samples = values.iter().enumerate().map(|(round, value)| Sample {
                work: (*work).to_owned(),
                subject: (*subject).to_owned(),
                round,
                others_percent: 3.0,
                stolen_percent: 0.0,
                figures: BTreeMap::from([("cpu_us".to_owned(), *value)]),
            });
            results.samples.extend(samples);
            if !results.subjects.iter().any(|known| known.name == *subject) {
                results.subjects.push(Measured {
                    name: (*subject).to_owned(),
                    title: (*subject).to_owned(),
                    version: "1.0".to_owned(),
                    observed_by: "access log".to_owned(),
                });
            }
        }
        results
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn results_are_read_as_they_were_written_and_no_others_are() {
        let file = std::env::temp_dir().join(format!("xtask-results-{}", std::process::id()));
        results(&[("h1_mtls", "fender", &[1.5])])
            .write(&file)
            .unwrap();
        let read = Results::read(&file).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let newer = text.replacen("\"format\": 1", "\"format\": 2", 1);
        fs::write(&file, newer).unwrap();
        let refused = Results::read(&file).err().unwrap().to_string();
        fs::remove_file(&file).unwrap();
        assert_eq!(read.values("h1_mtls", "cpu_us", "fender"), [1.5]);
        assert!(refused.contains("format 2"), "{refused}");
    }

    #[test]
    fn rounds_that_one_of_two_missed_do_not_count() {
        let results = results(&[
            ("h1_mtls", "fender", &[10.0, 30.0]),
            ("h1_mtls", "nginx", &[20.0]),
        ]);
        assert_eq!(
            results.ratio("cpu_us", ("h1_mtls", "fender"), ("h1_mtls", "nginx")),
            Some(0.5)
        );
        assert_eq!(
            results.ratio("cpu_us", ("h1_mtls", "fender"), ("h1_mtls", "envoy")),
            None
        );
    }
}
