//! Reads the body of a request, bounded in size and time, and what is left of one that was refused.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{Version, header, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{alarm::Alarm, error::GatewayError, proxy::Proxy};

/// Longest time for a client to send its body.
pub(super) const BODY_WITHIN: Duration = Duration::from_secs(60);
/// How much of a refused body is read, and for how long, so that its client can hear the refusal.
const DISCARDED_BYTES: usize = 64 << 20;
const DISCARDED_WITHIN: Duration = Duration::from_secs(5);

impl Proxy {
    /// The whole body, by the alarm's deadline.
    pub(super) async fn read_body(
        &self,
        parts: &Parts,
        mut body: Incoming,
        alarm: &mut Alarm,
    ) -> Result<Bytes, GatewayError> {
        let (limit, deadline) = (self.max_body_bytes, alarm.at());
        let announced = parts.headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            discard(parts, body).await;
            return Err(GatewayError::BodyTooLarge { limit });
        }
        let collecting = pin!(Limited::new(&mut body, limit).collect());
        let collected = alarm.within(deadline, collecting).await;
        match collected.ok_or(GatewayError::BodyTimeout(BODY_WITHIN))? {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                discard(parts, body).await;
                Err(GatewayError::BodyTooLarge { limit })
            }
            Err(error) => Err(GatewayError::BodyBroken(error.to_string())),
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
