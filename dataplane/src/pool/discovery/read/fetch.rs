//! Asks for a list at a url: in its turn, at an address that may be dialled, and within its time. What comes is read by
//! `list.rs`.

use std::{net::IpAddr, pin::pin, sync::Arc, time::Duration};

use forebay_proto::{
    Endpoint, EndpointUrl,
    endpoint::{Address, Discovery, ListUrl},
    limits,
};
use http::{HeaderValue, Request, StatusCode, Version, header, uri::PathAndQuery};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{Response, body::Incoming};
use tokio::time::timeout;

use super::{Answer, Reader, WITHIN, too_large};
use crate::{
    pool::{
        conn::{self, Conn},
        discovery::{
            list::Form,
            status::{Failure, Why},
        },
        probe::may_dial,
        request_body::RequestBody,
        target::Target,
        tls::Tls,
    },
    resolve::LookupError,
};

/// Time for a connection to one of the addresses of a list's server. Together they have less than all of `WITHIN`.
const CONNECT_WITHIN: Duration = Duration::from_millis(1_500);
/// So many of its addresses are tried at a time.
const TRIED: usize = 4;
/// Longest tag of a list that is kept.
const TAG_BYTES: usize = 256;

impl Reader {
    /// Its time begins with its turn: what others wait for is not its fault.
    pub(super) async fn http(&mut self, url: &ListUrl) -> Result<Answer, Failure> {
        let discovering = self.common.discovering.clone();
        let stops = |_| Failure::new(Why::Connect, "the worker stops");
        let at_origin = self.at_origin.clone();
        let _at_origin = at_origin.acquire().await.map_err(stops)?;
        let _turn = discovering.turns.acquire().await.map_err(stops)?;
        let late = |_| Failure::new(Why::Timeout, format!("no list within {WITHIN:?}"));
        let asked = timeout(WITHIN, self.list(url)).await;
        asked.map_err(late)?
    }

    async fn list(&mut self, url: &ListUrl) -> Result<Answer, Failure> {
        let Some((list, tls)) = self.list.clone() else {
            return Err(Failure::new(Why::Connect, "its url leads nowhere"));
        };
        let mut targets = self.list_targets(&list, tls).await?;
        // The one that answered last comes first, and what did not is not waited for each time.
        let first = self.missed.checked_rem(targets.len()).unwrap_or(0);
        targets.rotate_left(first);
        targets.truncate(TRIED);
        let each = WITHIN / (u32::try_from(targets.len()).unwrap_or(u32::MAX) + 1);
        let mut last = Failure::new(Why::Connect, "its name has no address");
        for target in targets {
            match conn::connect(&target, &self.common.tasks, each.min(CONNECT_WITHIN)).await {
                Ok((conn, driver)) => {
                    let (mut asked, mut driver) =
                        (pin!(self.ask(conn, url)), pin!(driver.run(|_| {})));
                    tokio::select! {
                        biased;
                        answer = &mut asked => return answer,
                        // How that ended is told to the answer.
                        _ = &mut driver => {}
                    }
                    return asked.await;
                }
                Err(error) => {
                    self.missed = self.missed.wrapping_add(1);
                    last = Failure::new(Why::Connect, format!("no connection: {error}"));
                }
            }
        }
        Err(last)
    }

    /// The very addresses that will be dialled.
    async fn list_targets(
        &self,
        list: &Arc<Endpoint>,
        tls: Option<Arc<Tls>>,
    ) -> Result<Vec<Target>, Failure> {
        let addresses = match list.url.address() {
            Address::Host(host, _) if host.parse::<IpAddr>().is_err() => {
                let found = self.common.resolver.lookup(host).await;
                let failed = |error: LookupError| Failure::new(Why::Resolve, error.to_string());
                found.map_err(failed)?.some().to_vec()
            }
            _ => Vec::new(),
        };
        let targets = Target::all(list, tls, &addresses);
        for target in &targets {
            let checked = may_dial(target, &self.common.probing.policy);
            checked.map_err(|found| Failure::new(Why::Blocked, found.message))?;
        }
        Ok(targets)
    }

