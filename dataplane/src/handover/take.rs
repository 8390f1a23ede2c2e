//! The new process: asks for the listeners, says when it is ready, and gets connections from then on.

use std::{io::ErrorKind, path::Path, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, UnixStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    HandoverError, Resting, SAY_WITHIN, VERSION, connection, listener,
    wire::{Word, hear, say},
};
use crate::{leases::Leases, live::LiveCell};

/// How often it is looked whether this process still answers for what the one before it has.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often one that hangs up is asked, and how long after that again.
const ASKS: u32 = 20;
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What was taken over.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) gateway: TcpListener,
    pub(crate) admin: TcpListener,
    pub(crate) stream: UnixStream,
}

/// Asks the process that listens there for its listeners; `None` if there is none.
///
/// One that has just been taken over from itself hangs up on who is in its line: the next one listens there by then.
pub(crate) async fn take_over(path: &Path) -> Result<Option<Taken>, HandoverError> {
    let mut asked = 1;
    loop {
        match ask(path).await {
            Err(error) if asked < ASKS && error.is_hung_up() => asked += 1,
            taken => return taken,
        }
        sleep(ASK_AGAIN).await;
    }
}

async fn ask(path: &Path) -> Result<Option<Taken>, HandoverError> {
    let mut stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    say(&mut stream, Word::Hello, &[], VERSION).await?;
    let heard = timeout(SAY_WITHIN, hear(&mut stream)).await;
    let heard = heard.map_err(|_| HandoverError::Protocol("did not answer in time"))??;
    let message = heard.ok_or(HandoverError::Io(ErrorKind::UnexpectedEof.into()))?;
    let files = match message.word {
        Word::Listeners => <[_; 2]>::try_from(message.files).ok(),
        Word::Refused => {
            let why = String::from_utf8_lossy(&message.content).into_owned();
            return Err(HandoverError::Refused(why));
        }
        Word::Hello | Word::Ready | Word::Gone | Word::Connection => None,
    };
    let [gateway, admin] = files.ok_or(HandoverError::Protocol("did not send its listeners"))?;
    Ok(Some(Taken {
        gateway: listener(gateway)?,
        admin: listener(admin)?,
        stream,
    }))
}

/// Says that this process serves from now on, and waits until the old one accepts no more. One that is gone without a
/// word accepts no more either.
///
/// Gives what that one leaves of fleet-wide limits; nothing if it is gone, or knows none.
pub(crate) async fn ready(stream: &mut UnixStream) -> Result<Vec<u8>, HandoverError> {
    let heard = async {
        // Whoever refused has closed, and what was said before can still be heard.
        drop(say(stream, Word::Ready, &[], &[]).await);
        hear(stream).await
    };
    match timeout(SAY_WITHIN, heard).await {
        Err(_) => Err(HandoverError::Protocol(
            "did not say that it accepts no more",
        )),
        Ok(Ok(Some(message))) if message.word == Word::Gone => Ok(message.content),
        Ok(Ok(Some(message))) if message.word == Word::Refused => {
            let why = String::from_utf8_lossy(&message.content).into_owned();
            Err(HandoverError::Refused(why))
        }
        Ok(Ok(Some(_))) => Err(HandoverError::Protocol("said what it may not")),
        Ok(Ok(None) | Err(_)) => {
            tracing::warn!("the process before this one is gone; serving in its place");
            Ok(Vec::new())
        }
    }
}

/// Takes the old process's connections as they come to rest, until it ends.
pub(crate) async fn adopt(
    mut stream: UnixStream,
    adopted: mpsc::Sender<Resting>,
    over: CancellationToken,
    (leases, live): (Arc<Leases>, Arc<LiveCell>),
) {
    let mut count = 0_u64;
    let mut told = false;
    loop {
        let heard = tokio::select! {
            ready = stream.readable() => match ready {
                Ok(()) => hear(&mut stream).await,
                Err(error) => Err(error),
            },
            () = sleep(LOOK_EVERY) => {
                if leases.answers_no_more() && !std::mem::replace(&mut told, true) {
                    tracing::warn!("what the process before this one still has is ended: its lease is over");
                    drop(say(&mut stream, Word::Gone, &[], &[]).await);
                }
                continue;
            }
            () = over.cancelled() => break,
        };
        let (files, read) = match heard {
            Ok(Some(message)) if message.word == Word::Connection => {
                (message.files, message.content)
            }
            Ok(Some(_)) => continue,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "the process before this one is not understood any more");
                break;
            }
        };
        if files.is_empty() {
            leases.inherit_more(&read, &live);
        }
        for file in files {
            let resting = connection(file).map(|socket| Resting {
                socket,
                read: read.clone(),
            });
            match resting {
                Ok(resting) => {
                    count += 1;
                    if adopted.send(resting).await.is_err() {
                        leases.inherit_all(&live);
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
            }
        }
    }
    leases.inherit_all(&live);
    tracing::info!(connections = count, "the process before this one has ended");
}
