//! Texts in the syntax of somebody else, so that no value is more than a value there.
//!
//! What a syntax cannot hold, or its readers do not read alike, is refused: each function says so with what it returns.

use zeroize::Zeroizing;

/// Breaks a line somewhere, or is not seen: control characters and the separators of Unicode.
pub(super) fn breaks(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// A JSON text in its quotes, and a double-quoted YAML scalar as well: what breaks a line in either is `\uXXXX`.
pub(super) fn json(text: &str, out: &mut Zeroizing<String>) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Those of YAML that may not stand for themselves, too.
            _ if breaks(character) || matches!(character, '\u{fffe}' | '\u{ffff}') => {
                unicode(character, out);
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

/// `\uXXXX`, of characters beyond the first 65,536 two.
fn unicode(character: char, out: &mut Zeroizing<String>) {
    let mut units = [0; 2];
    for unit in character.encode_utf16(&mut units) {
        out.push_str(&Zeroizing::new(format!("\\u{unit:04X}")));
    }
}

/// A value of a dotenv file: as it is where nobody could take it for more, in single quotes, or in double ones. None where
/// readers do not agree: lines, and both kinds of quotes.
pub(super) fn dotenv(text: &str, out: &mut Zeroizing<String>) -> Option<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:@%+,=".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        out.push_str(text);
        return Some(());
    }
    if text.chars().any(breaks) {
        return None;
    }
    // Some readers take `\\` and `\'` for escapes between single quotes.
    let quote = if !text.contains('\'') && !text.contains("\\\\") && !text.ends_with('\\') {
        '\''
    } else if !text.contains(['"', '\\', '$', '`', '!']) {
        '"'
    } else {
        return None;
    };
    out.push(quote);
    out.push_str(text);
    out.push(quote);
    Some(())
}

/// A key or a value of `java.util.Properties`, in ASCII.
pub(super) fn properties(text: &str, key: bool, out: &mut Zeroizing<String>) {
    for (at, character) in text.chars().enumerate() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '=' | ':' | '#' | '!' => {
                out.push('\\');
                out.push(character);
            }
            ' ' if key || at == 0 => out.push_str("\\ "),
            ' '..='~' => out.push(character),
            _ => unicode(character, out),
        }
    }
}

/// A word of a POSIX shell, in single quotes. None for a NUL, which no word holds.
pub(super) fn shell(text: &str, out: &mut Zeroizing<String>) -> Option<()> {
    if text.contains('\0') {
        return None;
    }
    out.push('\'');
    for part in text.split_inclusive('\'') {
        match part.strip_suffix('\'') {
            Some(before) => {
                out.push_str(before);
                out.push_str("'\\''");
            }
            None => out.push_str(part),
        }
    }
    out.push('\'');
    Some(())
}

/// Character data and attribute values of XML 1.0. None for characters that no XML document holds.
pub(super) fn xml(text: &str, out: &mut Zeroizing<String>) -> Option<()> {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' | '\u{7f}'..='\u{9f}' => {
                out.push_str(&Zeroizing::new(format!("&#{};", u32::from(character))));
            }
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => return None,
            _ => out.push(character),
        }
    }
    Some(())
}

/// A component of a URL (RFC 3986): all but unreserved characters as `%XX`.
pub(super) fn url(text: &str, out: &mut Zeroizing<String>) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&Zeroizing::new(format!("%{byte:02X}")));
        }
    }
}
