//! Many light clients in one process, on a runtime of their own: enrolled side by side, connected side by side, and then
//! waiting for offers until they are told to stop.

use super::client::{Client, Conduct, Fetched, Server, enrol};
use super::update::{Recipe, Update};
use super::wire::Meter;
use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use undertone::join_token::JoinToken;

/// Enrolments and handshakes under way at once: enough to keep two sides busy, few enough for a backlog of 128.
const AT_ONCE: usize = 64;

/// What a crowd is told at its beginning.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plan {
    /// A join token with as many uses as there are clients.
    pub(super) token: String,
    /// The coordinator's CA, PEM.
    pub(super) ca: String,
    /// The number of the first client; numbers are names.
    pub(super) first: u32,
    /// How many.
    pub(super) clients: u32,
    /// Where it goes what they fetch.
    pub(super) folder: PathBuf,
    /// How.
    pub(super) fetched: Fetched,
    /// What they send.
    pub(super) update: Recipe,
    /// The round whose offer begins the count of bytes.
    pub(super) count_from: u32,
}

/// What a crowd says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// All clients are in their sessions.
    Ready(Ready),
    /// It has stopped as it was told.
    Done {
        /// What went over its connections since the count began, in both directions.
        wire_bytes: u64,
    },
    /// It cannot go on.
    Failed(String),
}

/// How long it took to get ready.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Ready {
    /// To enrol all clients, in seconds.
    pub(super) enrol_s: f64,
    /// To connect them, in seconds.
    pub(super) connect_s: f64,
}

/// Runs a crowd in a thread until `stop` is sent or dropped. All that it says goes to `say`, its end last.
pub(super) fn start(plan: Plan, stop: oneshot::Receiver<()>, say: impl Fn(Said) + Send + 'static) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let end = match runtime {
            Ok(runtime) => runtime.block_on(run(plan, stop, &say)),
            Err(e) => Err(anyhow!(e).context("cannot start a runtime")),
        };
        say(match end {
            Ok(wire_bytes) => Said::Done { wire_bytes },
            Err(e) => Said::Failed(format!("{e:#}")),
        });
    });
}

async fn run(plan: Plan, stop: oneshot::Receiver<()>, say: &impl Fn(Said)) -> Result<u64> {
    let work = async {
        let (clients, ready) = gather(&plan).await?;
        let meters: Vec<Arc<Meter>> = clients.iter().map(Client::meter).collect();
        let (update, fetched, count_from) = (Update::new(&plan.update)?, plan.fetched, plan.count_from);
        let conduct = Arc::new(Conduct { update, fetched, count_from });
        let mut taking_part = JoinSet::new();
        for client in clients {
            taking_part.spawn(client.take_part(conduct.clone()));
        }
        say(Said::Ready(ready));
        Ok::<_, anyhow::Error>((meters, taking_part))
    };
    let mut stop = std::pin::pin!(stop);
    let (meters, mut taking_part) = tokio::select! {
        gathered = work => gathered?,
        _ = &mut stop => return Err(anyhow!("stopped before it was ready")),
    };
    tokio::select! {
        Some(end) = taking_part.join_next() => {
            end?.context("a client fell out")?;
            Err(anyhow!("a client ended by itself"))
        }
        _ = &mut stop => Ok(meters.iter().map(|m| m.count()).sum()),
    }
}

/// Enrols and connects all clients.
async fn gather(plan: &Plan) -> Result<(Vec<Client>, Ready)> {
    let token = JoinToken::decode(&plan.token)?;
    let server = Server::new(token.server.clone(), plan.ca.clone()).await?;
    let begun = Instant::now();
    let enrolment = server.enrolment().await.context("cannot reach the coordinator")?;
    let names = (plan.first..plan.first + plan.clients).map(|n| format!("bench-{n:05}"));
    let identities = side_by_side(names, |name| {
        let (enrolment, secret) = (enrolment.clone(), token.secret);
        async move {
            let identity = enrol(enrolment, &secret, name.clone()).await;
            Ok((identity.with_context(|| format!("cannot enrol {name}"))?, name))
        }
    })
    .await?;
    let enrol_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let clients = side_by_side(identities.into_iter(), |(identity, name)| {
        let (server, folder) = (server.clone(), plan.folder.clone());
        async move {
            let client = Client::connect(&server, &identity, &folder, &name).await;
            client.with_context(|| format!("cannot connect {name}"))
        }
    })
    .await?;
    Ok((clients, Ready { enrol_s, connect_s: begun.elapsed().as_secs_f64() }))
}

/// Does something with each item, [`AT_ONCE`] at a time; the results in the order in which they come.
async fn side_by_side<I, T: Send + 'static, F>(
    items: impl Iterator<Item = I>,
    work: impl Fn(I) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (mut under_way, mut done) = (JoinSet::new(), Vec::new());
    for item in items {
        if under_way.len() >= AT_ONCE {
            let first = under_way.join_next().await.expect("some are under way");
            done.push(first??);
        }
        under_way.spawn(work(item));
    }
    while let Some(next) = under_way.join_next().await {
        done.push(next??);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::super::job::{Asked, job};
    use super::*;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use undertone_round::job::Transport;

    #[tokio::test]
    async fn all_is_done_and_not_all_at_once() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut done = side_by_side(0..1000usize, |i| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(i)
            }
        })
        .await
        .unwrap();
        done.sort();
        assert_eq!(done, (0..1000).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
        let broke = side_by_side(0..10, |i| async move {
            anyhow::ensure!(i != 7, "seven");
            Ok(i)
        });
        assert_eq!(broke.await.unwrap_err().to_string(), "seven");
    }

    #[tokio::test]
    async fn a_crowd_without_a_coordinator_says_so() {
        let token = JoinToken { server: "https://localhost:1".into(), ca_der: vec![1], secret: [0; 32] };
        let job = job(1000, 1, Asked::All(1), Transport::default()).unwrap();
        let update = Recipe::new(&job, Path::new("/nonexistent")).unwrap();
        let plan = Plan {
            token: token.encode(),
            ca: String::new(),
            first: 1,
            clients: 1,
            folder: "/nonexistent".into(),
            fetched: Fetched::File,
            update,
            count_from: 1,
        };
        let (stop, stopped) = oneshot::channel();
        let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
        start(plan, stopped, move |said| tx.send(said).unwrap());
        let said = rx.recv().await.unwrap();
        assert!(matches!(&said, Said::Failed(e) if e.contains("cannot reach the coordinator")), "{said:?}");
        drop(stop);
    }
}
