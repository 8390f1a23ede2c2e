//! The way into etcd: a connection to each member, and a token for its user. Certificates and the password are read anew
//! for each connection and each token, so that they can be replaced while this runs; what cannot be read or used is as it
//! was, and is told. It decides nothing about which member is used.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{task::spawn_blocking, time::Instant};
use tonic::{
    Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{
    CallError, EtcdAccess, EtcdError,
    access::Credentials,
    api::{AuthenticateRequest, auth_client::AuthClient},
    ends::chain,
};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(1);
/// etcd ends connections on which pings come more often than every 5 s.
const PING: Duration = Duration::from_secs(6);
const PING_ANSWER: Duration = Duration::from_secs(3);
/// A token that is no older was not forgotten.
const YOUNG: Duration = Duration::from_secs(10);

/// One member.
pub(super) struct Member {
    name: String,
    is_tls: bool,
    access: EtcdAccess,
    /// As the files were when they could be used last.
    endpoint: Mutex<Endpoint>,
    channel: Mutex<Option<Channel>>,
    failed: Mutex<Option<Instant>>,
    /// It was told that the files cannot be used: not for each connection anew.
    told: AtomicBool,
}

impl Member {
    pub(super) fn new(name: &str, is_tls: bool, access: &EtcdAccess) -> Result<Self, EtcdError> {
        Ok(Self {
            name: name.to_owned(),
            is_tls,
            access: access.clone(),
            endpoint: Mutex::new(endpoint(name, is_tls, access)?),
            channel: Mutex::new(None),
            failed: Mutex::new(None),
            told: AtomicBool::new(false),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// When it failed last.
    pub(super) fn failed(&self) -> Option<Instant> {
        *self.failed.lock()
    }

    /// It did not do: the next call to it is by a new connection.
    pub(super) fn leave(&self, now: Instant) {
        self.channel.lock().take();
        *self.failed.lock() = Some(now);
    }

    /// Its channel, connected.
    pub(super) async fn channel(&self) -> Result<Channel, String> {
        if let Some(channel) = self.channel.lock().clone() {
            return Ok(channel);
        }
        let connected = self.endpoint_now().await.connect().await;
        let channel = connected.map_err(|error| chain(&error))?;
        *self.channel.lock() = Some(channel.clone());
        Ok(channel)
    }

    async fn endpoint_now(&self) -> Endpoint {
        if self.is_tls {
            let (name, access) = (self.name.clone(), self.access.clone());
            let made = spawn_blocking(move || endpoint(&name, true, &access)).await;
            match made {
                Ok(Ok(made)) => {
                    *self.endpoint.lock() = made;
                    self.told.store(false, Ordering::Relaxed);
                }
                Ok(Err(_)) if self.told.swap(true, Ordering::Relaxed) => {}
                Ok(Err(error)) => tracing::warn!(
                    %error,
                    "etcd is connected to with the certificates that were read before"
                ),
                Err(error) => tracing::error!(%error, "certificates were not read"),
            }
        }
        self.endpoint.lock().clone()
    }
}

fn endpoint(name: &str, is_tls: bool, access: &EtcdAccess) -> Result<Endpoint, EtcdError> {
    let failed = |error| EtcdError::Transport {
        member: name.to_owned(),
        error,
    };
    let scheme = if is_tls { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{name}")).map_err(failed)?;
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true);
    match is_tls {
        true => endpoint.tls_config(access.tls()?).map_err(failed),
        false => Ok(endpoint),
    }
}

/// Who this is to etcd, where it asks for that.
pub(super) struct Entrance {
    access: EtcdAccess,
    /// As the file was when it could be read last.
    credentials: Mutex<Option<Credentials>>,
    token: Mutex<Option<(Instant, MetadataValue<Ascii>)>>,
}

impl Entrance {
    pub(super) fn new(access: &EtcdAccess) -> Result<Self, EtcdError> {
        Ok(Self {
            credentials: Mutex::new(access.credentials()?),
            access: access.clone(),
            token: Mutex::new(None),
        })
    }

    /// True if it comes as a user.
    pub(super) fn is_guarded(&self) -> bool {
        self.access.user.is_some()
    }

    /// The token that the next call has, if there is one.
    pub(super) fn token_now(&self) -> Option<MetadataValue<Ascii>> {
        self.token.lock().as_ref().map(|(_, token)| token.clone())
    }

    /// True if it may be that a member does not know the token any more. Each new one costs etcd a hash that is meant to be
    /// slow, so who has just been given one and is refused is not let in by another.
    pub(super) fn has_old_token(&self) -> bool {
        let token = self.token.lock();
        let old = |(had, _): &(Instant, _)| had.elapsed() >= YOUNG;
        self.is_guarded() && token.as_ref().is_none_or(old)
    }

    /// The token that was used is none any more. One that somebody else was given since stays.
    pub(super) fn forget(&self, used: Option<&MetadataValue<Ascii>>) {
        let mut token = self.token.lock();
        if used.is_none() || token.as_ref().map(|(_, token)| token) == used {
            *token = None;
        }
    }

    /// Whoever this is, it is not let in.
    pub(super) fn refused(&self) -> CallError {
        let why = match self.is_guarded() {
            true => {
                "the user of --etcd-user or its password in --etcd-password-file is not accepted"
            }
            false => "it asks for a user: give --etcd-user and --etcd-password-file",
        };
        CallError::Refused(Status::unauthenticated(why))
    }

    /// The token; a new one if there is none. None where this comes as nobody.
    pub(super) async fn token(
        &self,
        channel: &Channel,
    ) -> Result<Option<MetadataValue<Ascii>>, Status> {
        if !self.is_guarded() {
            return Ok(None);
        }
        if let Some(token) = self.token_now() {
            return Ok(Some(token));
        }
        self.read_again().await;
        let request = self
            .credentials
            .lock()
            .as_ref()
            .map(|credentials| AuthenticateRequest {
                name: credentials.name.clone(),
                password: credentials.password.to_string(),
            });
        let answer = AuthClient::new(channel.clone())
            .authenticate(request.unwrap_or_default())
            .await?;
        let token: Result<MetadataValue<Ascii>, _> = answer.into_inner().token.parse();
        let mut token = token.map_err(|_| Status::internal("the token is malformed"))?;
        token.set_sensitive(true);
        *self.token.lock() = Some((Instant::now(), token.clone()));
        Ok(Some(token))
    }

    async fn read_again(&self) {
        let access = self.access.clone();
        match spawn_blocking(move || access.credentials()).await {
            Ok(Ok(read)) => *self.credentials.lock() = read,
            Ok(Err(error)) => {
                tracing::warn!(%error, "etcd's password is taken as it was read before")
            }
            Err(error) => tracing::error!(%error, "etcd's password was not read"),
        }
    }
}
