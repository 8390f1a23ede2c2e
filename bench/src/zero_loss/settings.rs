//! What a run is asked to do, and the limits of each part. Checked as a whole, every mistake at once, in
//! the words of the command line, because that is where they are written.

use std::{net::SocketAddr, time::Duration};

use http::{HeaderName, HeaderValue, Uri};

/// Most requests of a run, its reference included: each has a counter of its own.
pub const MOST_REQUESTS: u64 = 50_000_000;
const RATE: std::ops::RangeInclusive<u32> = 1..=20_000;
const TOKENS: std::ops::RangeInclusive<u32> = 1..=4_096;
const INTERVAL: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(10);
const DURATION: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
const EVERY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(3600);
const WITHIN: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
const IN_FLIGHT: std::ops::RangeInclusive<u32> = 1..=60_000;
const BURST: std::ops::RangeInclusive<u32> = 1..=100;
const MOST_NAMES: usize = 100;

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The gateway's base, such as `http://127.0.0.1:8080/v1`.
    pub url: Uri,
    /// What requests put in `model`; each draws one of these.
    pub models: Vec<String>,
    /// Added to every request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Where the upstreams listen that are started with the run. None: they are somebody else's, and
    /// only the form of their answers can be checked.
    pub upstreams: Vec<SocketAddr>,
    /// After how long the upstreams close an idle connection.
    pub upstream_keep_alive: Option<Duration>,
    /// Requests a second.
    pub rate: u32,
    /// How much of it is streams, from 0 to 1.
    pub stream_share: f64,
    /// Tokens of a stream.
    pub stream_tokens: u32,
    /// Tokens of a plain answer.
    pub plain_tokens: u32,
    /// The upstreams' time for a token.
    pub token_interval: Duration,
    /// How long requests are made.
    pub duration: Duration,
    /// How long they are made before anything is counted.
    pub warm_up: Duration,
    /// Longest time of one request.
    pub timeout: Duration,
    /// Most requests in flight; what is due above it counts as failed.
    pub most_in_flight: u32,
    /// What reconfigures the gateway.
    pub hook: Option<Hook>,
    /// Makes the same requests first without the hook, and tells the difference.
    pub baseline: bool,
    /// What is chosen at random is chosen from this.
    pub seed: u64,
}

/// A command that reconfigures the gateway.
#[derive(Debug, Clone)]
pub struct Hook {
    /// For `sh -c`.
    pub command: String,
    /// Run instead of it during the reference, so that processes cost the same there.
    pub baseline_command: Option<String>,
    /// From one start to the next.
    pub every: Duration,
    /// How many are started at once.
    pub burst: u32,
    /// Longest time of one.
    pub timeout: Duration,
}

/// A part that is out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {value}: {limit}")]
pub struct Invalid {
    /// Where it was said.
    pub flag: &'static str,
    /// What was said.
    pub value: String,
    /// What may be said.
    pub limit: String,
}

impl Settings {
    /// Everything that is out of bounds.
    #[must_use]
    pub fn violations(&self) -> Vec<Invalid> {
        let mut bad = Bad::default();
        bad.url(&self.url);
        bad.names(&self.models);
        bad.number("--rate", self.rate, RATE, "requests a second");
        bad.number("--stream-tokens", self.stream_tokens, TOKENS, "tokens");
        bad.number("--plain-tokens", self.plain_tokens, TOKENS, "tokens");
        bad.number(
            "--most-in-flight",
            self.most_in_flight,
            IN_FLIGHT,
            "requests",
        );
        bad.time("--token-interval", self.token_interval, INTERVAL);
        bad.time("--duration", self.duration, DURATION);
        bad.time("--warm-up", self.warm_up, Duration::ZERO..=*DURATION.end());
        bad.time("--timeout", self.timeout, WITHIN);
        if let Some(limit) = self.upstream_keep_alive {
            bad.time("--upstream-keep-alive", limit, WITHIN);
        }
        if !(0.0..=1.0).contains(&self.stream_share) {
            let limit = "from 0 (no streams) to 1 (nothing else)".to_owned();
            bad.add("--stream-share", self.stream_share.to_string(), limit);
        }
        if let Some(hook) = &self.hook {
            bad.hook(hook);
        }
        let all = self.requests_in_all();
        if all > MOST_REQUESTS {
            let limit = format!(
                "that is {all} requests in all; at most {MOST_REQUESTS}; lower --rate or --duration"
            );
            bad.add("--duration", format!("{:?}", self.duration), limit);
        }
        bad.0
    }

    /// Requests within this time.
    pub(crate) fn requests_within(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * f64::from(self.rate)) as u64
    }

    /// Requests of all parts of the run, the first try of each model included.
    pub(crate) fn requests_in_all(&self) -> u64 {
        let times = if self.baseline { 2 } else { 1 };
        let tries = 2 * self.models.len() as u64;
        let counted = times * self.requests_within(self.duration);
        counted + self.requests_within(self.warm_up) + tries
    }
}

