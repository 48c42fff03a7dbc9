//! Reads the vector tables: columns between ` | `, and bytes written with escapes.

/// One line of a table.
pub(crate) struct Row<const COLUMNS: usize> {
    pub(crate) columns: [&'static str; COLUMNS],
    pub(crate) bytes: Vec<u8>,
}

/// Every row of a table with `COLUMNS` columns before the bytes.
pub(crate) fn rows<const COLUMNS: usize>(table: &'static str) -> Vec<Row<COLUMNS>> {
    let mut names = std::collections::BTreeSet::new();
    let rows: Vec<_> = table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let parts: Vec<&str> = line.splitn(COLUMNS + 1, " | ").collect();
            assert_eq!(parts.len(), COLUMNS + 1, "{line}");
            let columns: [&str; COLUMNS] = parts[..COLUMNS].try_into().unwrap();
            assert!(names.insert(columns[0]), "{} stands twice", columns[0]);
            Row {
                columns,
                bytes: unescape(parts[COLUMNS]),
            }
        })
        .collect();
    assert!(!rows.is_empty());
    rows
}

/// Undoes `\r \n \t \\ \xHH` and `\{text*N}`.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        out.extend_from_slice(plain.as_bytes());
        let (kind, after) = escape.split_at(1);
        rest = after;
        match kind {
            "r" => out.push(b'\r'),
            "n" => out.push(b'\n'),
            "t" => out.push(b'\t'),
            "\\" => out.push(b'\\'),
            "x" => {
                let (digits, after) = rest.split_at(2);
                out.push(u8::from_str_radix(digits, 16).unwrap());
                rest = after;
            }
            "{" => {
                let (repeated, after) = rest.split_once('}').unwrap();
                let (text, count) = repeated.rsplit_once('*').unwrap();
                out.extend(unescape(text).repeat(count.parse().unwrap()));
                rest = after;
            }
            other => panic!("`\\{other}` is no escape"),
        }
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// The name of a refusal: the innermost variant of its `Debug`.
pub(crate) fn refusal(error: &dyn std::fmt::Debug) -> String {
    let debug = format!("{error:?}");
    let variants = debug.split('"').next().unwrap_or_default();
    let innermost = variants.split(['(', ')']).rfind(|name| !name.is_empty());
    innermost.unwrap_or_default().to_owned()
}
