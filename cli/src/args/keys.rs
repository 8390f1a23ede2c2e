//! The flags of `forebay keys`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{client::ClientArgs, examples::KEYS_EXAMPLES};

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make a key. Its secret is printed once and never again.
    #[command(after_help = KEYS_EXAMPLES)]
    Create {
        /// What it is for, to be told from others.
        name: String,
        #[command(flatten)]
        may: KeyArgs,
        /// Check everything, but make nothing.
        #[arg(long, visible_alias = "dry-run")]
        validate_only: bool,
        #[command(flatten)]
        signed: SignArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show all keys, without their secrets.
    List {
        /// Also those that are revoked.
        #[arg(long)]
        revoked: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one key, without its secret.
    Get {
        /// Its id: the 12 characters after `fbk_`.
        id: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Change what is named, and nothing else. The secret stays.
    Update {
        /// Its id: the 12 characters after `fbk_`.
        id: String,
        /// What it is for.
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
        #[command(flatten)]
        may: KeyArgs,
        /// Take a limit away, such as `requests_per_minute`, `models` (all) or `expire_time` (never).
        #[arg(long = "clear", value_name = "FIELD", value_delimiter = ',')]
        clear: Vec<String>,
        /// Only if this is still its etag.
        #[arg(long, default_value = "")]
        etag: String,
        /// Check everything, but change nothing.
        #[arg(long, visible_alias = "dry-run")]
        validate_only: bool,
        #[command(flatten)]
        signed: SignArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Revoke a key for good: new requests with it are refused at once.
    Revoke {
        /// Its id: the 12 characters after `fbk_`.
        id: String,
        /// Only if this is still its etag.
        #[arg(long, default_value = "")]
        etag: String,
        #[command(flatten)]
        signed: SignArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// What a key may do.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "What it may do, on each worker")]
pub(crate) struct KeyArgs {
    /// Models that it may use, by id or alias, separated by commas. [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) models: Vec<String>,
    /// When it ends, from now, such as 90d. [default: never]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) expires: Option<Duration>,
    /// Most requests in a minute. [default: no limit]
    #[arg(long, value_name = "N")]
    pub(crate) rpm: Option<u32>,
    /// Most tokens in a minute, prompts and completions. [default: no limit]
    #[arg(long, value_name = "N")]
    pub(crate) tpm: Option<u32>,
    /// Most requests in flight. [default: no limit]
    #[arg(long, value_name = "N")]
    pub(crate) max_concurrent: Option<u32>,
    /// Before or after others. [default: normal]
    #[arg(long, value_name = "PRIORITY")]
    pub(crate) priority: Option<KeyPriority>,
    /// Its share among keys of the same priority. [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) weight: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyPriority {
    /// After the others
    Low,
    /// In turn
    Normal,
    /// Before the others
    High,
}

/// Who writes, and why.
#[derive(Debug, Args)]
#[command(next_help_heading = "Write")]
pub(crate) struct SignArgs {
    /// Why; it is kept with the key.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Who; it is kept with the key. [default: the name of the user]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_AUTHOR",
        value_name = "NAME"
    )]
    pub(crate) author: Option<String>,
}
