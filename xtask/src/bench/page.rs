//! Results as Markdown: printed after a run, and placed in the documentation.

use std::fmt::Write as _;

use anyhow::Result;

use super::goals::{Bound, GOALS, Goal, NOISE, Outcome};
use super::results::{Results, median};
use super::work::{WORKS, Work};

/// The subject that others are compared with.
pub(super) const REFERENCE: &str = "fender";
/// More than this of a core, taken by others, disturbs a sample.
const DISTURBED: f64 = 20.0;

pub(super) fn whole(results: &Results) -> Result<String> {
    Ok(format!(
        "\n# Bench\n\n{}\n## Goals\n\n{}\n## Figures\n\n{}{}",
        taken(results)?,
        goals(results)?,
        tables(results)?,
        failures(results)?
    ))
}

/// Where, when, of what, and how quiet it was.
pub(super) fn taken(results: &Results) -> Result<String> {
    let mut page = run(results);
    writeln!(
        page,
        "\n| subject | version | while it is measured |\n|---|---|---|"
    )?;
    for subject in &results.subjects {
        writeln!(
            page,
            "| {} | {} | {} |",
            subject.title, subject.version, subject.observed_by
        )?;
    }
    Ok(page)
}

/// Of runs on other machines: which they were, and what became of the goals there.
pub(super) fn elsewhere(runs: &[Results]) -> Result<String> {
    let mut page = String::new();
    if !runs.is_empty() {
        writeln!(page, "### On other machines\n")?;
    }
    for results in runs {
        writeln!(page, "{}\n{}", run(results), goals(results)?)?;
    }
    Ok(page)
}

/// When, of what and where, and what the figures are worth.
fn run(results: &Results) -> String {
    format!(
        "{}, {}; {}; {} of {} s each.\n\n{}{}\n",
        results.date,
        results.source,
        results.machine.line(),
        count(results.rounds, "round", "rounds"),
        number(results.seconds),
        quiet(results),
        spread(results)
    )
}

/// How far the rounds of the same work are apart, whatever it is that moves them.
fn spread(results: &Results) -> String {
    let mut spreads = Vec::new();
    for work in WORKS {
        for subject in &results.subjects {
            let costs = results.values(work.name, "cpu_us", &subject.name);
            let highest = costs.iter().copied().fold(0.0, f64::max);
            let lowest = costs.iter().copied().fold(f64::INFINITY, f64::min);
            if costs.len() > 1 && lowest > 0.0 {
                spreads.push(100.0 * (highest / lowest - 1.0));
            }
        }
    }
    median(spreads).map_or_else(String::new, |spread| {
        format!(
            " The same work by the same subject took {} % more CPU time in its dearest round than in its cheapest, in the middle case.",
            number(spread)
        )
    })
}

/// One line about the noise, whatever it was.
fn quiet(results: &Results) -> String {
    let timed = results
        .samples
        .iter()
        .filter(|sample| Work::of(&sample.work).is_some_and(Work::is_timed));
    let noise: Vec<f64> = timed.map(super::results::Sample::noise).collect();
    let samples = noise.len();
    let disturbed = noise.iter().filter(|noise| **noise > DISTURBED).count();
    let worst = noise.iter().copied().fold(0.0, f64::max);
    let Some(middle) = median(noise) else {
        return "Nothing in it depends on what else the machine did.".to_owned();
    };
    let verdict = if disturbed * 10 > samples {
        "**The machine was not quiet: these figures are rough and their ratios less so.**"
    } else {
        "The machine was quiet."
    };
    format!(
        "{verdict} Other programs and the host took {} % of a core in the middle sample and {} % in the \
         worst; {disturbed} of {samples} samples had more than {} %.",
        number(middle),
        number(worst),
        number(DISTURBED)
    )
}

