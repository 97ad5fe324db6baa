//! Real clients over a line that breaks again and again: between them and the coordinator stands a proxy that cuts each
//! connection after some bytes. Model and update are several times as long, so that only who goes on where it was cut
//! ever gets there.

use crate::job;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FnTrainer};
use undertone_round::event::{JobEvent, Outcome};

/// Of each connection, both directions together: two chunks of 256 KiB get through, a third does not. (One would do as
/// well, but a client waits twice as long after each break.)
const BYTES: u64 = 700_000;

/// Forwards connections to a port and cuts them; counts them, and the bytes that got through.
struct CuttingProxy {
    port: u16,
    connections: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl CuttingProxy {
    /// The first connections carry so many bytes each, all after them the last number.
    async fn start(to: u16, budgets: &'static [u64]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::<AtomicU64>::default();
        let bytes = Arc::<AtomicU64>::default();
        let (count, through) = (connections.clone(), bytes.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let before = count.fetch_add(1, Ordering::SeqCst) as usize;
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                let left = Arc::new(AtomicU64::new(budgets[before.min(budgets.len() - 1)]));
                let (up, down) = (through.clone(), through.clone());
                // Whichever ends first ends both.
                tokio::spawn(async move {
                    tokio::select! {
                        () = pump(from_client, to_server, left.clone(), up) => {}
                        () = pump(from_server, to_client, left, down) => {}
                    }
                });
            }
        });
        Self { port, connections, bytes }
    }

    fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    left: Arc<AtomicU64>,
    through: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let took = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(n as u64));
        if took.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
        through.fetch_add(n as u64, Ordering::SeqCst);
    }
}

/// One client behind a proxy that cuts its connections like that completes a round of 300,395 values, five chunks down and
/// five up; the proxy tells how.
async fn a_round_over(budgets: &'static [u64]) -> CuttingProxy {
    let text = job("size = 2", "size = 1")
        .replace("rounds = 2", "rounds = 1")
        .replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [600, 497]")
        .replace("round = \"30s\"", "round = \"10m\"")
        .replace("gather = \"20s\"", "gather = \"10m\"")
        .replace("reconnect = \"2s\"", "reconnect = \"5m\"");
    let mut d = Deployment::start().await;
    let mut config = d.enrol("far", ClientRole::Trainer).await;
    let port: u16 = config.server.rsplit(':').next().unwrap().parse().unwrap();
    let proxy = CuttingProxy::start(port, budgets).await;
    config.server = config.server.replace(&format!(":{port}"), &format!(":{}", proxy.port));
    d.run(config, FnTrainer::constant(0.25));
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let received = events.0.iter().filter(|e| matches!(e, JobEvent::Received { .. })).count();
    assert_eq!((events.released(), received), (1, 1), "it counts once: {}", events.text());
    let spec = undertone_round::job::JobSpec::from_toml(&text, "job.toml").unwrap().resolve().unwrap();
    let model = operator.model(&id).await;
    assert_eq!(model.len(), 300_395);
    for (now, before) in model.iter().zip(spec.initial_values()) {
        assert!((now - before - 0.25).abs() < 1e-4);
    }
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_cut_at_every_other_chunk_carries_model_and_update() {
    let proxy = a_round_over(&[BYTES]).await;
    // 2.4 MB do not fit through three connections; and not many more than four, for what arrived is not sent again.
    let connections = proxy.connections();
    assert!((4..=8).contains(&connections), "{connections} connections");
}

/// Once at each chunk of both ways, in its middle and near its end: what arrived before is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_cut_once_anywhere_carries_little_twice() {
    const CHUNK: u64 = 256 << 10;
    const ALL: u64 = u64::MAX;
    const CUTS: [[u64; 2]; 10] = [
        [CHUNK / 2, ALL],
        [CHUNK + CHUNK / 8, ALL],
        [2 * CHUNK + CHUNK / 2, ALL],
        [3 * CHUNK + CHUNK / 8, ALL],
        [4 * CHUNK + CHUNK / 2, ALL],
        [5 * CHUNK + CHUNK / 8, ALL],
        [6 * CHUNK + CHUNK / 2, ALL],
        [7 * CHUNK + CHUNK / 8, ALL],
        [8 * CHUNK + CHUNK / 2, ALL],
        [9 * CHUNK + CHUNK / 8, ALL],
    ];
    for budgets in &CUTS {
        let proxy = a_round_over(budgets).await;
        assert!((2..=3).contains(&proxy.connections()), "{budgets:?}: {} connections", proxy.connections());
        // Two chunks that were on their way, and what sessions say.
        let (bytes, once) = (proxy.bytes.load(Ordering::SeqCst), 2 * 4 * 300_395);
        assert!(bytes < once + 3 * CHUNK, "{budgets:?}: {bytes} of {once}");
    }
}
