//! The bounds of HTTP requests on the wire. One outside its range is refused here too: whoever sent it, a sidecar's own
//! bounds hold.

use std::ops::RangeInclusive;
use std::time::Duration;

use fender_config::snapshot::RequestLimits;

use crate::convert::InvalidField;
use crate::proto::control::v1 as proto;

pub(super) fn limits(message: proto::RequestLimits) -> Result<RequestLimits, InvalidField> {
    type Of = RequestLimits;
    let number = |field, value, range| within(field, value, |value| value, range);
    let time = |field, value, range| within(field, value, Duration::from_millis, range);
    Ok(RequestLimits {
        head_bytes: number("limits.head_bytes", message.head_bytes, Of::HEAD_BYTES)?,
        head_fields: number("limits.head_fields", message.head_fields, Of::HEAD_FIELDS)?,
        head_time: time(
            "limits.head_time_millis",
            message.head_time_millis,
            Of::HEAD_TIME,
        )?,
        target_bytes: number(
            "limits.target_bytes",
            message.target_bytes,
            Of::TARGET_BYTES,
        )?,
        body_bytes: number("limits.body_bytes", message.body_bytes, Of::BODY_BYTES)?,
        idle: time("limits.idle_millis", message.idle_millis, Of::IDLE)?,
        stall: time("limits.stall_millis", message.stall_millis, Of::STALL)?,
        response: time(
            "limits.response_millis",
            message.response_millis,
            Of::RESPONSE,
        )?,
        request: time("limits.request_millis", message.request_millis, Of::REQUEST)?,
        streams: number("limits.streams", message.streams, Of::STREAMS)?,
    })
}

pub(super) fn from_limits(limits: &RequestLimits) -> proto::RequestLimits {
    let millis =
        |time: Option<Duration>| time.map(|time| time.as_millis().try_into().unwrap_or(u64::MAX));
    proto::RequestLimits {
        head_bytes: limits.head_bytes,
        head_fields: limits.head_fields,
        head_time_millis: millis(limits.head_time),
        target_bytes: limits.target_bytes,
        body_bytes: limits.body_bytes,
        idle_millis: millis(limits.idle),
        stall_millis: millis(limits.stall),
        response_millis: millis(limits.response),
        request_millis: millis(limits.request),
        streams: limits.streams,
    }
}

fn within<T: PartialOrd>(
    field: &'static str,
    value: Option<u64>,
    of: impl Fn(u64) -> T,
    range: RangeInclusive<T>,
) -> Result<Option<T>, InvalidField> {
    let value = value.map(of);
    match value.as_ref().is_none_or(|value| range.contains(value)) {
        true => Ok(value),
        false => Err(InvalidField::new(field, "is out of its range")),
    }
}
