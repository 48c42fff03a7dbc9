//! What types find in a tree, and where.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::*;
use crate::yaml::At;

fn read<T: DeserializeOwned>(text: &str) -> Result<T, Misfit> {
    let node = serde_saphyr::from_str(text).unwrap();
    T::deserialize(Branch { node: &node, text })
}

#[test]
fn a_plain_scalar_is_what_is_asked_for_and_a_quoted_one_is_a_text() {
    for written in [
        "8443",
        "0x1F",
        "1_000",
        "1.10",
        "-3",
        "1e3",
        "true",
        "2026-11-27",
        "é",
    ] {
        assert_eq!(read::<String>(written).unwrap(), written);
        // Not at the start of the text, and behind letters of several bytes.
        let texts: BTreeMap<String, String> = read(&format!("ü: é # ä\nb: {written} # c")).unwrap();
        assert_eq!(texts["b"], written);
        let texts: Vec<String> = read(&format!("[ä,  {written} , \"{written}\"]")).unwrap();
        assert_eq!(texts[1..], [written, written]);
    }
    assert_eq!(read::<u16>("8443").unwrap(), 8443);
    assert_eq!(read::<i8>("-3").unwrap(), -3);
    assert!(read::<bool>("true").unwrap());
    assert_eq!(read::<Option<u8>>("~").unwrap(), None);
    let by_number: BTreeMap<String, u8> = read("80: 1").unwrap();
    assert_eq!(by_number["80"], 1);
    for (written, expected, found) in [
        ("70000", "u16", "integer `70000`"),
        ("\"80\"", "u16", "string \"80\""),
        ("~", "u16", "unit value"),
        ("[80]", "u16", "sequence"),
    ] {
        let why = read::<u16>(written).unwrap_err().why;
        let Why::Type {
            expected: wanted,
            found: seen,
        } = why
        else {
            panic!("{why:?}")
        };
        assert_eq!((&*wanted, &*seen), (expected, found));
    }
    let quoted = read::<bool>("\"true\"").unwrap_err().why;
    assert!(matches!(quoted, Why::Type { .. }), "{quoted:?}");
    let nothing = read::<String>("~").unwrap_err().why;
    assert!(matches!(nothing, Why::Type { .. }), "{nothing:?}");
}

#[test]
fn a_value_is_where_it_is_used_and_a_misfit_where_it_is_written_wrong() {
    let spot = |line, column, length| Spot {
        line,
        column,
        length,
    };
    let values: BTreeMap<String, At<String>> = read("a: &x 8443\nbc: *x\n").unwrap();
    assert_eq!(values["a"].value, "8443");
    assert_eq!(values["bc"].value, "8443");
    assert_eq!(values["a"].location, spot(1, 7, 4));
    assert_eq!(values["bc"].location.line, 2);
    let misfit = read::<Vec<BTreeMap<String, u8>>>("- a: 1\n- b: [2]\n").unwrap_err();
    assert_eq!(
        misfit.spot.map(|spot| (spot.line, spot.column)),
        Some((2, 6))
    );
}

#[test]
fn a_spot_is_packed_and_unpacked() {
    let most = u32::MAX;
    for [line, column, length] in [[0, 0, 0], [1, 2, 3], [most, most, most], [most, 0, most]] {
        let spot = Spot {
            line,
            column,
            length,
        };
        assert_eq!(Spot::unpacked(spot.packed()), spot);
    }
}

#[test]
fn an_enum_is_a_word_or_one_field() {
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Way {
        Straight,
        Left(u8),
    }
    assert_eq!(read::<Way>("straight").unwrap(), Way::Straight);
    assert_eq!(read::<Way>("{ left: 3 }").unwrap(), Way::Left(3));
    assert!(read::<Way>("right").is_err());
    assert!(read::<Way>("[straight]").is_err());
}