#[derive(Debug, Default)]
struct Bad(Vec<Invalid>);

impl Bad {
    fn add(&mut self, flag: &'static str, value: String, limit: String) {
        self.0.push(Invalid { flag, value, limit });
    }

    fn number(
        &mut self,
        flag: &'static str,
        value: u32,
        range: std::ops::RangeInclusive<u32>,
        unit: &str,
    ) {
        if !range.contains(&value) {
            let limit = format!("from {} to {} {unit}", range.start(), range.end());
            self.add(flag, value.to_string(), limit);
        }
    }

    fn time(
        &mut self,
        flag: &'static str,
        value: Duration,
        range: std::ops::RangeInclusive<Duration>,
    ) {
        if !range.contains(&value) {
            let limit = format!("from {:?} to {:?}", range.start(), range.end());
            self.add(flag, format!("{value:?}"), limit);
        }
    }

    fn url(&mut self, url: &Uri) {
        let way_out = "write it as http://HOST:PORT/v1";
        let problem = match (url.scheme_str(), url.authority()) {
            (Some("http"), Some(_)) if url.query().is_none() => return,
            (Some("http"), Some(_)) => "a query cannot be part of a base".to_owned(),
            (Some("http") | None, _) => "no scheme or no host".to_owned(),
            (Some(scheme), _) => format!("scheme `{scheme}` is not supported"),
        };
        self.add("--url", url.to_string(), format!("{problem}; {way_out}"));
    }

    fn names(&mut self, models: &[String]) {
        if models.is_empty() || models.len() > MOST_NAMES {
            let limit = format!("from 1 to {MOST_NAMES} names, separated by commas");
            self.add("--model", models.len().to_string(), limit);
        }
        if let Some(name) = models.iter().find(|name| name.is_empty()) {
            let limit = "a name cannot be empty; separate names by single commas".to_owned();
            self.add("--model", format!("{name:?}"), limit);
        }
    }

    fn hook(&mut self, hook: &Hook) {
        self.time("--every", hook.every, EVERY);
        self.number("--hooks-per-burst", hook.burst, BURST, "at once");
        self.time("--hook-timeout", hook.timeout, WITHIN);
        for (flag, command) in [
            ("--hook", Some(&hook.command)),
            ("--baseline-hook", hook.baseline_command.as_ref()),
        ] {
            if command.is_some_and(|command| command.trim().is_empty()) {
                let limit = "an empty command; leave the flag out".to_owned();
                self.add(flag, "\"\"".to_owned(), limit);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn settings() -> Settings {
        Settings {
            url: Uri::from_static("http://127.0.0.1:8080/v1"),
            models: vec!["m".to_owned()],
            headers: Vec::new(),
            upstreams: Vec::new(),
            upstream_keep_alive: Some(Duration::from_secs(5)),
            rate: 100,
            stream_share: 0.3,
            stream_tokens: 5,
            plain_tokens: 2,
            token_interval: Duration::from_millis(1),
            duration: Duration::from_secs(1),
            warm_up: Duration::ZERO,
            timeout: Duration::from_secs(5),
            most_in_flight: 1_000,
            hook: None,
            baseline: false,
            seed: 1,
        }
    }

    #[test]
    fn everything_out_of_bounds_is_named_at_once() {
        assert_eq!(settings().violations(), []);
        let bad = Settings {
            url: Uri::from_static("https://x/v1"),
            models: vec!["a".to_owned(), String::new()],
            rate: 0,
            stream_share: f64::NAN,
            stream_tokens: 5_000,
            plain_tokens: 0,
            token_interval: Duration::from_secs(60),
            duration: Duration::ZERO,
            timeout: Duration::ZERO,
            most_in_flight: 0,
            hook: Some(Hook {
                command: " ".to_owned(),
                baseline_command: None,
                every: Duration::ZERO,
                burst: 0,
                timeout: Duration::ZERO,
            }),
            ..settings()
        };
        let flags: Vec<_> = bad.violations().iter().map(|bad| bad.flag).collect();
        assert_eq!(
            flags,
            [
                "--url",
                "--model",
                "--rate",
                "--stream-tokens",
                "--plain-tokens",
                "--most-in-flight",
                "--token-interval",
                "--duration",
                "--timeout",
                "--stream-share",
                "--every",
                "--hooks-per-burst",
                "--hook-timeout",
                "--hook",
            ]
        );
        let long = Settings {
            rate: 20_000,
            duration: Duration::from_secs(2_000),
            baseline: true,
            ..settings()
        };
        let told = long.violations();
        assert_eq!(told.len(), 1);
        assert!(
            told[0].to_string().contains("80000002 requests"),
            "{told:?}"
        );
    }
}