    async fn ask(&mut self, mut conn: Conn, url: &ListUrl) -> Result<Answer, Failure> {
        let lost = || Failure::new(Why::Connect, "the connection was closed before the answer");
        let request = Request::get("/")
            .header(header::USER_AGENT, "forebay-discovery")
            .header(header::ACCEPT, "application/json, text/plain;q=0.5")
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::CONNECTION, HeaderValue::from_static("close"))
            .body(RequestBody::default());
        let (Ok(mut request), true) = (request, conn.ready().await) else {
            return Err(lost());
        };
        let path = PathAndQuery::try_from(url.path());
        let path = path.map_err(|_| Failure::new(Why::Connect, "its path cannot be sent"))?;
        if let Some(tag) = &self.tag {
            let headers = request.headers_mut();
            headers.insert(header::IF_NONE_MATCH, tag.clone());
        }
        conn.address(path, &mut request);
        match conn.send(request).await {
            Some(Ok(response)) => self.take(response).await,
            Some(Err(_)) | None => Err(lost()),
        }
    }

    async fn take(&mut self, response: Response<Incoming>) -> Result<Answer, Failure> {
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED && self.tag.is_some() {
            return Ok(Answer::default());
        }
        // Whatever comes now, the tag of before says nothing of it.
        self.tag = None;
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            let text = format!("it answers {status}, and redirects are not followed");
            return Err(Failure::new(Why::Redirect, text));
        }
        if status != StatusCode::OK {
            return Err(Failure::new(Why::Status, format!("it answers {status}")));
        }
        let form = form_of(&response)?;
        let tag = response.headers().get(header::ETAG).cloned();
        let body = Limited::new(response.into_body(), limits::LIST_BYTES).collect();
        let body = body
            .await
            .map_err(|error| match error.is::<LengthLimitError>() {
                true => too_large(),
                false => Failure::new(Why::Connect, "its answer broke off"),
            })?;
        let answer = self.read_list(&body.to_bytes(), form)?;
        self.tag = tag.filter(|tag| tag.len() <= TAG_BYTES);
        Ok(answer)
    }
}

/// An endpoint that is the server of the list.
pub(super) fn list_server(
    source: &Endpoint,
    discovery: &Discovery,
    url: &ListUrl,
) -> Option<(Arc<Endpoint>, Option<Arc<Tls>>)> {
    let mut list = Endpoint::new(source.id.clone(), EndpointUrl::parse(url.origin()).ok()?);
    list.tls = discovery.source_tls.clone();
    let list = Arc::new(list);
    let tls = Tls::of(&list);
    Some((list, tls))
}

fn form_of(response: &Response<Incoming>) -> Result<Form, Failure> {
    let of = |name| response.headers().get(name).map(HeaderValue::as_bytes);
    let bad = |text: &str| Err(Failure::new(Why::ContentType, text));
    if of(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != b"identity") {
        return bad("it is encoded, which was not asked for");
    }
    let kind = of(header::CONTENT_TYPE).unwrap_or_default();
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    match kind.trim_ascii().to_ascii_lowercase().as_slice() {
        b"application/json" => Ok(Form::Json),
        b"text/plain" if has_an_end(response) => Ok(Form::Lines { whole: true }),
        b"text/plain" => Err(Failure::new(
            Why::Malformed,
            "neither its length is said nor is it chunked, and half of it would pass for a list",
        )),
        _ => bad("its content type is neither `application/json` nor `text/plain`"),
    }
}

/// True if it is known when all of the answer is there: other ones end with the connection, however that ended.
fn has_an_end(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let coding = headers.get(header::TRANSFER_ENCODING);
    let coding = coding.map(|coding| coding.as_bytes().to_ascii_lowercase());
    headers.contains_key(header::CONTENT_LENGTH)
        || coding.is_some_and(|coding| coding.ends_with(b"chunked"))
        || response.version() == Version::HTTP_2
}
