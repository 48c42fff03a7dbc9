//! The bounds of HTTP requests: what is written at one place, each within its range.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::duration;
use crate::raw;
use crate::snapshot::{Protocol, RequestLimits};
use crate::yaml::{At, Reader};

/// The units of a size, and by how many bits each shifts; the largest first.
const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// What one place says. What is wrong is told and left out.
pub(super) fn limits(reader: &mut Reader<'_>, written: Option<&At<raw::Limits>>) -> RequestLimits {
    let Some(raw::Limits {
        head_bytes,
        head_fields,
        head_time,
        target_bytes,
        body_bytes,
        idle,
        stall,
        response,
        request,
        streams,
    }) = written.map(|at| &at.value)
    else {
        return RequestLimits::default();
    };
    type Of = RequestLimits;
    RequestLimits {
        head_bytes: size(reader, "headBytes", head_bytes, &Of::HEAD_BYTES),
        head_fields: count(reader, "headFields", head_fields, &Of::HEAD_FIELDS),
        head_time: time(reader, "headTime", head_time, &Of::HEAD_TIME),
        target_bytes: size(reader, "targetBytes", target_bytes, &Of::TARGET_BYTES),
        body_bytes: size(reader, "bodyBytes", body_bytes, &Of::BODY_BYTES),
        idle: time(reader, "idle", idle, &Of::IDLE),
        stall: time(reader, "stall", stall, &Of::STALL),
        response: time(reader, "response", response, &Of::RESPONSE),
        request: time(reader, "request", request, &Of::REQUEST),
        streams: count(reader, "streams", streams, &Of::STREAMS),
    }
}

/// What a port says of itself.
pub(super) fn of_port(
    reader: &mut Reader<'_>,
    written: Option<&At<raw::Limits>>,
    protocol: Option<Protocol>,
) -> RequestLimits {
    if let (Some(at), Some(Protocol::Tcp)) = (written, protocol) {
        reader.wrong(
            at,
            "fender::not-http",
            "`limits` is about HTTP requests, and this port is `tcp`",
            "remove `limits`, or write `protocol: http`",
        );
    }
    limits(reader, written)
}

fn time(
    reader: &mut Reader<'_>,
    field: &str,
    written: &Option<At<String>>,
    range: &RangeInclusive<Duration>,
) -> Option<Duration> {
    duration(
        reader,
        field,
        written.as_ref()?,
        *range.start(),
        *range.end(),
    )
}

fn count(
    reader: &mut Reader<'_>,
    field: &str,
    written: &Option<At<i64>>,
    range: &RangeInclusive<u64>,
) -> Option<u64> {
    let at = written.as_ref()?;
    let count = u64::try_from(at.value).ok();
    let count = count.filter(|count| range.contains(count));
    if count.is_none() {
        let (least, most) = (range.start(), range.end());
        let message = format!("`{field}` may not be `{}`", at.value);
        let help = format!("it lies between {least} and {most}");
        reader.wrong(at, "fender::bad-number", message, help);
    }
    count
}

fn size(
    reader: &mut Reader<'_>,
    field: &str,
    written: &Option<At<String>>,
    range: &RangeInclusive<u64>,
) -> Option<u64> {
    let at = written.as_ref()?;
    let Some(size) = parse_size(&at.value) else {
        let message = format!("`{}` is not a size", at.value);
        let help = "write it like `512B`, `16KiB`, `10MiB` or `1GiB`";
        reader.wrong(at, "fender::bad-size", message, help);
        return None;
    };
    if range.contains(&size) {
        return Some(size);
    }
    let (least, most) = (shown(*range.start()), shown(*range.end()));
    let message = format!("`{field}` may not be `{}`", at.value);
    let help = format!("it lies between `{least}` and `{most}`");
    reader.wrong(at, "fender::bad-size", message, help);
    None
}

/// Bytes of a size as people write it: whole, in powers of 1024, with its unit.
fn parse_size(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let (_, bits) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(1 << bits)
}

fn shown(bytes: u64) -> String {
    let whole = |(_, bits): &&(&str, u32)| bytes.is_multiple_of(1 << bits);
    let (unit, bits) = UNITS.iter().find(whole).unwrap_or(&("B", 0));
    format!("{}{unit}", bytes >> bits)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::read::span;

    #[test]
    fn a_size_is_whole_and_has_a_unit() {
        for (text, bytes) in [
            ("512B", 512),
            ("16KiB", 16 << 10),
            ("10MiB", 10 << 20),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(shown(bytes), text);
        }
        for wrong in [
            "",
            "16",
            "KiB",
            "16 KiB",
            "16KB",
            "16k",
            "1.5MiB",
            "-1KiB",
            "+1KiB",
            "16kib",
            "99999999999TiB",
        ] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    /// What the reference says is what is held to.
    #[test]
    fn every_field_is_documented_with_its_range() {
        type Of = RequestLimits;
        let (sizes, counts, times) = (
            |range: RangeInclusive<u64>| {
                format!("{} to {}", shown(*range.start()), shown(*range.end()))
            },
            |range: RangeInclusive<u64>| format!("{} to {}", range.start(), range.end()),
            |range: RangeInclusive<Duration>| {
                format!("{} to {}", span(*range.start()), span(*range.end()))
            },
        );
        let ranges = [
            ("headBytes", sizes(Of::HEAD_BYTES)),
            ("headFields", counts(Of::HEAD_FIELDS)),
            ("headTime", times(Of::HEAD_TIME)),
            ("targetBytes", sizes(Of::TARGET_BYTES)),
            ("bodyBytes", sizes(Of::BODY_BYTES)),
            ("idle", times(Of::IDLE)),
            ("stall", times(Of::STALL)),
            ("response", times(Of::RESPONSE)),
            ("request", times(Of::REQUEST)),
            ("streams", counts(Of::STREAMS)),
        ];
        let schema = schemars::schema_for!(raw::Limits);
        let properties = schema.get("properties").and_then(Value::as_object).unwrap();
        assert_eq!(properties.len(), ranges.len());
        for (field, range) in ranges {
            let said = properties[field]["description"].as_str().unwrap();
            assert!(
                said.contains(&format!(": {range}")),
                "{field}: {range}: {said}"
            );
        }
    }
}
