//! What two processes of one worker say to each other over their Unix socket, with file descriptors beside it.
//!
//! A message is a head of eight bytes (four of them a word, four a length), the descriptors that ride on the head, and
//! the content. It knows nothing of when what is said.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
    time::timeout,
};

use super::SAY_WITHIN;

/// Largest content: what a client has sent ahead of its connection's hand-over, and more than any reason.
pub(super) const MOST_BYTES: usize = 256 << 10;
/// Most descriptors of one message.
const MOST_FILES: usize = 2;
const HEAD: usize = 8;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// The new one: may I? Its content is the version of this protocol.
    Hello,
    /// The old one: here are the listeners, the gateway's and the admin port's.
    Listeners,
    /// The old one: no; its content says why.
    Refused,
    /// The new one: ready to serve, stop accepting.
    Ready,
    /// The old one: it does not accept any more.
    Gone,
    /// The old one: a client's connection at rest; its content is what the client sent already.
    Connection,
}

impl Word {
    const ALL: [(Self, [u8; 4]); 6] = [
        (Self::Hello, *b"HELO"),
        (Self::Listeners, *b"LSTN"),
        (Self::Refused, *b"REFU"),
        (Self::Ready, *b"REDY"),
        (Self::Gone, *b"GONE"),
        (Self::Connection, *b"CONN"),
    ];

    fn bytes(self) -> [u8; 4] {
        let known = Self::ALL.iter().find(|(word, _)| *word == self);
        known.map_or([0; 4], |(_, bytes)| *bytes)
    }

    fn read(bytes: [u8; 4]) -> Option<Self> {
        let known = Self::ALL.iter().find(|(_, known)| *known == bytes);
        known.map(|(word, _)| *word)
    }
}

/// A message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) word: Word,
    pub(super) files: Vec<OwnedFd>,
    pub(super) content: Vec<u8>,
}

/// Says something, to somebody who takes it in time: who does not read must not hold up a process that serves.
pub(super) async fn say(
    stream: &mut UnixStream,
    word: Word,
    files: &[BorrowedFd<'_>],
    content: &[u8],
) -> io::Result<()> {
    let said = timeout(SAY_WITHIN, write(stream, word, files, content)).await;
    said.unwrap_or_else(|_| {
        Err(io::Error::new(
            ErrorKind::TimedOut,
            "the other process does not read",
        ))
    })
}

async fn write(
    stream: &mut UnixStream,
    word: Word,
    files: &[BorrowedFd<'_>],
    content: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(content.len()).ok();
    let length = length.filter(|_| content.len() <= MOST_BYTES && files.len() <= MOST_FILES);
    let length = length.ok_or_else(|| io::Error::other("more than a message may hold"))?;
    let mut head = [0; HEAD];
    let (name, size) = head.split_at_mut(4);
    name.copy_from_slice(&word.bytes());
    size.copy_from_slice(&length.to_be_bytes());
    let mut sent = 0;
    while let Some(rest) = head.get(sent..).filter(|rest| !rest.is_empty()) {
        // They ride on the first byte.
        let files = if sent == 0 { files } else { &[] };
        let tried = stream.async_io(Interest::WRITABLE, || send(stream, rest, files));
        sent += tried.await?;
    }
    stream.write_all(content).await
}

/// Waits until there is something to hear, or the other side closed. That a socket was readable once says nothing: what it
/// was readable for has been heard.
pub(super) async fn speaks(stream: &UnixStream) {
    let peek = || {
        let mut first = [0; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        recv(stream.as_fd(), &mut first, flags)
            .map(drop)
            .map_err(io::Error::from)
    };
    while stream.readable().await.is_ok() {
        match stream.try_io(Interest::READABLE, peek) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// Hears what is said next; `None` if the other side closed.
pub(super) async fn hear(stream: &mut UnixStream) -> io::Result<Option<Message>> {
    let mut head = [0; HEAD];
    let mut files = Vec::new();
    let mut heard = 0;
    while let Some(rest) = head.get_mut(heard..).filter(|rest| !rest.is_empty()) {
        let tried = stream.async_io(Interest::READABLE, || receive(stream, rest, &mut files));
        match tried.await? {
            0 if heard == 0 => return Ok(None),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            more => heard += more,
        }
        if files.len() > MOST_FILES {
            return Err(io::Error::other("more descriptors than a message may have"));
        }
    }
    let [a, b, c, d, size @ ..] = head;
    let word = Word::read([a, b, c, d]);
    let word = word.ok_or_else(|| io::Error::other("a word that is not known"))?;
    let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
    if size > MOST_BYTES {
        return Err(io::Error::other("a longer message than there may be"));
    }
    let mut content = vec![0; size];
    stream.read_exact(&mut content).await?;
    Ok(Some(Message {
        word,
        files,
        content,
    }))
}

fn send(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("the descriptors do not fit"));
    }
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(
        stream.as_fd(),
        &[IoSlice::new(bytes)],
        &mut beside,
        flags,
    )?)
}

fn receive(stream: &UnixStream, into: &mut [u8], files: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(into)];
    let received = recvmsg(
        stream.as_fd(),
        &mut into,
        &mut beside,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            files.extend(passed);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn descriptors_arrive_with_the_message_that_they_rode_on() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        say(&mut ours, Word::Hello, &[], b"1").await.unwrap();
        let fd = listener.as_fd();
        say(&mut ours, Word::Listeners, &[fd, fd], b"")
            .await
            .unwrap();
        say(&mut ours, Word::Connection, &[fd], &[7; 1000])
            .await
            .unwrap();
        drop((ours, listener));
        let hello = hear(&mut theirs).await.unwrap().unwrap();
        assert_eq!((hello.word, hello.files.len()), (Word::Hello, 0));
        let listeners = hear(&mut theirs).await.unwrap().unwrap();
        assert_eq!(
            (listeners.word, listeners.files.len()),
            (Word::Listeners, 2)
        );
        let connection = hear(&mut theirs).await.unwrap().unwrap();
        assert_eq!(
            (connection.files.len(), connection.content.len()),
            (1, 1000)
        );
        assert!(hear(&mut theirs).await.unwrap().is_none());
        // It listens still, although who bound it has let go.
        TcpStream::connect(addr).unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_an_error_and_costs_nothing() {
        for nonsense in [&b"GET / HTTP/1.1\r\n"[..], b"HELO\xff\xff\xff\xff", b"HEL"] {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            ours.write_all(nonsense).await.unwrap();
            drop(ours);
            assert!(hear(&mut theirs).await.is_err(), "{nonsense:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_does_not_speak_again() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        say(&mut ours, Word::Ready, &[], &[]).await.unwrap();
        speaks(&theirs).await;
        assert!(hear(&mut theirs).await.unwrap().is_some());
        let silent = timeout(SAY_WITHIN, speaks(&theirs)).await;
        assert!(silent.is_err(), "there is nothing to hear");
        drop(ours);
        speaks(&theirs).await;
        assert!(hear(&mut theirs).await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_holds_nobody_up() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let much = vec![0; MOST_BYTES];
        let refused = async {
            loop {
                if let Err(error) = say(&mut ours, Word::Connection, &[], &much).await {
                    return error;
                }
            }
        };
        let error = timeout(SAY_WITHIN * 2, refused).await.unwrap();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
