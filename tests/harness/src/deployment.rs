//! A deployment in this process.

use crate::{FaultyStorage, FnTrainer, Operator, PATIENCE, RawClient};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use undertone::join_token::JoinToken;
use undertone_client::{Client, ClientConfig, ClientError, Enrolment, enrol};
use undertone_core::id::ClientRole;
use undertone_core::trainer::Trainer;
use undertone_server::init::{InitOptions, init};
use undertone_server::{Server, ServerConfig};

/// A coordinator with its CA, and the clients that were started in it. Everything lives in a temporary folder and
/// ends with this value.
pub struct Deployment {
    folder: TempDir,
    config: ServerConfig,
    server: Option<Server>,
    clients: Vec<Option<RunningClient>>,
}

/// A client task.
pub struct RunningClient {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ClientError>>,
}

impl Deployment {
    /// Makes and starts a deployment on a free port of loopback.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with changes to `server.toml`'s values.
    pub async fn start_with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let options = InitOptions {
            folder: folder.path().join("deployment"),
            name: "harness".into(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            hosts: vec!["localhost".into()],
        };
        let mut config = init(&options).expect("init");
        change(&mut config);
        let server = Server::start(config.clone()).await.expect("the coordinator starts");
        Self { folder, config, server: Some(server), clients: vec![] }
    }

    /// The same on storage that can fail, and that outlives the coordinator.
    pub async fn start_on(storage: &FaultyStorage) -> Self {
        let mut deployment = Self::start().await;
        deployment.restart_on(storage).await;
        deployment
    }

    /// Stops the coordinator and starts it again on the same port and this storage.
    pub async fn restart_on(&mut self, storage: &FaultyStorage) {
        self.stop().await;
        let storage = Arc::new(storage.clone());
        let server = Server::start_with(self.config.clone(), storage.clone(), storage).await;
        self.server = Some(server.expect("the coordinator starts"));
    }

    /// The temporary folder; `deployment/` and `clients/NAME/` are in it.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration.
    pub fn config(&self) -> &ServerConfig {
        &self.config
    }

    /// An operator of this deployment.
    pub async fn operator(&self) -> Operator {
        Operator::connect(&self.config.public_url, &self.path().join("deployment/operator")).await
    }

    /// Stops the coordinator gracefully.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
    }

    /// Stops the coordinator and starts it again on the same folder and port.
    pub async fn restart(&mut self) {
        self.stop().await;
        let mut last = None;
        for _ in 0..50 {
            match Server::start(self.config.clone()).await {
                Ok(server) => {
                    self.server = Some(server);
                    return;
                }
                Err(e) => last = Some(e),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the coordinator does not start again: {last:?}");
    }

    /// A one-time token.
    pub async fn token(&self, role: ClientRole) -> JoinToken {
        self.operator().await.token(role, 1, Duration::from_secs(600)).await
    }

    /// Enrols a client and returns its configuration, to be changed and given to [`Deployment::run`].
    pub async fn enrol(&self, name: &str, role: ClientRole) -> ClientConfig {
        let dir = self.path().join("clients").join(name);
        enrol(Enrolment {
            dir: dir.clone(),
            token: self.token(role).await,
            name: Some(name.parse().expect("a name")),
            data: Some(dir.join("data.csv").into()),
            declared_rows: Some(100),
            force: false,
        })
        .await
        .expect("enrolment");
        let mut config = ClientConfig::load(&dir).expect("the client.toml that enrolment wrote");
        config.policy.allow_no_privacy = true;
        config.policy.allow_exact_measurements = true;
        config
    }

    /// Runs a client with a trainer.
    pub fn run(&mut self, config: ClientConfig, trainer: impl Trainer + 'static) -> usize {
        let (stop, stopped) = oneshot::channel::<()>();
        let (name, folder) = (config.name.to_string(), config.folder.dir().to_owned());
        let client = Client::new(config, Box::new(trainer));
        let task = tokio::spawn(client.run(async move {
            let _ = stopped.await;
        }));
        self.clients.push(Some(RunningClient { name, folder, stop: Some(stop), task }));
        self.clients.len() - 1
    }

    /// Enrols and runs a trainer that takes every job.
    pub async fn trainer(&mut self, name: &str, trainer: impl Trainer + 'static) -> usize {
        let config = self.enrol(name, ClientRole::Trainer).await;
        self.run(config, trainer)
    }

    /// Enrols and runs one trainer for each data set, named `client-1`, `client-2` …, all with the same training: from
    /// the client's data and the model's values to the change of the values. Waits until all are connected.
    pub async fn trainers<D: Send + 'static>(
        &mut self,
        data: impl IntoIterator<Item = D>,
        train: impl Fn(&D, &[f32]) -> Vec<f32> + Clone + Send + 'static,
    ) {
        let before = self.server.as_ref().expect("the coordinator runs").connected();
        let mut number = 0;
        for data in data {
            number += 1;
            let train = train.clone();
            let trainer = FnTrainer::new(move |_, weights| Ok(train(&data, weights)));
            self.trainer(&format!("client-{number}"), trainer).await;
        }
        self.wait_connected(before + number).await;
    }

    /// Enrols and runs an evaluator.
    pub async fn evaluator(&mut self, name: &str, trainer: impl Trainer + 'static) -> usize {
        let config = self.enrol(name, ClientRole::Evaluator).await;
        self.run(config, trainer)
    }

    /// Enrols a participant that the test speaks for.
    pub async fn raw(&self, name: &str, role: ClientRole) -> RawClient {
        let config = self.enrol(name, role).await;
        RawClient::connect(&config).await
    }

    /// The client with this number, taken out: it goes on until it is stopped or dropped.
    pub fn take(&mut self, number: usize) -> RunningClient {
        self.clients[number].take().expect("it was not taken yet")
    }

    /// Waits until so many participants are connected.
    pub async fn wait_connected(&self, number: usize) {
        let server = self.server.as_ref().expect("the coordinator runs");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while server.connected() != number {
            assert!(tokio::time::Instant::now() < deadline, "{} connected, not {number}", server.connected());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl RunningClient {
    /// Asks the client to stop, and returns how it ended.
    pub async fn stop(mut self) -> Result<(), ClientError> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        self.ended().await
    }

    /// Waits until the client ends by itself.
    pub async fn ended(mut self) -> Result<(), ClientError> {
        tokio::time::timeout(PATIENCE, &mut self.task)
            .await
            .expect("the client ends")
            .expect("the client does not panic")
    }
}

impl Drop for RunningClient {
    /// The client vanishes, as if its machine had lost power.
    fn drop(&mut self) {
        self.task.abort();
    }
}