pub(super) fn goals(results: &Results) -> Result<String> {
    let mut page = String::from("| work | goal | measured | | floor |\n|---|---|--:|---|---|\n");
    for goal in GOALS {
        let (measured, verdict) = match goal.outcome(results) {
            Outcome::NotMeasured => ("–".to_owned(), not_measured(goal, results)),
            Outcome::Met {
                value,
                within_noise,
            } => (of(goal, value), verdict("met", within_noise)),
            Outcome::Missed {
                value,
                within_noise,
            } => (of(goal, value), verdict("**missed**", within_noise)),
        };
        let reach = if goal.reach { "reach for " } else { "" };
        let bound = bound(goal, results);
        let floor = goal
            .floor(results)
            .map_or_else(String::new, |(about, ratio)| {
                format!("{} ×: {about}", number(ratio))
            });
        writeln!(
            page,
            "| {} | {reach}{bound} | {measured} | {verdict} | {floor} |",
            goal.about
        )?;
    }
    Ok(page)
}

fn bound(goal: &Goal, results: &Results) -> String {
    match goal.bound {
        Bound::AtMost(bound, peer) => format!("≤ {} × {}", number(bound), title(results, peer)),
        Bound::AtLeast(bound, peer) => format!("≥ {} × {}", number(bound), title(results, peer)),
        Bound::Below(bound, unit) => format!("≤ {} {unit}", number(bound)),
    }
}

fn of(goal: &Goal, value: f64) -> String {
    match goal.bound {
        Bound::AtMost(..) | Bound::AtLeast(..) => format!("{} ×", number(value)),
        Bound::Below(_, unit) => format!("{} {unit}", number(value)),
    }
}

fn verdict(word: &str, within_noise: bool) -> String {
    if within_noise {
        format!("{word}, by less than {:.0} %: noise", 100.0 * NOISE)
    } else {
        word.to_owned()
    }
}

fn not_measured(goal: &Goal, results: &Results) -> String {
    let peer = match goal.bound {
        Bound::AtMost(_, peer) | Bound::AtLeast(_, peer) => peer,
        Bound::Below(..) => REFERENCE,
    };
    let missing = [REFERENCE, peer]
        .into_iter()
        .find(|name| results.values(goal.work, goal.figure, name).is_empty());
    match missing {
        Some(name) => format!("{} was not measured", title(results, name)),
        None => "no round measured both".to_owned(),
    }
}

/// How a subject is called, also one that is not in the results.
fn title(results: &Results, name: &str) -> String {
    let found = results.subjects.iter().find(|subject| subject.name == name);
    match (found, super::subject::Spec::of(name)) {
        (Some(subject), _) => subject.title.clone(),
        (None, Some(spec)) => spec.title.to_owned(),
        (None, None) => name.to_owned(),
    }
}

/// A table for each test, best first.
pub(super) fn tables(results: &Results) -> Result<String> {
    let mut page = String::new();
    for work in WORKS {
        table(&mut page, work, results)?;
    }
    if !results.footprints.is_empty() {
        writeln!(
            page,
            "**footprint**: Fender's processes, when nothing happens\n"
        )?;
        writeln!(
            page,
            "| process | MB resident | MB proportional |\n|---|--:|--:|"
        )?;
        for footprint in &results.footprints {
            let (rss, pss) = (number(footprint.rss_mb), number(footprint.pss_mb));
            writeln!(page, "| {} | {rss} | {pss} |", footprint.process)?;
        }
    }
    Ok(page)
}

