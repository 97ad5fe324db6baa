//! A line between a client and its coordinator that counts what passes, and that can be cut.

use crate::PATIENCE;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A relay on loopback: give its [`url`](Wire::url) to a client in place of the coordinator's. It sees what a network
/// sees, TLS and all.
pub struct Wire {
    port: u16,
    counts: Arc<Counts>,
    limit: Arc<watch::Sender<u64>>,
    /// Rises with each cut.
    cuts: watch::Sender<u64>,
    held: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    down: AtomicU64,
    up: AtomicU64,
    /// The bytes up after which none come down.
    enough: AtomicU64,
}

impl Wire {
    /// A line to the coordinator at this URL.
    pub async fn to(url: &str) -> Self {
        let target = url.trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (limit, limited) = watch::channel(u64::MAX);
        let limit = Arc::new(limit);
        let stop = limit.clone();
        let counts = Arc::new(Counts { enough: AtomicU64::new(u64::MAX), ..Counts::default() });
        let counted = counts.clone();
        let (cuts, cut) = watch::channel(0);
        let held = Arc::<AtomicBool>::default();
        let is_held = held.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A coordinator that is away: the client sees its connection end.
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                if is_held.load(Ordering::SeqCst) {
                    continue;
                }
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(until_cut(
                    cut.clone(),
                    up(from_client, to_server, counted.clone(), stop.clone()),
                ));
                let down = down(from_server, to_client, counted.clone(), limited.clone());
                tokio::spawn(until_cut(cut.clone(), down));
            }
        });
        Self { port, counts, limit, cuts, held, task }
    }

    /// Where a client finds the coordinator.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Bytes that came down so far.
    pub fn down(&self) -> u64 {
        self.counts.down.load(Ordering::SeqCst)
    }

    /// Bytes that went up so far.
    pub fn up(&self) -> u64 {
        self.counts.up.load(Ordering::SeqCst)
    }

    /// Lets so many more bytes down, and then none before [`Wire::mend`].
    pub fn stop_after(&self, bytes: u64) {
        self.limit.send_replace(self.down() + bytes);
    }

    /// Once so many more bytes have gone up, lets none down before [`Wire::mend`]: their receipt is lost.
    pub fn deafen_after(&self, bytes: u64) {
        self.counts.enough.store(self.up() + bytes, Ordering::SeqCst);
    }

    /// Ends all connections, with what has not passed yet.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Lets no new connection through before [`Wire::mend`].
    pub fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    /// Everything passes again.
    pub fn mend(&self) {
        self.held.store(false, Ordering::SeqCst);
        self.counts.enough.store(u64::MAX, Ordering::SeqCst);
        self.limit.send_replace(u64::MAX);
    }

    /// Waits until nothing passes any more.
    pub async fn stopped(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.down() < *self.limit.borrow() {
            assert!(tokio::time::Instant::now() < deadline, "{} bytes came down", self.down());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One direction of a connection, as long as nobody cuts it.
async fn until_cut(mut cuts: watch::Receiver<u64>, pump: impl Future<Output = ()>) {
    cuts.mark_unchanged();
    tokio::select! {
        () = pump => {}
        // The relay itself may be gone: what goes through it ends with its connections.
        Ok(()) = cuts.changed() => {}
    }
}

async fn up(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    counts: Arc<Counts>,
    limit: Arc<watch::Sender<u64>>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let before = counts.up.fetch_add(n as u64, Ordering::SeqCst);
        if before + n as u64 >= counts.enough.load(Ordering::SeqCst) {
            // Before the coordinator has them.
            limit.send_replace(counts.down.load(Ordering::SeqCst));
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn down(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    counts: Arc<Counts>,
    mut limit: watch::Receiver<u64>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let mut bytes = &buffer[..n];
        while !bytes.is_empty() {
            let left = limit.borrow_and_update().saturating_sub(counts.down.load(Ordering::SeqCst));
            let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if now == 0 {
                if limit.changed().await.is_err() {
                    return;
                }
                continue;
            }
            counts.down.fetch_add(now as u64, Ordering::SeqCst);
            if to.write_all(&bytes[..now]).await.is_err() {
                return;
            }
            bytes = &bytes[now..];
        }
    }
}
