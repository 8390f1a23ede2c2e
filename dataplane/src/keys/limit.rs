//! What one key has used on this worker: requests and tokens of the last minute, as buckets that fill up again, and
//! requests in flight. On the clock that only goes forward.
//!
//! Tokens are reserved when a request is let in, by what is known of it then, and settled when it is over: a key goes over
//! its limit by no more than one request's mistake, and pays for it before its next one.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use forebay_proto::KeyId;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::LiveKey;

const MINUTE: f64 = 60.0;
/// Deepest debt, in limits: what an upstream says of tokens may be anything, and no key shall pay for ever.
const DEEPEST: f64 = 5.0;

/// What one key has used. Shared by all of its versions.
#[derive(Debug, Default)]
pub(super) struct Usage {
    in_flight: AtomicU32,
    requests: Mutex<Bucket>,
    tokens: Mutex<Bucket>,
}

/// What is left of a limit. It is full at first, and after a minute without use.
#[derive(Debug, Default)]
struct Bucket {
    left: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn fill(&mut self, limit: f64, now: Instant) {
        self.left = match self.at {
            None => limit,
            Some(at) => {
                let since = now.saturating_duration_since(at).as_secs_f64();
                limit.min(self.left + limit / MINUTE * since)
            }
        };
        self.at = Some(now);
    }

    /// Takes so much, or says when it will be there. More than there ever is counts as all there is.
    fn take(&mut self, limit: f64, wanted: f64, now: Instant) -> Result<f64, Duration> {
        self.fill(limit, now);
        let wanted = wanted.min(limit);
        if self.left >= wanted {
            self.left -= wanted;
            return Ok(wanted);
        }
        Err(in_seconds((wanted - self.left) / (limit / MINUTE)))
    }
}

fn in_seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Which limit a request came up against, and when there is room again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Requests { limit: u32, again: Duration },
    Tokens { limit: u32, again: Duration },
    Concurrent { limit: u32 },
}

impl Refused {
    /// The metric's label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Requests { .. } => "requests_per_minute",
            Self::Tokens { .. } => "tokens_per_minute",
            Self::Concurrent { .. } => "max_concurrent",
        }
    }

    /// When to come again. Nobody knows when a request in flight ends: soon.
    pub(crate) fn again(self) -> Duration {
        match self {
            Self::Requests { again, .. } | Self::Tokens { again, .. } => again,
            Self::Concurrent { .. } => Duration::from_secs(1),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests { limit, .. } => write!(f, "{limit} requests per minute"),
            Self::Tokens { limit, .. } => write!(f, "{limit} tokens per minute"),
            Self::Concurrent { limit } => write!(f, "{limit} requests at a time"),
        }
    }
}

/// A request of a key, from when it is let in to its end, however that comes about.
#[derive(Debug)]
pub(crate) struct Hold {
    key: Arc<LiveKey>,
    /// Tokens that were taken for it.
    reserved: f64,
}

impl Hold {
    /// Lets a request in.
    pub(crate) fn new(key: &Arc<LiveKey>, now: Instant) -> Result<Self, Refused> {
        let usage = &key.usage;
        let before = usage.in_flight.fetch_add(1, Ordering::AcqRel);
        // From here on it is counted, and given back when it is refused.
        let hold = Self {
            key: key.clone(),
            reserved: 0.0,
        };
        if let Some(limit) = key.spec.max_concurrent.filter(|most| before >= most.get()) {
            let limit = limit.get();
            return Err(Refused::Concurrent { limit });
        }
        if let Some(limit) = key.spec.requests_per_minute {
            let taken = usage.requests.lock().take(of(limit), 1.0, now);
            let limit = limit.get();
            taken.map_err(|again| Refused::Requests { limit, again })?;
        }
        Ok(hold)
    }

    /// Takes the tokens that it is likely to use.
    pub(crate) fn reserve(&mut self, tokens: u64, now: Instant) -> Result<(), Refused> {
        let Some(limit) = self.key.spec.tokens_per_minute else {
            return Ok(());
        };
        let taken = self
            .key
            .usage
            .tokens
            .lock()
            .take(of(limit), as_f64(tokens), now);
        let limit = limit.get();
        self.reserved = taken.map_err(|again| Refused::Tokens { limit, again })?;
        Ok(())
    }

