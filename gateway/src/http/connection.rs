//! A connection's bytes on their way to hyper: heads are looked at, a reader that reads nothing is given up, and whoever was
//! answered before all of a request had come can read the answer before the connection is gone.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use tramontane_cluster::tls::Connection;

use super::heads::Heads;

/// How long a connection stays open after its last answer when some of a request was not read. Closed with bytes unread it would be
/// reset, and a reset takes the answer with it where the client has not read it yet.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that are read meanwhile, and thrown away.
const MAX_LINGER_BYTES: usize = 1 << 20;

/// What is known of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Head(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    ambiguity: OnceLock<&'static str>,
    http2: AtomicBool,
    unread: AtomicBool,
}

impl Head {
    /// What two readers could understand differently in one of its heads.
    pub(super) fn ambiguity(&self) -> Option<&'static str> {
        self.0.ambiguity.get().copied()
    }

    /// Whether HTTP/2 is spoken on it.
    pub(super) fn is_http2(&self) -> bool {
        self.0.http2.load(Ordering::Relaxed)
    }

    /// Some of a request will not be read.
    pub(super) fn leave_unread(&self) {
        self.0.unread.store(true, Ordering::Relaxed);
    }
}

/// A connection whose heads are looked at and whose writes end.
pub(super) struct Guarded {
    stream: Connection,
    heads: Heads,
    head: Head,
    /// How long nothing may be taken of what is to be written.
    patience: Duration,
    /// Runs while nothing is taken.
    stall: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
}

/// The time between the last answer and the end of a connection.
struct Linger {
    end: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Linger {
    fn begin() -> Self {
        Self { end: Box::pin(sleep(LINGER)), bytes_left: MAX_LINGER_BYTES }
    }

    /// Ready when the peer has closed too, or the time is over.
    fn poll(&mut self, stream: &mut Connection, context: &mut Context<'_>) -> Poll<()> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut thrown_away = [0; 8 << 10];
        while self.bytes_left > 0 {
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    self.bytes_left = self.bytes_left.saturating_sub(buffer.filled().len());
                }
                _ => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }
}

impl Guarded {
    pub(super) fn new(stream: Connection, patience: Duration) -> (Self, Head) {
        let head = Head::default();
        (Self { stream, heads: Heads::default(), head: head.clone(), patience, stall: None, linger: None }, head)
    }

    fn watch<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let patience = self.patience;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(patience)));
        stall.as_mut().poll(context).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the reader reads nothing")))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(why) = self.heads.take(&buffer.filled()[before..]) {
            _ = self.head.0.ambiguity.set(why);
        }
        if self.heads.is_http2() {
            self.head.0.http2.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, head, linger, .. } = &mut *self;
        let linger = match linger {
            Some(linger) => linger,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
                if !head.0.unread.load(Ordering::Relaxed) {
                    return Poll::Ready(Ok(()));
                }
                linger.insert(Linger::begin())
            }
        };
        linger.poll(stream, context).map(Ok)
    }
}
