//! The ceilings: how fast this machine copies the same bytes over as many loopback connections, with no HTTP/2, no digest, no
//! disk and no sum; once plain and once in TLS as the coordinator and its clients speak it. What a round takes longer is
//! what it costs to do all that.

use anyhow::{Context as _, Result};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Copies that are timed of each kind; the median counts.
const TIMES: usize = 5;
/// Bytes given to the kernel at once.
const PIECE: u64 = 256 << 10;

/// What is copied: on each connection first a part to the client and then another one back, as a model and an update go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traffic {
    connections: u32,
    down: u64,
    up: u64,
}

impl Traffic {
    /// So many bytes in all over so many connections, in this proportion down and up.
    pub(super) fn new(connections: u32, bytes: u64, (down, up): (u64, u64)) -> Self {
        let each = bytes as f64 / f64::from(connections);
        let down = (each * down as f64 / (down + up) as f64) as u64;
        Self { connections, down: down.max(1), up: (each as u64).saturating_sub(down).max(1) }
    }
}

/// How long the copy takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ceiling {
    /// In the clear.
    pub(super) plain: Duration,
    /// In TLS 1.3, with the provider and the suites of everything here; handshakes do not count.
    pub(super) tls: Duration,
}

/// Measures both, in turns; the median of a few each.
///
/// # Errors
/// If loopback connections cannot be opened.
pub(super) async fn measure(traffic: Traffic) -> Result<Ceiling> {
    // The command's own runtime has one thread.
    let copies = std::thread::spawn(move || -> Result<[Vec<Duration>; 2]> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let tls = Tls::new()?;
        let mut times = [vec![], vec![]];
        for _ in 0..TIMES {
            times[0]
                .push(runtime.block_on(async { copy(connect(traffic.connections).await?, traffic).await })?);
            times[1].push(runtime.block_on(async {
                copy(tls.wrap(connect(traffic.connections).await?).await?, traffic).await
            })?);
        }
        Ok(times)
    });
    let joined = tokio::task::spawn_blocking(move || copies.join()).await?;
    let times = joined.expect("copying does not panic").context("cannot measure loopback")?;
    let [plain, tls] = times.map(|mut times| {
        times.sort();
        times[TIMES / 2]
    });
    Ok(Ceiling { plain, tls })
}

/// Pairs of ends: the client's and the server's.
type Pairs<C, S> = Vec<(C, S)>;

async fn connect(connections: u32) -> Result<Pairs<TcpStream, TcpStream>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut pairs = Vec::new();
    for _ in 0..connections {
        let client = TcpStream::connect(address).await?;
        let (server, _) = listener.accept().await?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
        }
        pairs.push((client, server));
    }
    Ok(pairs)
}

/// Both sides of TLS.
struct Tls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl Tls {
    fn new() -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = CertificateParams::new(["localhost".to_owned()])?.self_signed(&key)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        let provider = Arc::new(ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(Self { connector: Arc::new(client).into(), acceptor: Arc::new(server).into() })
    }

    async fn wrap<C: End, S: End>(&self, pairs: Pairs<C, S>) -> Result<Pairs<TlsStream<C>, TlsStream<S>>> {
        let mut wrapped = Vec::with_capacity(pairs.len());
        for (client, server) in pairs {
            let name = ServerName::try_from("localhost").expect("a name");
            let (client, server) =
                tokio::try_join!(self.connector.connect(name, client), self.acceptor.accept(server))?;
            wrapped.push((client.into(), server.into()));
        }
        Ok(wrapped)
    }
}

/// An end of a connection.
trait End: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> End for S {}

async fn copy<C: End, S: End>(pairs: Pairs<C, S>, traffic: Traffic) -> Result<Duration> {
    let begun = Instant::now();
    let mut ends = JoinSet::new();
    for (mut client, mut server) in pairs {
        ends.spawn(async move {
            take(&mut client, traffic.down).await?;
            give(&mut client, traffic.up).await
        });
        ends.spawn(async move {
            give(&mut server, traffic.down).await?;
            take(&mut server, traffic.up).await
        });
    }
    while let Some(end) = ends.join_next().await {
        end??;
    }
    Ok(begun.elapsed())
}

async fn give(stream: &mut (impl AsyncWrite + Unpin), mut bytes: u64) -> std::io::Result<()> {
    let piece = vec![0x55; bytes.min(PIECE) as usize];
    while bytes > 0 {
        let n = bytes.min(PIECE);
        stream.write_all(&piece[..n as usize]).await?;
        bytes -= n;
    }
    stream.flush().await
}

async fn take(stream: &mut (impl AsyncRead + Unpin), mut bytes: u64) -> std::io::Result<()> {
    let mut piece = vec![0; bytes.min(PIECE) as usize];
    while bytes > 0 {
        let most = bytes.min(PIECE) as usize;
        match stream.read(&mut piece[..most]).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => bytes -= n as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Connector, Counted, Meter};
    use super::*;
    use tonic::codegen::Service as _;
    use tonic::transport::Uri;

    /// A connection, and what counts its bytes.
    async fn counted() -> (Pairs<Counted, TcpStream>, Arc<Meter>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let meter = Arc::new(Meter::default());
        let mut connector = Connector::new([listener.local_addr().unwrap()].into(), meter.clone());
        let client = connector.call(Uri::default()).await.unwrap().into_inner();
        (vec![(client, listener.accept().await.unwrap().0)], meter)
    }

    #[tokio::test]
    async fn the_copies_carry_every_byte_and_tls_its_records_too() {
        let traffic = Traffic::new(1, 400_000, (3, 1));
        let (pairs, meter) = counted().await;
        copy(pairs, traffic).await.unwrap();
        assert_eq!(meter.count(), 400_000);
        let (pairs, meter) = counted().await;
        let pairs = Tls::new().unwrap().wrap(pairs).await.unwrap();
        meter.begin();
        copy(pairs, traffic).await.unwrap();
        // TLS 1.3: at most 16 KiB in a record, with 22 bytes that are not the copy's. (And what ends the handshake.)
        let records = 400_000_u64.div_ceil(16 << 10);
        assert!((400_000 + 22 * records..420_000).contains(&meter.count()), "{}", meter.count());
        measure(traffic).await.unwrap();
    }

    #[test]
    fn traffic_is_shared_out_in_proportion() {
        let traffic = Traffic::new(4, 4000, (3, 1));
        assert_eq!((traffic.down, traffic.up), (750, 250));
        let traffic = Traffic::new(3, 1, (1, 1));
        assert_eq!((traffic.down, traffic.up), (1, 1));
    }
}
