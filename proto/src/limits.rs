//! Every limit of the contract, in one place. The `.proto` comments repeat them for operators.

use std::{ops::RangeInclusive, time::Duration};

/// Longest model id or alias, in characters.
pub const MODEL_ID_CHARS: usize = 128;
/// Longest endpoint, worker or instance id, in characters.
pub const SHORT_ID_CHARS: usize = 63;
/// Longest endpoint url, in characters.
pub const URL_CHARS: usize = 512;
/// Longest host of an endpoint url in ASCII, in characters: the longest name of DNS (RFC 1035 §2.3.4).
pub const HOST_CHARS: usize = 253;
/// Longest path of a Unix socket, in bytes: what Linux takes.
pub const SOCKET_PATH_BYTES: usize = 107;
/// Longest path of a file on a worker's machine, in bytes.
pub const FILE_PATH_BYTES: usize = 4_096;
/// Largest bundle of PEM certificates of an endpoint, in bytes.
pub const CA_PEM_BYTES: usize = 64 << 10;
/// Longest name under which an endpoint serves a model, in characters: some are paths.
pub const SERVED_NAME_CHARS: usize = 256;
/// Most names that are told of those that an endpoint lists.
pub const LISTED_NAMES: usize = 16;
/// Largest answer to a probe that is read, in bytes.
pub const PROBE_BODY_BYTES: usize = 256 << 10;
/// Most aliases of a model.
pub const ALIASES: usize = 16;
/// Most endpoints of a model.
pub const ENDPOINTS: usize = 64;
/// Most endpoints of a model whose servers a source names.
pub const SOURCES: usize = 8;
/// Most servers of one source that are used.
pub const TARGETS: usize = 256;
/// Most servers that one list may name.
pub const LISTED: usize = 4_096;
/// Largest list of servers, in bytes.
pub const LIST_BYTES: usize = 1 << 20;
/// Most blocks of addresses that one source is allowed.
pub const ALLOWED_BLOCKS: usize = 32;
/// Most ports, or ranges of ports, that one source is allowed.
pub const ALLOWED_PORTS: usize = 16;
/// Most models that stand in for another.
pub const FALLBACKS: usize = 8;
/// Longest path of a health check, in characters.
pub const CHECK_PATH_CHARS: usize = 256;
/// Most models in a configuration.
pub const MODELS: usize = 10_000;
/// Most of them with a fleet-wide limit.
pub const FLEET_MODELS: usize = 500;
/// Leases shown with a worker.
pub const LEASES_SHOWN: usize = 100;
/// What a worker may count for where leases are divided, relative to others.
pub const LEASE_WEIGHT: RangeInclusive<u32> = 1..=100;
/// How long a lease lasts when it is not renewed.
pub const LEASE_TTL: RangeInclusive<Duration> = ms(500)..=secs(300);
/// How long requests beyond what is left of a lease go on when it has run out.
pub const LEASE_LINGER: RangeInclusive<Duration> = secs(0)..=secs(3_600);
/// Most changes in a batch.
pub const BATCH: usize = 1_000;
/// Longest author of a revision, in characters.
pub const AUTHOR_CHARS: usize = 128;
/// Longest reason of a revision, in characters.
pub const REASON_CHARS: usize = 512;
/// Largest encoded configuration, in bytes.
pub const CONFIG_BYTES: usize = 8 << 20;
/// Largest message on any gRPC stream of ours, in bytes: a configuration and its envelope.
pub const MESSAGE_BYTES: usize = CONFIG_BYTES + (1 << 20);
/// Bytes of a configuration or of a change that one message carries at most; what is larger goes in chunks. Small,
/// because a connection keeps buffers of the size of its largest message.
pub const CHUNK_BYTES: usize = 4 << 10;
/// Largest message of a worker, in bytes.
pub const WORKER_MESSAGE_BYTES: usize = 1 << 20;
/// Most reasons in one refusal.
pub const REFUSALS: usize = 100;
/// Longest text of one refusal, in characters.
pub const REFUSAL_CHARS: usize = 512;
/// Most text of all reasons of one worker that a control plane keeps, in bytes.
pub const REFUSAL_BYTES: usize = 16 << 10;
/// Most reasons in one answer about workers.
pub const REFUSALS_SHOWN: usize = 1_000;
/// Most configurations that a worker says it will not try again.
pub const QUARANTINED: usize = 8;

