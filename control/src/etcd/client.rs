//! Calls to etcd: each with a deadline, to one member at a time, the next one when that does not answer.
//!
//! A call is sent again only within its own budget, so whoever asks for a write must be able to bear it twice: the
//! store's writes are bound to what they were planned on. Three ends are told apart: refused (etcd said no), not reached
//! (it was never sent, so it was not done) and unknown (it was sent, and there was no answer).
//!
//! One member is used until it fails, then the next: a frozen member costs one deadline, not one in three calls, and is
//! not the next again while others were not tried. A channel that failed is thrown away, so that nothing waits on a
//! connection that is dead. The first try is a short one: after the loss of etcd's leader what was sent to a member that
//! did not know yet is lost without a word, and only another try finds the new one.

use std::{
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use super::{
    CallError, EtcdAccess, EtcdError, EtcdLocation,
    api::{
        KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest,
        RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
        kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    ends::{Failed, before_it_was_sent, judge},
    entrance::{Entrance, Member},
    ops::after_prefix,
};

/// Between two tries of one call, with jitter.
const PAUSE: Duration = Duration::from_millis(60);
/// Less than this is no try.
const LEAST: Duration = Duration::from_millis(20);
/// Largest answer: a page of the largest values.
const ANSWER_BYTES: usize = 20 << 20;
/// Entries of a page.
const PAGE: i64 = 100;
/// A member that failed is not the next one for so long, if there are others.
const SHUNNED: Duration = Duration::from_secs(4);
/// Each try may take longer than the one before.
const LONGER: f64 = 1.4;
/// The watch of a member that went away is not waited for.
const WATCH_OPEN: Duration = Duration::from_secs(2);

/// How long a call may take: each try of it, and all of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) attempt: Duration,
    pub(crate) total: Duration,
}

impl Budget {
    /// Outlives the election of a new leader, and gives up before an operator does.
    pub(crate) const WRITE: Self = Self {
        attempt: Duration::from_millis(600),
        total: Duration::from_millis(4_500),
    };
    /// Of something that comes again soon.
    pub(crate) const SHORT: Self = Self {
        attempt: Duration::from_millis(600),
        total: Duration::from_millis(1_200),
    };
    /// Pages of much.
    pub(crate) const READ: Self = Self {
        attempt: Duration::from_secs(3),
        total: Duration::from_secs(8),
    };
}

/// An etcd.
pub(crate) struct Etcd {
    at: EtcdLocation,
    members: Vec<Member>,
    current: AtomicUsize,
    entrance: Entrance,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Etcd").field(&self.at.to_string()).finish()
    }
}

/// A watch that is open.
pub(crate) struct Watching {
    stream: Streaming<WatchResponse>,
    member: usize,
    /// Dropped, it would end the stream.
    _asking: tokio::sync::mpsc::Sender<WatchRequest>,
}

impl std::fmt::Debug for Watching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Watching").field(&self.member).finish()
    }
}

impl Watching {
    /// The next word of it; nothing when it is over.
    pub(crate) async fn next(&mut self) -> Option<WatchResponse> {
        match self.stream.message().await {
            Ok(Some(word)) if !word.canceled => Some(word),
            _ => None,
        }
    }
}

impl Etcd {
    /// Reads the files; asks nobody yet.
    pub(crate) fn new(at: &EtcdLocation, access: &EtcdAccess) -> Result<Self, EtcdError> {
        access.check(at)?;
        let members = at.members().iter();
        let members = members.map(|name| Member::new(name, at.is_tls(), access));
        Ok(Self {
            at: at.clone(),
            members: members.collect::<Result<_, EtcdError>>()?,
            // Replicas spread over the members.
            current: AtomicUsize::new(fastrand::usize(..at.members().len().max(1))),
            entrance: Entrance::new(access)?,
        })
    }

    /// Where it is.
    pub(crate) fn at(&self) -> &EtcdLocation {
        &self.at
    }

    /// All or nothing, if what it compares holds.
    pub(crate) async fn txn(
        &self,
        txn: TxnRequest,
        budget: Budget,
    ) -> Result<TxnResponse, CallError> {
        self.call(budget, |channel, token| {
            let request = request(txn.clone(), token);
            async move {
                let mut kv = KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
                kv.txn(request).await
            }
        })
        .await
    }

    /// Keys and values.
    pub(crate) async fn range(
        &self,
        range: RangeRequest,
        budget: Budget,
    ) -> Result<RangeResponse, CallError> {
        self.call(budget, |channel, token| {
            let request = request(range.clone(), token);
            async move {
                let mut kv = KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
                kv.range(request).await
            }
        })
        .await
    }