fn table(page: &mut String, work: &Work, results: &Results) -> Result<()> {
    let compared = work.compared();
    let middle = |subject: &str, key: &str| median(results.values(work.name, key, subject));
    let mut rows: Vec<(&str, &str, f64)> = results
        .subjects
        .iter()
        .filter_map(|subject| {
            let value = middle(&subject.name, compared.key)?;
            Some((subject.name.as_str(), subject.title.as_str(), value))
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_by(|one, other| one.2.total_cmp(&other.2));
    let titles: Vec<&str> = work.figures().iter().map(|figure| figure.title).collect();
    writeln!(page, "**{}**: {}\n", work.name, work.about)?;
    writeln!(
        page,
        "| subject | {} | {} ÷ Fender's | samples |",
        titles.join(" | "),
        compared.title
    )?;
    writeln!(page, "|---|{}--:|--:|", "--:|".repeat(titles.len()))?;
    for (name, title, _) in rows {
        write!(page, "| {title} |")?;
        for figure in work.figures() {
            let value = middle(name, figure.key);
            write!(page, " {} |", value.map_or("–".to_owned(), number))?;
        }
        let ratio = results.ratio(compared.key, (work.name, name), (work.name, REFERENCE));
        let samples = results.values(work.name, compared.key, name).len();
        let ratio = if name == REFERENCE {
            "1".to_owned()
        } else {
            ratio.map_or("–".to_owned(), times)
        };
        writeln!(page, " {ratio} | {samples} |")?;
    }
    writeln!(page)?;
    Ok(())
}

/// A ratio; one that is noise is called so.
fn times(ratio: f64) -> String {
    if (ratio - 1.0).abs() < NOISE {
        format!("≈ {}", number(ratio))
    } else {
        number(ratio)
    }
}

fn failures(results: &Results) -> Result<String> {
    let mut page = String::new();
    if !results.failures.is_empty() {
        writeln!(page, "\n## Not measured\n")?;
    }
    for failure in &results.failures {
        writeln!(
            page,
            "- {}, {}: {}",
            failure.work,
            title(results, &failure.subject),
            failure.why
        )?;
    }
    Ok(page)
}

/// Three digits that count, and thousands apart.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 {
        let text = format!("{value:.0}");
        return thousands(&text);
    }
    let digits = match size {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn thousands(digits: &str) -> String {
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let texts = [
            1_234_567.0,
            1234.5,
            123.4,
            12.34,
            1.234,
            2.0,
            20.0,
            0.0,
            -1234.0,
        ]
        .map(number);
        let expected = [
            "1,234,567",
            "1,234",
            "123",
            "12.3",
            "1.23",
            "2",
            "20",
            "0",
            "-1,234",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_table_puts_the_best_first_and_calls_noise_noise() {
        let results = results(&[
            ("h1_mtls", "nginx", &[30.0]),
            ("h1_mtls", "fender", &[20.0]),
            ("h1_mtls", "haproxy", &[21.0]),
        ]);
        let page = tables(&results).unwrap();
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(
            rows.get(1..).unwrap(),
            [
                "| fender | 20 | – | – | – | – | – | 1 | 1 |",
                "| haproxy | 21 | – | – | – | – | – | ≈ 1.05 | 1 |",
                "| nginx | 30 | – | – | – | – | – | 1.5 | 1 |",
            ]
        );
    }

    #[test]
    fn a_goal_says_why_it_has_no_figure() {
        let page = goals(&results(&[("h1_mtls", "fender", &[20.0])])).unwrap();
        assert!(
            page.contains("≤ 0.9 × HAProxy | – | HAProxy was not measured |  |"),
            "{page}"
        );
    }

    #[test]
    fn a_run_elsewhere_is_told_by_its_goals_its_source_and_how_far_its_rounds_are_apart() {
        let other = results(&[
            ("h1_mtls", "fender", &[10.0, 20.0, 30.0]),
            ("h1_mtls", "haproxy", &[20.0, 40.0, 60.0]),
        ]);
        let page = elsewhere(&[other]).unwrap();
        assert!(page.contains("2026-01-31, 0123456; test, "), "{page}");
        assert!(page.contains("took 200 % more CPU time"), "{page}");
        assert!(page.contains("≤ 0.9 × haproxy | 0.5 × | met"), "{page}");
        assert_eq!(elsewhere(&[]).unwrap(), "");
        // One round has nothing to be apart from.
        let once = results(&[("h1_mtls", "fender", &[10.0])]);
        assert!(!taken(&once).unwrap().contains("more CPU time"));
    }

    #[test]
    fn a_run_among_others_says_that_it_was_not_quiet() {
        let mut results = results(&[("h1_mtls", "fender", &[20.0, 20.0])]);
        assert!(taken(&results).unwrap().contains("The machine was quiet."));
        results.samples.first_mut().unwrap().others_percent = 90.0;
        let page = taken(&results).unwrap();
        assert!(
            page.contains("not quiet") && page.contains("1 of 2 samples"),
            "{page}"
        );
    }
}
