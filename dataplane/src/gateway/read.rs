//! Reads the body of a request, bounded in size and time, and what is left of one that was refused.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{Version, header, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{
    alarm::Alarm,
    buffered::{Buffered, Counted, NoRoom},
    error::GatewayError,
    proxy::Proxy,
};

/// Longest time for a client to send its body.
pub(super) const BODY_WITHIN: Duration = Duration::from_secs(60);
/// How much of a refused body is read, and for how long, so that its client can hear the refusal.
const DISCARDED_BYTES: usize = 64 << 20;
const DISCARDED_WITHIN: Duration = Duration::from_secs(5);

impl Proxy {
    /// The whole body, by the alarm's deadline, and what it takes of the memory for bodies.
    pub(super) async fn read_body(
        &self,
        parts: &Parts,
        mut body: Incoming,
        alarm: &mut Alarm,
    ) -> Result<(Bytes, Buffered), GatewayError> {
        let (limit, deadline) = (self.max_body_bytes, alarm.at());
        let announced = parts.headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            discard(parts, body).await;
            return Err(GatewayError::BodyTooLarge { limit });
        }
        if announced.is_some_and(|length| !self.buffers.have_room(length)) {
            discard(parts, body).await;
            return Err(self.no_room());
        }
        let mut held = Buffered::none(&self.buffers);
        let counted = Counted {
            body: &mut body,
            held: &mut held,
        };
        let collecting = pin!(Limited::new(counted, limit).collect());
        let collected = alarm.within(deadline, collecting).await;
        match collected.ok_or(GatewayError::BodyTimeout(BODY_WITHIN))? {
            Ok(collected) => Ok((collected.to_bytes(), held)),
            Err(error) if error.is::<NoRoom>() => {
                drop(held);
                discard(parts, body).await;
                Err(self.no_room())
            }
            Err(error) if error.is::<LengthLimitError>() => {
                discard(parts, body).await;
                Err(GatewayError::BodyTooLarge { limit })
            }
            Err(error) => Err(GatewayError::BodyBroken(error.to_string())),
        }
    }

    fn no_room(&self) -> GatewayError {
        GatewayError::Overloaded {
            most: self.buffers.most(),
        }
    }
}

/// Reads on for a while what nobody wants. Closed with bytes unread, a connection is reset, and the client
/// never sees why it was refused.
pub(super) async fn discard(parts: &Parts, body: Incoming) {
    let over_http1 = parts.version <= Version::HTTP_11;
    // One who asks first has sent nothing yet.
    if !over_http1 || parts.headers.contains_key(header::EXPECT) {
        return;
    }
    let mut body = Limited::new(body, DISCARDED_BYTES);
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    // Longer than that is the client's own fault.
    drop(timeout(DISCARDED_WITHIN, all).await);
}