/// Most keys of clients that are not revoked.
pub const KEYS: usize = 10_000;
/// Most revoked keys that are kept.
pub const REVOKED_KEYS: usize = 10_000;
/// Largest set of keys as it is pushed, in bytes.
pub const KEYS_BYTES: usize = 8 << 20;
/// Longest name of a key, in characters.
pub const KEY_NAME_CHARS: usize = 128;
/// Most models that a key names.
pub const KEY_MODELS: usize = 64;
/// Longest credential of an endpoint, in characters.
pub const CREDENTIAL_CHARS: usize = 2_048;
/// Most peppers, and most seal keys, that are known at a time.
pub const SECRETS: usize = 8;
/// Requests of a key in a minute.
pub const KEY_REQUESTS: RangeInclusive<u32> = 1..=1_000_000;
/// Tokens of a key in a minute.
pub const KEY_TOKENS: RangeInclusive<u32> = 1..=4_000_000_000;
/// Requests of a key in flight.
pub const KEY_CONCURRENT: RangeInclusive<u32> = 1..=100_000;
/// Share of a key among those of its priority.
pub const KEY_WEIGHT: RangeInclusive<u32> = 1..=100;

/// Requests in flight of one model on one worker.
pub const POOL_SIZE: RangeInclusive<u32> = 1..=10_000;
/// Models of default size that a budget holds.
pub const MODELS_CONCURRENT: RangeInclusive<u32> = 1..=1_000;
/// Connections of one worker, all models together.
pub const BUDGET: RangeInclusive<u32> = 1..=100_000;
/// Requests waiting for one model on one worker.
pub const MAX_WAITING: RangeInclusive<u32> = 0..=100_000;
/// Longest name of a request header that is looked at, in characters.
pub const HEADER_NAME_CHARS: usize = 64;
/// By how much a stream may begin later than the quickest, in percent of its time.
pub const TOLERANCE_PERCENT: RangeInclusive<u32> = 110..=1_000;
/// Weight of an endpoint.
pub const WEIGHT: RangeInclusive<u32> = 1..=1_000;

/// Longest wait for a connection.
pub const MAX_WAIT: RangeInclusive<Duration> = ms(1)..=secs(3_600);
/// Idle limit of a connection.
pub const IDLE_TIMEOUT: RangeInclusive<Duration> = ms(100)..=secs(3_600);
/// Oldest age of a connection, when there is a limit.
pub const CONNECTION_AGE: RangeInclusive<Duration> = secs(1)..=secs(86_400);
/// Each deadline of a request.
pub const TIMEOUT: RangeInclusive<Duration> = ms(1)..=secs(86_400);
/// Time between comments in a stream, when there are any.
pub const KEEP_ALIVE: RangeInclusive<Duration> = secs(1)..=secs(3_600);

/// Time between two health checks of an endpoint.
pub const CHECK_INTERVAL: RangeInclusive<Duration> = ms(100)..=secs(3_600);
/// For the answer to a health check.
pub const CHECK_TIMEOUT: RangeInclusive<Duration> = ms(10)..=secs(60);
/// Health checks in a row that change where an endpoint stands.
pub const CHECKS: RangeInclusive<u32> = 1..=100;
/// Broken answers in a row that eject an endpoint; 0 is never.
pub const EJECTION_FAILURES: RangeInclusive<u32> = 0..=1_000;
/// How long an endpoint is ejected.
pub const EJECTION_TIME: RangeInclusive<Duration> = ms(100)..=secs(3_600);
/// How often a list of servers is looked at.
pub const REFRESH: RangeInclusive<Duration> = ms(100)..=secs(3_600);
/// How long servers serve on when their source says that there are none.
pub const KEEP_EMPTY: RangeInclusive<Duration> = Duration::ZERO..=secs(86_400);
/// Endpoints that one request is sent to.
pub const RETRY_ATTEMPTS: RangeInclusive<u32> = 1..=5;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
