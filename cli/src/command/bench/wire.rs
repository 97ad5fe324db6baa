//! Counting what goes over the wire: TCP connections below TLS that count their bytes in both directions.

use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::codegen::Service;
use tonic::transport::Uri;

/// The bytes of a connection so far: TLS records and all that is in them, not the headers of TCP and IP.
#[derive(Debug, Default)]
pub(super) struct Meter {
    bytes: AtomicU64,
    /// Where the count begins.
    from: AtomicU64,
}

impl Meter {
    /// Counts from here on.
    pub(super) fn begin(&self) {
        self.from.store(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Bytes since [`Meter::begin`], or since the connection was opened.
    pub(super) fn count(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed) - self.from.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Opens counted connections to one of these addresses, whatever it is asked for.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    addresses: Arc<[SocketAddr]>,
    meter: Arc<Meter>,
}

impl Connector {
    /// For connections that count on `meter`. The addresses were looked up once for all clients.
    pub(super) fn new(addresses: Arc<[SocketAddr]>, meter: Arc<Meter>) -> Self {
        Self { addresses, meter }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Counted>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { addresses, meter } = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(&*addresses).await?;
            // As tonic's own connector was told to by the real client.
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(Counted { stream, meter }))
        })
    }
}

/// A TCP connection that counts.
#[derive(Debug)]
pub(super) struct Counted {
    stream: TcpStream,
    meter: Arc<Meter>,
}

impl Counted {
    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &written {
            self.meter.add(*n);
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.meter.add(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn both_directions_count_from_where_it_began() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let meter = Arc::new(Meter::default());
        let addresses = Arc::from([listener.local_addr().unwrap()]);
        let mut here =
            Connector::new(addresses, meter.clone()).call(Uri::default()).await.unwrap().into_inner();
        let (mut there, _) = listener.accept().await.unwrap();
        here.write_all(&[1; 1000]).await.unwrap();
        there.read_exact(&mut [0; 1000]).await.unwrap();
        assert_eq!(meter.count(), 1000);
        meter.begin();
        there.write_all(&[2; 30]).await.unwrap();
        here.read_exact(&mut [0; 30]).await.unwrap();
        here.write_all(&[3; 4]).await.unwrap();
        assert_eq!(meter.count(), 34);
    }
}
