//! The ceiling: how fast this machine copies the same bytes over as many loopback connections, with no TLS, no HTTP/2, no
//! digest, no disk and no sum. What a round takes longer is what it costs to do all that.

use anyhow::{Context as _, Result};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Copies that are timed; the median counts.
const TIMES: usize = 5;
/// Bytes given to the kernel at once.
const PIECE: usize = 256 << 10;

/// The time that `connections` take to move `bytes` in all: one half to the clients, then the other half back, as a
/// model and an update go. The median of a few.
///
/// # Errors
/// If loopback connections cannot be opened.
pub(super) async fn copy_time(connections: u32, bytes: u64) -> Result<Duration> {
    let each = (bytes / u64::from(connections) / 2).max(1);
    // The command's own runtime has one thread.
    let copies = std::thread::spawn(move || -> Result<Vec<Duration>> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        (0..TIMES).map(|_| runtime.block_on(copy(connections, each))).collect()
    });
    let joined = tokio::task::spawn_blocking(move || copies.join()).await?;
    let mut times = joined.expect("copying does not panic").context("cannot measure loopback")?;
    times.sort();
    Ok(times[TIMES / 2])
}

async fn copy(connections: u32, each: u64) -> Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut pairs = Vec::new();
    for _ in 0..connections {
        let here = TcpStream::connect(address).await?;
        let (there, _) = listener.accept().await?;
        for end in [&here, &there] {
            end.set_nodelay(true)?;
        }
        pairs.push((here, there));
    }
    let begun = Instant::now();
    let mut ends = JoinSet::new();
    for (mut client, mut server) in pairs {
        ends.spawn(async move {
            take(&mut client, each).await?;
            give(&mut client, each).await
        });
        ends.spawn(async move {
            give(&mut server, each).await?;
            take(&mut server, each).await
        });
    }
    while let Some(end) = ends.join_next().await {
        end??;
    }
    Ok(begun.elapsed())
}

async fn give(stream: &mut TcpStream, mut bytes: u64) -> std::io::Result<()> {
    let piece = vec![0x55; PIECE];
    while bytes > 0 {
        let n = bytes.min(PIECE as u64);
        stream.write_all(&piece[..n as usize]).await?;
        bytes -= n;
    }
    Ok(())
}

async fn take(stream: &mut TcpStream, mut bytes: u64) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    while bytes > 0 {
        let most = bytes.min(PIECE as u64) as usize;
        match stream.read(&mut piece[..most]).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => bytes -= n as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn more_bytes_take_longer() {
        let small = copy_time(2, 1000).await.unwrap();
        let large = copy_time(2, 200_000_000).await.unwrap();
        assert!(large > small, "{small:?} {large:?}");
    }
}
