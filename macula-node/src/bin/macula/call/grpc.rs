//! A gRPC call of one request whose messages are taken as they are, so that no schema is needed.

use futures::stream;
use macula_node::{Bytes, CallBuilder, CallError, RetryPolicy, ServiceName, Status, StatusCode};

use super::Answer;

/// The bytes before a message of gRPC: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The byte before an entry of a list of headers: field 1, length-delimited.
const ENTRY_KEY: u8 = 0x0a;
/// The most bytes of replies that are kept until the call has ended.
const MAX_REPLIES_BYTES: usize = 64 << 20;

/// Makes the call, and collects its replies.
pub(super) async fn call(service: &ServiceName, call: CallBuilder, message: Bytes) -> Result<Answer, CallError> {
    // As gRPC's own clients repeat a call.
    let call = call.retry_policy(RetryPolicy::Unavailable);
    let mut replies = call.stream(stream::iter([framed(&message)])).await?;
    let provider = replies.provider().map(|provider| provider.node_id);
    let failed = |code, words| CallError::Answered {
        service: service.clone(),
        status: Status::new(code, words),
        attempts: Vec::new(),
    };
    // A reply without any message has its outcome alone.
    let headers = replies.next().await?;
    if headers.is_some_and(|headers| !are_headers(&headers)) {
        let words = format!("{service} is served, but not as gRPC: call it without --grpc");
        return Err(failed(StatusCode::Unimplemented, words));
    }
    let mut messages = Messages::default();
    let mut bytes = 0;
    while let Some(piece) = replies.next().await? {
        bytes += piece.len();
        if bytes > MAX_REPLIES_BYTES {
            let words = format!("the replies have more than {MAX_REPLIES_BYTES} bytes; take them with a gRPC client");
            return Err(failed(StatusCode::ResourceExhausted, words));
        }
        messages.push(&piece);
    }
    Ok(Answer {
        replies: messages.whole,
        provider,
        steps: None,
    })
}

/// Whether the first message of a reply is a list of headers, as gRPC's are: empty, or an entry.
fn are_headers(message: &[u8]) -> bool {
    message.first().is_none_or(|byte| *byte == ENTRY_KEY)
}

fn framed(message: &[u8]) -> Bytes {
    // The largest request is far below 4 GiB.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = vec![0];
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// The messages in pieces that are cut anywhere. No reply is compressed, because the request does not allow it.
#[derive(Default)]
struct Messages {
    whole: Vec<Bytes>,
    rest: Vec<u8>,
}

impl Messages {
    fn push(&mut self, piece: &[u8]) {
        self.rest.extend(piece);
        while let Some((prefix, rest)) = self.rest.split_at_checked(PREFIX_BYTES) {
            let length = prefix[1..]
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte));
            let Some(message) = rest.get(..length) else { return };
            self.whole.push(Bytes::copy_from_slice(message));
            self.rest.drain(..PREFIX_BYTES + length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_put_together_from_pieces_that_are_cut_anywhere() {
        let sent = [framed(b"one"), framed(b""), framed(b"three")].concat();
        for size in 1..=sent.len() {
            let mut messages = Messages::default();
            sent.chunks(size).for_each(|piece| messages.push(piece));
            assert_eq!(messages.whole, ["one", "", "three"]);
        }
    }
}