    /// A page of a range, and where the next begins; nothing if there is no more.
    pub(crate) async fn page(
        &self,
        range: RangeRequest,
        budget: Budget,
    ) -> Result<(Vec<KeyValue>, Option<Vec<u8>>), CallError> {
        let limit = match range.limit {
            0 => PAGE,
            limit => limit.min(PAGE),
        };
        let page = self.range(RangeRequest { limit, ..range }, budget).await?;
        let last = page.kvs.last().filter(|_| page.more);
        let next = last.map(|last| [last.key.as_slice(), &[0]].concat());
        Ok((page.kvs, next))
    }

    /// All of a range at one revision, page by page.
    pub(crate) async fn all(&self, mut range: RangeRequest) -> Result<Vec<KeyValue>, CallError> {
        let mut all = Vec::new();
        loop {
            let (page, next) = self.page(range.clone(), Budget::READ).await?;
            all.extend(page);
            match next {
                Some(next) => range.key = next,
                None => return Ok(all),
            }
        }
    }

    /// Tells of changes of all keys that begin so, from now on.
    pub(crate) async fn watch(&self, prefix: &[u8]) -> Result<Watching, CallError> {
        let member = self.current.load(Ordering::Relaxed);
        let mut again = self.entrance.has_old_token();
        loop {
            let used = self.entrance.token_now();
            let opened = timeout(WATCH_OPEN, self.open_watch(member, prefix)).await;
            let in_time = || Failed::Unanswered("the watch was not opened in time".to_owned());
            match opened.unwrap_or_else(|_| Err(in_time())) {
                Ok(watching) => return Ok(watching),
                // Each member forgets tokens by itself, and some say of an old one that it has no permission.
                Err(Failed::Token | Failed::Refused(_)) if again => {
                    again = false;
                    self.entrance.forget(used.as_ref());
                }
                Err(Failed::Token) => return Err(self.entrance.refused()),
                Err(Failed::Refused(status)) => return Err(CallError::Refused(status)),
                Err(Failed::Connect(why) | Failed::Unanswered(why)) => {
                    self.leave(member);
                    return Err(CallError::Unknown(why));
                }
            }
        }
    }

    async fn open_watch(&self, member: usize, prefix: &[u8]) -> Result<Watching, Failed> {
        let create = WatchCreateRequest {
            key: prefix.to_vec(),
            range_end: after_prefix(prefix),
            start_revision: 0,
        };
        let channel = self.channel(member).await.map_err(Failed::Connect)?;
        let token = self.entrance.token(&channel).await;
        let token = token.map_err(before_it_was_sent)?;
        let (asking, asked) = tokio::sync::mpsc::channel(1);
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        drop(asking.try_send(create));
        let request = request(ReceiverStream::new(asked), token);
        let mut watch = WatchClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        let mut stream = watch.watch(request).await.map_err(judge)?.into_inner();
        match stream.message().await.map_err(judge)? {
            Some(word) if word.created && !word.canceled => Ok(Watching {
                stream,
                member,
                _asking: asking,
            }),
            Some(word) if word.canceled => {
                let why = format!("the watch was not opened: {}", word.cancel_reason);
                Err(Failed::Refused(Status::permission_denied(why)))
            }
            _ => Err(Failed::Unanswered("the watch was not opened".to_owned())),
        }
    }

    /// The watch is on the member that calls go to.
    pub(crate) fn is_current(&self, watching: &Watching) -> bool {
        self.current.load(Ordering::Relaxed) == watching.member
    }

