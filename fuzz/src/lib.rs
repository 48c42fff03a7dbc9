//! The checks that the fuzz targets run, which are those of the crates' own tests.

#[path = "../../crates/fender-wire/tests/it/checks.rs"]
mod checks;

#[path = "../../crates/fender-identity/tests/it/checks.rs"]
mod identity;

/// A request head in arbitrary bytes: see `checks::head`.
pub fn head(data: &[u8]) {
    checks::head(data);
}

/// A response head in arbitrary bytes: see `checks::response`.
pub fn response(data: &[u8]) {
    checks::response(data);
}

/// A chunked body in arbitrary bytes: see `checks::chunked`.
pub fn chunked(data: &[u8]) {
    checks::chunked(data);
}

/// A path in arbitrary bytes: see `checks::path`.
pub fn path(data: &[u8]) {
    checks::path(data);
}

/// An identity header in arbitrary bytes: see `checks::xfcc`.
pub fn xfcc(data: &[u8]) {
    checks::xfcc(data);
}

/// A PROXY header in arbitrary bytes: see `checks::proxy`.
pub fn proxy(data: &[u8]) {
    checks::proxy(data);
}

/// Values of the fields of a trace context in arbitrary bytes: see `checks::trace`.
pub fn trace(data: &[u8]) {
    checks::trace(data);
}

/// Values of `X-Forwarded-For` in arbitrary bytes, behind a number of hops: see `checks::forwarded`.
pub fn forwarded(data: &[u8]) {
    checks::forwarded(data);
}

/// The first words of a stranger on a port with TLS: see `fender_proxy::fuzzing::hello`.
pub fn hello(data: &[u8]) {
    fender_proxy::fuzzing::hello(data);
}

/// A signed token, or a set of keys, in arbitrary bytes: see `identity::jwt`.
pub fn jwt(data: &[u8]) {
    identity::jwt(data);
}

/// A file of the credentials cache, in arbitrary bytes: see `fender_credentials::cache::fuzzing::cached`.
pub fn cached(data: &[u8]) {
    fender_credentials::cache::fuzzing::cached(data);
}

/// A file that age or SOPS encrypted, in arbitrary bytes: see `fender_providers::fuzzing::sealed`.
pub fn sealed(data: &[u8]) {
    fender_providers::fuzzing::sealed(data);
}
