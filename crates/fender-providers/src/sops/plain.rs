//! What a scalar of YAML means, in the words of the reader that SOPS uses (`go.yaml.in/yaml/v3`, `resolve.go`): what is proven of
//! a document is what it read there. Only values that are not encrypted are anything else than texts.

use super::Fault;
use super::value::{Text, Value};

/// `tag`: the last part of one of YAML's own, if one is written.
pub(super) fn resolve(text: &str, is_plain: bool, tag: Option<&str>) -> Result<Value, Fault> {
    let unfit = || Fault::of("has a value that is not what its tag says");
    match (tag, is_plain) {
        (Some("str"), _) | (None, false) => Ok(Value::Text(text.into())),
        (None, true) => meant(text),
        (Some("float"), _) => match meant(text)? {
            // Only a number that is written without its fraction needs the tag; the double is what it means.
            #[expect(clippy::cast_precision_loss, reason = "it is what the tag asks for")]
            Value::Int(number) => Ok(Value::Float(number as f64)),
            value @ Value::Float(_) => Ok(value),
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) | Value::Fields(_) => {
                Err(unfit())
            }
        },
        (Some(tag), _) => {
            let value = meant(text)?;
            let fits = match &value {
                Value::Null => tag == "null",
                Value::Bool(_) => tag == "bool",
                Value::Int(_) => tag == "int",
                Value::Float(_) | Value::Text(_) | Value::List(_) | Value::Fields(_) => false,
            };
            if fits { Ok(value) } else { Err(unfit()) }
        }
    }
}

fn meant(text: &str) -> Result<Value, Fault> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Value::Float(f64::NEG_INFINITY),
        _ if text.starts_with(|c: char| c == '.' || c == '+' || c == '-' || c.is_ascii_digit()) => {
            number(text)?
        }
        _ => Value::Text(text.into()),
    })
}

fn number(text: &str) -> Result<Value, Fault> {
    if let Some(moment) = super::time::moment(text) {
        return Ok(Value::Text(Text::new(moment.into_bytes())));
    }
    let bare = text.replace('_', "");
    match integer(&bare) {
        Some(Ok(number)) => return Ok(Value::Int(number)),
        Some(Err(fault)) => return Err(fault),
        None => {}
    }
    let is_float = !text.starts_with('.') || bare == text;
    let float = bare.parse::<f64>().ok();
    let float = float.filter(|float| is_float && float.is_finite() && is_decimal(&bare));
    Ok(float.map_or_else(|| Value::Text(text.into()), Value::Float))
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_decimal(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let some = |text: &str| !text.is_empty() && digits(text);
    let mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => some(fraction),
        Some((whole, fraction)) => some(whole) && digits(fraction),
        None => some(mantissa),
    };
    let exponent = exponent.map(|text| text.strip_prefix(['-', '+']).unwrap_or(text));
    mantissa && exponent.is_none_or(some)
}

/// As Go's `ParseInt(text, 0, 64)`: 0x, 0o, 0b and 0 name the base. SOPS reads none that is larger than 64 bits with a sign hold.
fn integer(text: &str) -> Option<Result<i64, Fault>> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let prefixed = |prefix: [&str; 2], base| {
        let rest = prefix
            .iter()
            .find_map(|prefix| digits.strip_prefix(*prefix));
        rest.map(|rest| (rest, base))
    };
    let (digits, base) = prefixed(["0x", "0X"], 16)
        .or_else(|| prefixed(["0o", "0O"], 8))
        .or_else(|| prefixed(["0b", "0B"], 2))
        .or_else(|| {
            digits
                .strip_prefix('0')
                .filter(|rest| !rest.is_empty())
                .map(|rest| (rest, 8))
        })
        .unwrap_or((digits, 10));
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    let size = i128::from_str_radix(digits, base).ok()?;
    let number = if negative { -size } else { size };
    match i64::try_from(number) {
        Ok(number) => Some(Ok(number)),
        // Larger still, it is a float.
        Err(_) if !negative && u64::try_from(number).is_ok() => {
            Some(Err(Fault::of("has a whole number that SOPS does not read")))
        }
        Err(_) => None,
    }
}