    /// A lease of so long.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64, CallError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let granted = self.call(Budget::SHORT, |channel, token| {
            let request = request(LeaseGrantRequest { ttl: seconds }, token);
            async move { LeaseClient::new(channel).lease_grant(request).await }
        });
        granted.await.map(|granted| granted.id)
    }

    /// Keeps a lease; false if it is over.
    pub(crate) async fn keep(&self, lease: i64) -> Result<bool, CallError> {
        let kept = self.call(Budget::SHORT, |channel, token| {
            let asking = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
            let request = request(asking, token);
            async move {
                let kept = LeaseClient::new(channel).lease_keep_alive(request).await?;
                let word = kept.into_inner().message().await?;
                let word = word.ok_or_else(|| Status::unavailable("the lease was not kept"))?;
                Ok(Response::new(word))
            }
        });
        kept.await.map(|kept| kept.ttl > 0)
    }

    /// Ends a lease, and with it all that depends on it.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<(), CallError> {
        let revoked = self.call(Budget::SHORT, |channel, token| {
            let request = request(LeaseRevokeRequest { id: lease }, token);
            async move { LeaseClient::new(channel).lease_revoke(request).await }
        });
        revoked.await.map(drop)
    }

    /// Tries members in turn until one answers, or the budget is spent.
    async fn call<T, F>(
        &self,
        budget: Budget,
        make: impl Fn(Channel, Option<MetadataValue<Ascii>>) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let give_up = Instant::now() + budget.total;
        let (mut sent, mut tokens, mut patience) = (false, 0, budget.attempt);
        loop {
            let member = self.current.load(Ordering::Relaxed);
            let used = self.entrance.token_now();
            let until = (Instant::now() + patience).min(give_up);
            patience = patience.mul_f64(LONGER);
            let why = match self.attempt(member, until, &make).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Refused(status)) => return Err(CallError::Refused(status)),
                Err(Failed::Token) if tokens < 2 => {
                    tokens += 1;
                    self.entrance.forget(used.as_ref());
                    continue;
                }
                Err(Failed::Token) => return Err(self.entrance.refused()),
                Err(Failed::Connect(why)) => {
                    self.leave(member);
                    why
                }
                Err(Failed::Unanswered(why)) => {
                    sent = true;
                    self.leave(member);
                    why
                }
            };
            let pause = PAUSE.mul_f64(0.5 + fastrand::f64());
            if Instant::now() + pause + LEAST >= give_up {
                let name = self.members.get(member).map_or("", Member::name);
                let why = format!("{name}: {why}");
                return Err(match sent {
                    true => CallError::Unknown(why),
                    false => CallError::NotReached(why),
                });
            }
            sleep(pause).await;
        }
    }

    async fn attempt<T, F>(
        &self,
        member: usize,
        until: Instant,
        make: impl Fn(Channel, Option<MetadataValue<Ascii>>) -> F,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let connecting = timeout_at(until, self.channel(member)).await;
        let connected = connecting.unwrap_or_else(|_| Err("no connection in time".to_owned()));
        let channel = connected.map_err(Failed::Connect)?;
        let token = timeout_at(until, self.entrance.token(&channel)).await;
        let token = match token {
            Ok(Ok(token)) => token,
            Ok(Err(status)) => return Err(before_it_was_sent(status)),
            Err(_) => return Err(Failed::Connect("no token in time".to_owned())),
        };
        match timeout_at(until, make(channel, token)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(judge(status)),
            Err(_) => Err(Failed::Unanswered("no answer in time".to_owned())),
        }
    }

    /// The member's channel, connected.
    async fn channel(&self, member: usize) -> Result<Channel, String> {
        let member = self.members.get(member).ok_or("there is no such member")?;
        member.channel().await
    }

    /// The member did not do; another one is used, by a new connection.
    fn leave(&self, member: usize) {
        let now = Instant::now();
        if let Some(left) = self.members.get(member) {
            left.leave(now);
        }
        let after = (member + 1..self.members.len()).chain(0..member);
        // The first that did not fail just now; if all did, the one that did so longest ago.
        let next = after.min_by_key(|n| {
            let failed = self.members.get(*n).and_then(Member::failed);
            failed.filter(|failed| now.duration_since(*failed) < SHUNNED)
        });
        // Unless somebody else has left it already.
        let _ = self.current.compare_exchange(
            member,
            next.unwrap_or(member),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
}

/// A member without a leader is to say so at once instead of waiting for one.
fn request<T>(message: T, token: Option<MetadataValue<Ascii>>) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("hasleader", MetadataValue::from_static("true"));
    if let Some(token) = token {
        metadata.insert("token", token);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_nobody_listens_nothing_was_sent_and_every_member_is_tried() {
        let at: EtcdLocation = "etcd://127.0.0.1:1,127.0.0.1:2".parse().unwrap();
        let etcd = Etcd::new(&at, &EtcdAccess::default()).unwrap();
        let first = etcd.current.load(Ordering::Relaxed);
        let budget = Budget {
            attempt: Duration::from_millis(50),
            total: Duration::from_millis(100),
        };
        let error = etcd
            .range(RangeRequest::default(), budget)
            .await
            .unwrap_err();
        assert!(matches!(error, CallError::NotReached(_)), "{error}");
        etcd.current.store(first, Ordering::Relaxed);
        etcd.leave(first);
        assert_ne!(etcd.current.load(Ordering::Relaxed), first);
        etcd.leave(first);
        assert_ne!(
            etcd.current.load(Ordering::Relaxed),
            first,
            "it was left already"
        );
    }
}
