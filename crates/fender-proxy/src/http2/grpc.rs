//! Answers of ours to a gRPC client.
//!
//! To such a client a bare 403 is a broken server. It is told by a status of its own, in a response that is
//! nothing but that ("Trailers-Only"), with the id under which we wrote down why.
//!
//! References: gRPC, `doc/PROTOCOL-HTTP2.md` and `doc/http-grpc-status-mapping.md`.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, Method, Response};

use crate::exchange::Answer;
use crate::headers::NO_STORE;

/// Whether this is a request of gRPC. `application/grpc-web` is another protocol, and gRPC knows only `POST`: whoever asks
/// otherwise, and any cache on the way, would take our refusal for a success.
pub(super) fn asks(method: &Method, headers: &HeaderMap) -> bool {
    let declared = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let kind = declared.and_then(|value| value.strip_prefix(b"application/grpc"));
    method == Method::POST && matches!(kind, Some([] | [b'+' | b';', ..]))
}

/// The whole response.
pub(super) fn response(answer: &Answer) -> http::Result<Response<()>> {
    let (name, id) = &answer.field;
    Response::builder()
        .status(200)
        .header(CONTENT_TYPE, "application/grpc")
        .header(CACHE_CONTROL, NO_STORE)
        .header("grpc-status", code(answer.status))
        .header("grpc-message", &answer.message)
        .header(*name, id)
        .body(())
}

/// What a gRPC client would have made of the status by itself.
fn code(status: u16) -> u16 {
    const UNKNOWN: u16 = 2;
    const PERMISSION_DENIED: u16 = 7;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match status {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_known_by_its_method_and_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpcx", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]);
            assert_eq!(asks(&Method::POST, &headers), expected, "{kind}");
            for other in [Method::GET, Method::HEAD, Method::PUT, Method::OPTIONS] {
                assert!(!asks(&other, &headers), "{other} {kind}");
            }
        }
        assert!(!asks(&Method::POST, &HeaderMap::new()));
    }
}
