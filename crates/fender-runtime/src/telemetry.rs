//! The log: one stream of lines on standard error, text or JSON. Nobody hangs because it is not read: then lines are lost.
//!
//! Which lines are written is a directive such as `info,fender_proxy=debug`. The access log is none of it: it is a record
//! and not a level of detail ([`crate::lines`]). A published build has no `trace`: there libraries write what passes through
//! them, heads of requests and all. Who asks for it is refused and not served less than that.

use std::fmt;
use std::str::FromStr;

use tracing::field::Field;
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

pub use standard_error::StandardError;
pub(crate) use standard_error::WholeLines;

mod standard_error;

/// How a line of the log reads.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(TelemetryError::Format(other.to_owned())),
        }
    }
}

/// Starts logging to standard error, for the whole process and once.
pub fn init(format: LogFormat, directive: &str) -> Result<(), TelemetryError> {
    let targets = targets(directive, STATIC_MAX_LEVEL)?;
    standard_error::prepare();
    let subscriber = Registry::default().with(layer(format, targets, || StandardError));
    Ok(tracing::subscriber::set_global_default(subscriber)?)
}

fn layer<S, W>(format: LogFormat, targets: Targets, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A line that cannot be written is lost; complaining about it on the same stream would panic.
    let lines = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_writer(writer);
    match format {
        LogFormat::Text => lines
            .with_ansi(false)
            .fmt_fields(format::debug_fn(write_field).delimited(" "))
            .with_filter(targets)
            .boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_filter(targets)
            .boxed(),
    }
}

/// Writes one field of a text line. What strangers wrote (a name in a certificate, for one) begins no
/// line of its own and steers no terminal.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => {}
        name => write!(writer, "{name}=")?,
    }
    for char in format!("{value:?}").chars() {
        if char.is_control() {
            write!(writer, "{}", char.escape_default())?;
        } else {
            writer.write_char(char)?;
        }
    }
    Ok(())
}

/// What a directive asks for, where this build has it: nothing above `most`. A target without a level is all there is of it.
fn targets(directive: &str, most: LevelFilter) -> Result<Targets, TelemetryError> {
    let asked = directive.split(',').filter_map(|part| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        level.trim().parse::<LevelFilter>().ok()
    });
    match asked.max() {
        Some(asked) if asked > most => Err(TelemetryError::NotInThisBuild(asked, most)),
        Some(_) | None => Targets::from_str(directive)
            .map_err(|error| TelemetryError::Directive(directive.to_owned(), error.to_string())),
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("`{0}` is no log format: write `text` or `json`")]
    Format(String),
    #[error("`{0}` is no log directive, write for example `info,fender_proxy=debug`: {1}")]
    Directive(String, String),
    #[error(
        "this build has no log lines of the level `{0}`, because libraries write there what passes through them: write `{1}`, or \
         build without `--release` and `--profile`"
    )]
    NotInThisBuild(LevelFilter, LevelFilter),
    #[error("the log was started already")]
    Started(#[from] SetGlobalDefaultError),
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, directive: &str, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let targets = targets(directive, LevelFilter::TRACE).unwrap();
        let layer = layer(format, targets, move || writer.clone());
        tracing::subscriber::with_default(Registry::default().with(layer), log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_directive_chooses_the_level_by_target() {
        let text = logged(LogFormat::Text, "warn,chatty=debug", || {
            tracing::info!(target: "quiet", "unheard");
            tracing::debug!(target: "chatty", "heard");
        });
        assert!(
            text.contains("heard") && !text.contains("unheard"),
            "{text}"
        );
    }

    #[test]
    fn json_is_one_object_per_line_whatever_the_message_holds() {
        let text = logged(LogFormat::Json, "info", || {
            tracing::info!(path = "a\nb", "line one\nline two");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(r#""path":"a\nb""#), "{text}");
    }

    #[test]
    fn a_text_line_stays_one_line_whatever_a_stranger_wrote() {
        let hostile = "spiffe://x\n2030-01-01T00:00:00Z  INFO access: peer=admin\r\u{1b}[2J\u{9b}";
        let text = logged(LogFormat::Text, "info", || {
            tracing::info!(reason = %hostile, path = hostile, "{hostile}");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let controls: Vec<char> = text.chars().filter(|char| char.is_control()).collect();
        assert_eq!(controls, ['\n'], "{text:?}");
        assert_eq!(text.matches("\\n2030").count(), 3, "{text}");
    }

    #[test]
    fn what_a_build_does_not_have_is_refused_and_not_left_out() {
        for asked in ["trace", "info,h2=trace"] {
            let error = targets(asked, LevelFilter::DEBUG).unwrap_err().to_string();
            assert!(
                error.contains("`trace`") && error.contains("write `debug`"),
                "{error}"
            );
            assert!(targets(asked, LevelFilter::TRACE).is_ok());
        }
        for asked in ["debug,h2=off", "info,fender_proxy", "h2"] {
            assert!(targets(asked, LevelFilter::DEBUG).is_ok(), "{asked}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_an_example() {
        let error = targets("fender=loud", LevelFilter::TRACE);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("`fender=loud`") && error.contains("debug"),
            "{error}"
        );
        assert!(
            "xml"
                .parse::<LogFormat>()
                .unwrap_err()
                .to_string()
                .contains("`json`")
        );
    }
}
