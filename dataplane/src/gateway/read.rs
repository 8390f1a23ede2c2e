//! Reads the body of a request, bounded in size and time, and what is left of one that is not wanted.

use std::time::Duration;

use bytes::Bytes;
use http::{header, request::Parts};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{
    alarm::Alarm,
    buffered::{Buffered, Counted, NoRoom},
    error::GatewayError,
    pace::{PaceError, Paced},
    proxy::Proxy,
};

/// A body that nobody wants is read if it is no longer and comes no later than this: then its connection goes on.
pub(super) const DISCARDED_BYTES: usize = 64 * 1024;
const DISCARDED_WITHIN: Duration = Duration::from_millis(250);

impl Proxy {
    /// The whole body, at the pace and by the deadline that clients have for it, and what it takes of the memory for
    /// bodies.
    pub(super) async fn read_body(
        &self,
        parts: &Parts,
        mut body: Incoming,
        alarm: &mut Alarm,
    ) -> Result<(Bytes, Buffered), GatewayError> {
        let limit = self.max_body_bytes;
        let announced = parts.headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        // Before it is asked for (`expect: 100-continue`).
        if announced.is_some_and(|length| length > limit as u64) {
            return Err(GatewayError::BodyTooLarge { limit });
        }
        if announced.is_some_and(|length| !self.buffers.have_room(length)) {
            return Err(self.no_room());
        }
        let limits = &self.limits;
        let mut held = Buffered::none(&self.buffers);
        let mut paced = Paced::new(&mut body, alarm, limits.slow_body, limits.body);
        let counted = Counted {
            body: &mut paced,
            held: &mut held,
        };
        match Limited::new(counted, limit).collect().await {
            Ok(collected) => Ok((collected.to_bytes(), held)),
            Err(error) if error.is::<NoRoom>() => Err(self.no_room()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(GatewayError::BodyTooLarge { limit })
            }
            Err(error) if matches!(error.downcast_ref(), Some(PaceError::Late)) => {
                Err(GatewayError::BodyTimeout(limits.body))
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

/// Reads what nobody wants, if that is little. False if there is more: then the connection cannot go on.
pub(super) async fn discard(parts: &Parts, body: &mut Incoming) -> bool {
    if body.is_end_stream() {
        return true;
    }
    // One who asks first may send it or not.
    if parts.headers.contains_key(header::EXPECT) {
        return false;
    }
    let mut body = Limited::new(body, DISCARDED_BYTES);
    let all = async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return false,
                None => return true,
            }
        }
    };
    timeout(DISCARDED_WITHIN, all).await.unwrap_or(false)
}
