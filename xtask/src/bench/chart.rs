//! A chart of what each subject costs as a multiple of Fender, as SVG: drawn here, so that nothing
//! has to be installed, and with colours for light and for dark pages.

use std::fmt::Write as _;

use anyhow::Result;

use super::page::{REFERENCE, number};
use super::results::{Results, median};
use super::work::Work;

/// What is drawn, and how the heading calls it.
const DRAWN: &[(&str, &str)] = &[
    ("h1_mtls", "HTTP/1.1 over mTLS, CPU per request"),
    ("h2_mtls", "HTTP/2 over mTLS, CPU per request"),
    ("orig", "Outbound, CPU per request"),
    ("h1_1m", "Answers of 1 MB, CPU per MB"),
    ("tcp_down", "Bytes over TLS, encrypting, CPU per MB"),
    ("tcp_up", "Bytes over TLS, decrypting, CPU per MB"),
    ("hs_tls", "Full TLS 1.3 handshake, CPU"),
    ("hs_mtls", "Full mTLS handshake, CPU"),
    ("hs_resume", "Resumed handshake, CPU"),
    ("idle", "Idle mTLS connection, memory"),
    ("active", "Active mTLS connection, memory"),
    ("startup", "Exec to first handshake"),
];

const COLUMNS: usize = 2;
const COLUMN: f64 = 420.0;
const NAME: f64 = 70.0;
/// Where bars end at most; longer ones are cut and say so.
const BAR: f64 = 220.0;
/// The multiple at which a bar is cut.
const LONGEST: f64 = 4.0;
const ROW: f64 = 18.0;
const HEADING: f64 = 22.0;
const GAP: f64 = 18.0;
const MARGIN: f64 = 16.0;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#24292f}.h{font-weight:600}.v{fill:#57606a}\
.peer{fill:#afb8c1}.own{fill:#0969da}.one{stroke:#57606a;stroke-dasharray:2 3}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.v{fill:#9198a1}.peer{fill:#59636e}\
.own{fill:#4493f8}.one{stroke:#9198a1}}";

struct Panel {
    heading: &'static str,
    bars: Vec<Bar>,
}

struct Bar {
    name: String,
    own: bool,
    /// As a multiple of Fender's.
    multiple: f64,
    value: String,
}

pub(super) fn svg(results: &Results) -> Result<String> {
    let panels: Vec<Panel> = DRAWN
        .iter()
        .filter_map(|(work, heading)| panel(results, Work::of(work)?, heading))
        .collect();
    let in_column = panels.len().div_ceil(COLUMNS).max(1);
    let columns: Vec<&[Panel]> = panels.chunks(in_column).collect();
    let tallest = columns
        .iter()
        .map(|column| height(column))
        .fold(0.0, f64::max);
    let (width, height) = (MARGIN + COLUMNS as f64 * COLUMN, MARGIN + tallest);
    let mut page = String::new();
    write!(
        page,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\">\n\
         <title>What each proxy costs as a multiple of Fender; shorter is better</title>\n\
         <style>{STYLE}</style>\n"
    )?;
    for (at, column) in columns.into_iter().enumerate() {
        let (left, mut top) = (MARGIN + at as f64 * COLUMN, MARGIN);
        for panel in column {
            draw(&mut page, panel, left, top)?;
            top += panel.height();
        }
    }
    page.push_str("</svg>\n");
    Ok(page)
}

fn panel(results: &Results, work: &Work, heading: &'static str) -> Option<Panel> {
    let figure = work.compared();
    let unit = match figure.key {
        "cpu_us" | "cpu_us_per_mb" | "p99_us" => "µs",
        "kb_per_connection" => "KB",
        "ms" => "ms",
        _ => "MB",
    };
    let mut bars: Vec<Bar> = results
        .subjects
        .iter()
        .filter_map(|subject| {
            let value = median(results.values(work.name, figure.key, &subject.name))?;
            Some(Bar {
                name: subject.title.clone(),
                own: subject.name == REFERENCE,
                multiple: results.ratio(
                    figure.key,
                    (work.name, &subject.name),
                    (work.name, REFERENCE),
                )?,
                value: format!("{} {unit}", number(value)),
            })
        })
        .collect();
    bars.sort_by(|one, other| one.multiple.total_cmp(&other.multiple));
    (!bars.is_empty()).then_some(Panel { heading, bars })
}

impl Panel {
    fn height(&self) -> f64 {
        HEADING + ROW * self.bars.len() as f64 + GAP
    }
}

fn height(column: &[Panel]) -> f64 {
    column.iter().map(Panel::height).sum()
}

fn draw(page: &mut String, panel: &Panel, left: f64, top: f64) -> Result<()> {
    let heading = escaped(panel.heading);
    writeln!(
        page,
        "<text class=\"h\" x=\"{left}\" y=\"{}\">{heading}</text>",
        top + 12.0
    )?;
    let (start, one) = (left + NAME, left + NAME + BAR / LONGEST);
    let (from, to) = (top + HEADING - 3.0, top + panel.height() - GAP);
    writeln!(
        page,
        "<line class=\"one\" x1=\"{one}\" x2=\"{one}\" y1=\"{from}\" y2=\"{to}\"/>"
    )?;
    for (at, bar) in panel.bars.iter().enumerate() {
        let y = top + HEADING + ROW * at as f64;
        let length = BAR * bar.multiple.clamp(0.0, LONGEST) / LONGEST;
        let class = if bar.own { "own" } else { "peer" };
        let (name, value) = (escaped(&bar.name), escaped(&bar.value));
        let cut = if bar.multiple > LONGEST { " »" } else { "" };
        let multiple = if bar.own {
            String::new()
        } else {
            format!(" · {}×", number(bar.multiple))
        };
        writeln!(
            page,
            "<text x=\"{left}\" y=\"{}\">{name}</text>\
             <rect class=\"{class}\" x=\"{start}\" y=\"{y}\" width=\"{length:.1}\" height=\"13\" rx=\"2\"/>\
             <text class=\"v\" x=\"{:.1}\" y=\"{}\">{cut} {value}{multiple}</text>",
            y + 11.0,
            start + length + 4.0,
            y + 11.0
        )?;
    }
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn bars_are_multiples_and_long_ones_are_cut() {
        let results = results(&[
            ("h1_mtls", "fender", &[10.0]),
            ("h1_mtls", "nginx", &[20.0]),
            ("h1_mtls", "envoy", &[100.0]),
        ]);
        let svg = svg(&results).unwrap();
        let bars: Vec<&str> = svg.lines().filter(|line| line.contains("<rect")).collect();
        let [own, twice, ten] = bars.as_slice() else {
            panic!("{svg}")
        };
        assert!(
            own.contains("class=\"own\"") && own.contains("width=\"55.0\""),
            "{own}"
        );
        assert!(
            twice.contains("width=\"110.0\"") && twice.contains("20 µs · 2×"),
            "{twice}"
        );
        assert!(
            ten.contains("width=\"220.0\"") && ten.contains("» 100 µs · 10×"),
            "{ten}"
        );
    }

    #[test]
    fn names_cannot_break_out_of_the_drawing() {
        assert_eq!(escaped("<a & b>"), "&lt;a &amp; b&gt;");
    }
}
