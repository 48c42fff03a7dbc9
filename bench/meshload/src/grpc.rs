//! gRPC over an HTTP/2 connection by hand: as little memory for each simulated sidecar as it takes.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Method, Request, header};
use prost::Message;

use crate::Failed;

/// A message with its prefix.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

fn request(path: &str) -> Result<Request<()>, Failed> {
    Ok(Request::builder()
        .method(Method::POST)
        .uri(format!("https://{}{path}", crate::mesh::TRUST_DOMAIN))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())?)
}

/// Opens a stream; the caller sends on the one half and reads the other.
pub async fn open(
    connection: &SendRequest<Bytes>,
    path: &str,
) -> Result<(ResponseFuture, h2::SendStream<Bytes>), Failed> {
    let mut connection = connection.clone().ready().await?;
    Ok(connection.send_request(request(path)?, false)?)
}

/// One question, one answer.
pub async fn unary<Answer: Message + Default>(
    connection: &SendRequest<Bytes>,
    path: &str,
    question: Bytes,
) -> Result<Answer, Failed> {
    let (response, mut body) = open(connection, path).await?;
    body.send_data(question, true)?;
    let mut answers = Messages::of(response).await?;
    let answer = answers.next::<Answer>().await?;
    answer.ok_or_else(|| "no answer".into())
}

/// The messages of an answer.
pub struct Messages {
    body: RecvStream,
    buffer: BytesMut,
}

impl Messages {
    pub async fn of(response: ResponseFuture) -> Result<Self, Failed> {
        let (head, body) = response.await?.into_parts();
        judge(&head.headers)?;
        Ok(Self {
            body,
            buffer: BytesMut::new(),
        })
    }

    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Failed> {
        loop {
            if let Some(prefix) = self
                .buffer
                .get(1..5)
                .and_then(|bytes| bytes.try_into().ok())
            {
                let length = usize::try_from(u32::from_be_bytes(prefix))?;
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    let message = M::decode(self.buffer.split_to(length))?;
                    if self.buffer.is_empty() {
                        // Nothing is kept between messages.
                        self.buffer = BytesMut::new();
                    }
                    return Ok(Some(message));
                }
            }
            match self.body.data().await {
                Some(data) => {
                    let data = data?;
                    self.body.flow_control().release_capacity(data.len())?;
                    self.buffer.extend_from_slice(&data);
                }
                None => {
                    if let Some(trailers) = self.body.trailers().await? {
                        judge(&trailers)?;
                    }
                    return Ok(None);
                }
            }
        }
    }
}

/// An error if the server says that it is one.
fn judge(headers: &HeaderMap) -> Result<(), Failed> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &http::HeaderValue| value.to_str().ok())
    };
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(status) => {
            let message = text("grpc-message").unwrap_or_default();
            Err(format!("gRPC status {status}: {message}").into())
        }
    }
}
