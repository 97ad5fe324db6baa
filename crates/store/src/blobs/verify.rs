//! A reader that ends in an error if what it read is not what it should be.

use super::error::BlobError;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use undertone_core::digest::{Digest, Digester};

/// Passes bytes on and compares their digest at the end.
pub(super) struct Verified<R> {
    inner: R,
    expected: Digest,
    /// Until the end has been compared.
    digester: Option<Digester>,
}

impl<R> Verified<R> {
    pub(super) fn new(inner: R, expected: Digest) -> Self {
        Self { inner, expected, digester: Some(Digester::new()) }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Verified<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        if !read.is_empty() || room == 0 {
            if let Some(digester) = &mut self.digester {
                digester.update(read);
            }
        } else if let Some(digester) = self.digester.take() {
            let found = digester.finish();
            if found != self.expected {
                let damaged = BlobError::Damaged { digest: self.expected, found };
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, damaged)));
            }
        }
        Poll::Ready(Ok(()))
    }
}
