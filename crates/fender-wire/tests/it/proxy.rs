//! PROXY headers: what is read and written, and each attack by its name.

use std::fs;
use std::path::Path;

use fender_wire::proxy::{
    Endpoints, Extension, Header, MAX_HEADER, Progress, Proxied, ProxyError, SIGNATURE, Ssl,
    Transport, Unwritable, read,
};

/// An input of the corpus, which says by its name what it is.
fn input(name: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus/proxy")
        .join(name);
    fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn header(name: &str) -> Header {
    match read(&input(name)) {
        Ok(Progress::Complete(header)) => header,
        other => panic!("{name}: {other:?}"),
    }
}

fn refused(name: &str) -> ProxyError {
    read(&input(name)).unwrap_err()
}

fn extensions(name: &str) -> Vec<Extension> {
    match header(name) {
        Header::Proxied(proxied) => proxied.extensions,
        Header::Local => panic!("{name} speaks for nobody"),
    }
}

fn endpoints(source: &str, destination: &str) -> Endpoints {
    Endpoints::Ip {
        transport: Transport::Stream,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

fn proxied(endpoints: Endpoints, extensions: Vec<Extension>) -> Header {
    Header::Proxied(Proxied {
        endpoints,
        extensions,
    })
}

#[test]
fn the_addresses_of_both_ends_are_read() {
    let ipv4 = endpoints("192.0.2.7:51000", "198.51.100.9:443");
    let ipv6 = endpoints("[2001:db8::7]:51000", "[2001:db8::9]:443");
    assert_eq!(header("ipv4-stream"), proxied(ipv4, vec![]));
    assert_eq!(header("ipv6-stream"), proxied(ipv6, vec![]));
    let Header::Proxied(unix) = header("unix-stream") else {
        panic!("it speaks for somebody")
    };
    let Endpoints::Unix { source, .. } = unix.endpoints else {
        panic!("{unix:?}")
    };
    assert!(source.starts_with(b"/run/client.sock\0"));
}

#[test]
fn a_sender_that_speaks_for_itself_says_nothing_else() {
    for name in ["local", "local-with-addresses", "local-with-nonsense"] {
        assert_eq!(header(name), Header::Local, "{name}");
    }
}

#[test]
fn a_sender_that_does_not_say_for_whom_it_speaks_is_not_believed_anything_else() {
    for name in ["unspecified", "unspecified-with-nonsense"] {
        assert_eq!(header(name), proxied(Endpoints::Unknown, vec![]), "{name}");
    }
}

#[test]
fn every_field_of_the_specification_is_read() {
    assert_eq!(extensions("alpn"), [Extension::Alpn(b"h2".to_vec())]);
    let authority = Extension::Authority("orders.shop.internal".to_owned());
    assert_eq!(extensions("authority"), [authority]);
    assert_eq!(extensions("noop"), []);
    assert_eq!(
        extensions("unique-id"),
        [Extension::UniqueId((0..128).collect())]
    );
    assert_eq!(
        extensions("namespace"),
        [Extension::Namespace("blue".to_owned())]
    );
    let text = |text: &str| Some(text.to_owned());
    let ssl = Ssl {
        client: Ssl::OVER_TLS | Ssl::CERTIFICATE_IN_CONNECTION | Ssl::CERTIFICATE_IN_SESSION,
        verify: 0,
        version: text("TLSv1.3"),
        common_name: text("web"),
        cipher: text("TLS_AES_128_GCM_SHA256"),
        signature_algorithm: text("SHA256"),
        key_algorithm: text("EC256"),
    };
    assert_eq!(extensions("ssl"), [Extension::Ssl(ssl)]);
    assert_eq!(extensions("vendor-twice").len(), 2);
}

/// A reader that took more than the header would take from the TLS behind it.
#[test]
fn no_byte_beyond_the_header_is_asked_for() {
    let bytes = input("checksum");
    let mut taken = 0;
    while let Progress::Needs(more) = read(&bytes[..taken]).unwrap() {
        taken += more;
        assert!(taken <= bytes.len());
    }
    assert_eq!(taken, bytes.len());
    assert_eq!(refused("more-than-the-header"), ProxyError::Overreads);
}

/// Who is silent after another protocol's first bytes is not waited for.
#[test]
fn what_is_no_header_is_refused_at_its_first_wrong_byte() {
    assert_eq!(read(b"\x16"), Err(ProxyError::LacksSignature));
    assert_eq!(read(b"GET"), Err(ProxyError::LacksSignature));
    assert_eq!(read(b"\r\n\r\nG"), Err(ProxyError::LacksSignature));
    assert_eq!(read(b"PROXY TCP4"), Err(ProxyError::IsVersion1));
    assert_eq!(read(b"POST"), Err(ProxyError::LacksSignature));
    assert_eq!(read(b""), Ok(Progress::Needs(16)));
    assert_eq!(read(&SIGNATURE), Ok(Progress::Needs(4)));
    assert_eq!(refused("version-1"), ProxyError::IsVersion1);
    assert_eq!(refused("tls-client-hello"), ProxyError::LacksSignature);
}

#[test]
fn a_length_is_refused_before_anything_is_waited_for() {
    assert_eq!(refused("length-too-long"), ProxyError::ExceedsLength);
    assert_eq!(
        refused("length-beyond-the-limit"),
        ProxyError::ExceedsLength
    );
    assert_eq!(extensions("length-at-the-limit").len(), 1);
}

#[test]
fn what_the_specification_does_not_list_is_refused() {
    assert_eq!(refused("version-3"), ProxyError::IsOtherVersion(3));
    assert_eq!(refused("command-unlisted"), ProxyError::BreaksCommand(2));
    for (name, family) in [
        ("family-without-transport", 0x10),
        ("transport-without-family", 0x01),
        ("family-unlisted", 0x41),
    ] {
        assert_eq!(refused(name), ProxyError::BreaksFamily(family), "{name}");
    }
}

#[test]
fn a_damaged_header_is_refused() {
    assert_eq!(
        extensions("checksum"),
        [Extension::Authority("orders".to_owned())]
    );
    assert_eq!(refused("checksum-wrong"), ProxyError::BreaksChecksum);
    assert_eq!(
        refused("checksum-of-three-bytes"),
        ProxyError::BreaksField(3)
    );
    let good = input("checksum");
    // The address, above all, cannot be changed without being noticed.
    for at in 16..28 {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(read(&bad), Err(ProxyError::BreaksChecksum), "byte {at}");
    }
}

/// Two readers of one header would believe two different things.
#[test]
fn nothing_is_said_twice_or_beyond_its_field() {
    for (name, kind) in [
        ("checksum-twice", 3),
        ("alpn-twice", 1),
        ("ssl-version-twice", 0x21),
    ] {
        assert_eq!(refused(name), ProxyError::RepeatsField(kind), "{name}");
    }
    for name in [
        "field-cut",
        "field-beyond-the-end",
        "ssl-version-beyond-its-field",
    ] {
        assert_eq!(refused(name), ProxyError::CutsField, "{name}");
    }
    assert_eq!(refused("addresses-cut"), ProxyError::CutsAddresses);
    for (name, kind) in [
        ("alpn-empty", 1),
        ("authority-with-a-line-end", 2),
        ("authority-not-utf8", 2),
        ("unique-id-too-long", 5),
        ("ssl-short", 0x20),
    ] {
        assert_eq!(refused(name), ProxyError::BreaksField(kind), "{name}");
    }
}

#[test]
fn ends_of_two_families_are_written_as_ipv6() {
    let mixed = proxied(endpoints("192.0.2.7:1", "[2001:db8::9]:443"), vec![]);
    let read_again = read(&mixed.to_bytes().unwrap());
    let mapped = proxied(
        endpoints("[::ffff:192.0.2.7]:1", "[2001:db8::9]:443"),
        vec![],
    );
    assert_eq!(read_again, Ok(Progress::Complete(mapped)));
}

#[test]
fn what_could_not_be_read_again_is_not_written() {
    let ends = || endpoints("192.0.2.7:1", "192.0.2.8:2");
    let other = |kind, length| Extension::Other {
        kind,
        value: vec![0; length],
    };
    let bad = [
        proxied(Endpoints::Unknown, vec![other(0xe0, 1)]),
        proxied(ends(), vec![other(0x03, 4)]),
        proxied(ends(), vec![other(0xe0, MAX_HEADER)]),
        proxied(ends(), vec![other(0xe0, 1 << 16)]),
        proxied(ends(), vec![Extension::Authority("a\nb".to_owned())]),
        proxied(ends(), vec![Extension::UniqueId(vec![0; 129])]),
    ];
    for header in bad {
        assert_eq!(header.to_bytes(), Err(Unwritable), "{header:?}");
    }
}