    /// It is over, and this is what it used.
    pub(crate) fn settle(&mut self, tokens: u64, now: Instant) {
        let Some(limit) = self.key.spec.tokens_per_minute else {
            return;
        };
        let more = as_f64(tokens) - std::mem::take(&mut self.reserved);
        let mut bucket = self.key.usage.tokens.lock();
        bucket.fill(of(limit), now);
        let left = bucket.left - more;
        bucket.left = left.clamp(-DEEPEST * of(limit), of(limit));
    }

    /// The key's public part.
    pub(crate) fn id(&self) -> KeyId {
        self.key.id
    }

    /// How its key stands; nothing if that has no limits.
    pub(crate) fn quota(&self, now: Instant) -> Option<Quota> {
        Quota::of(&self.key, now)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.key.usage.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

fn of(limit: NonZeroU32) -> f64 {
    f64::from(limit.get())
}

/// Tokens beyond 2^53 are one and the same.
#[expect(clippy::cast_precision_loss, reason = "limits are below 2^32")]
fn as_f64(tokens: u64) -> f64 {
    tokens as f64
}

/// How a key stands, as clients are told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quota {
    requests: Option<Standing>,
    tokens: Option<Standing>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Standing {
    limit: f64,
    left: f64,
}

static REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
static TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

impl Quota {
    /// How this key stands; nothing if it has no limits per minute.
    pub(crate) fn of(key: &LiveKey, now: Instant) -> Option<Self> {
        let standing = |limit: Option<NonZeroU32>, bucket: &Mutex<Bucket>| {
            let limit = of(limit?);
            let mut bucket = bucket.lock();
            bucket.fill(limit, now);
            let left = bucket.left;
            Some(Standing { limit, left })
        };
        let requests = standing(key.spec.requests_per_minute, &key.usage.requests);
        let tokens = standing(key.spec.tokens_per_minute, &key.usage.tokens);
        (requests.is_some() || tokens.is_some()).then_some(Self { requests, tokens })
    }

    /// In the headers that OpenAI's clients know.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        for (names, standing) in [(&REQUESTS, self.requests), (&TOKENS, self.tokens)] {
            let Some(standing) = standing else { continue };
            let reset = (standing.limit - standing.left) / (standing.limit / MINUTE);
            let values = [
                format!("{:.0}", standing.limit),
                format!("{:.0}", standing.left.max(0.0).floor()),
                spelled(in_seconds(reset.max(0.0))),
            ];
            for (name, value) in names.iter().zip(values) {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

/// As OpenAI spells it: `120ms`, `6s`, `1m12s`.
fn spelled(time: Duration) -> String {
    let millis = time.as_millis();
    let seconds = millis.div_ceil(1_000);
    match millis {
        0..1_000 => format!("{millis}ms"),
        _ if seconds < 60 => format!("{seconds}s"),
        _ => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use forebay_proto::KeySpec;
    use proptest::prelude::*;

    use super::*;

    fn key(requests: u32, tokens: u32, concurrent: u32) -> Arc<LiveKey> {
        Arc::new(LiveKey {
            id: KeyId::of_random(&[1; 9]),
            spec: KeySpec {
                requests_per_minute: NonZeroU32::new(requests),
                tokens_per_minute: NonZeroU32::new(tokens),
                max_concurrent: NonZeroU32::new(concurrent),
                ..KeySpec::default()
            },
            hash: [0; 32],
            verify: 0,
            usage: Arc::default(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_has_so_many_requests_and_says_when_the_next_may_come() {
        let key = key(60, 0, 0);
        for _ in 0..60 {
            Hold::new(&key, Instant::now()).unwrap();
        }
        let refused = Hold::new(&key, Instant::now()).unwrap_err();
        assert_eq!(
            refused,
            Refused::Requests {
                limit: 60,
                again: Duration::from_secs(1)
            }
        );
        tokio::time::advance(refused.again()).await;
        Hold::new(&key, Instant::now()).unwrap();
        Hold::new(&key, Instant::now()).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_reserved_and_settled_and_debts_are_paid() {
        let (key, now) = (key(0, 600, 0), Instant::now());
        let mut first = Hold::new(&key, now).unwrap();
        first.reserve(500, now).unwrap();
        let mut second = Hold::new(&key, now).unwrap();
        let refused = second.reserve(200, now).unwrap_err();
        assert_eq!(refused.again(), Duration::from_secs(10));
        first.settle(100, now);
        second.reserve(200, now).unwrap();
        second.settle(1_200, now);
        // 600 − 100 − 1200: 700 in debt.
        let mut third = Hold::new(&key, now).unwrap();
        assert_eq!(
            third.reserve(10, now).unwrap_err().again(),
            Duration::from_secs(71)
        );
        let later = now + Duration::from_secs(71);
        third.reserve(10, later).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_absurd_number_of_tokens_is_paid_within_minutes() {
        let (key, now) = (key(0, 600, 0), Instant::now());
        for _ in 0..3 {
            let mut hold = Hold::new(&key, now).unwrap();
            hold.settle(u64::MAX, now);
        }
        let mut next = Hold::new(&key, now).unwrap();
        let refused = next.reserve(600, now).unwrap_err();
        assert_eq!(refused.again(), Duration::from_secs(6 * 60));
        next.reserve(600, now + refused.again()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_a_minute_has_passes_when_it_is_whole() {
        let (key, now) = (key(0, 100, 0), Instant::now());
        Hold::new(&key, now)
            .unwrap()
            .reserve(1_000_000, now)
            .unwrap();
        let mut next = Hold::new(&key, now).unwrap();
        assert_eq!(
            next.reserve(u64::MAX, now).unwrap_err().again(),
            Duration::from_secs(60)
        );
    }

    #[test]
    fn what_is_in_flight_is_counted_exactly() {
        let (key, now) = (key(0, 0, 2), Instant::now());
        let one = Hold::new(&key, now).unwrap();
        let _two = Hold::new(&key, now).unwrap();
        for _ in 0..3 {
            let refused = Hold::new(&key, now).unwrap_err();
            assert_eq!(refused, Refused::Concurrent { limit: 2 });
        }
        drop(one);
        let _three = Hold::new(&key, now).unwrap();
        Hold::new(&key, now).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_told_how_it_stands() {
        let (key, now) = (key(120, 1_000, 0), Instant::now());
        let mut hold = Hold::new(&key, now).unwrap();
        hold.reserve(250, now).unwrap();
        let mut headers = HeaderMap::new();
        hold.quota(now).unwrap().write(&mut headers);
        let told = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(told("x-ratelimit-limit-requests"), "120");
        assert_eq!(told("x-ratelimit-remaining-requests"), "119");
        assert_eq!(told("x-ratelimit-reset-requests"), "500ms");
        assert_eq!(told("x-ratelimit-remaining-tokens"), "750");
        assert_eq!(told("x-ratelimit-reset-tokens"), "15s");
        assert_eq!(spelled(Duration::from_millis(72_001)), "1m13s");
        assert!(Quota::of(&super::tests::key(0, 0, 1), now).is_none());
    }

    proptest! {
        /// Over any stretch of time no more passes than the bucket and what flowed in.
        #[test]
        fn no_more_passes_than_the_limit(
            steps in prop::collection::vec((0_u64..5_000, 1_u32..50), 1..200), limit in 1_u32..500
        ) {
            let (mut bucket, start) = (Bucket::default(), Instant::now());
            let (mut now, mut passed) = (start, 0.0);
            for (millis, wanted) in steps {
                now += Duration::from_millis(millis);
                passed += bucket.take(limit.into(), wanted.into(), now).unwrap_or(0.0);
                let flowed = f64::from(limit) / MINUTE * (now - start).as_secs_f64();
                prop_assert!(passed <= f64::from(limit) + flowed + 1e-6);
            }
        }
    }
}
