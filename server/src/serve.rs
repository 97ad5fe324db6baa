//! Opening the port: TLS, services, health, reflection, shutdown.

use crate::config::{Durability, ServerConfig};
use crate::coordinator::Coordinator;
use crate::identity::{Authority, IdentityError};
use crate::services::{EnrolmentService, OperatorService, ParticipationService, RawBodies};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server as Transport, ServerTlsConfig};
use undertone::limits::{FRAME_BYTES, MAX_MESSAGE_BYTES};
use undertone::v1::enrolment_server::EnrolmentServer;
use undertone::v1::operator_server::OperatorServer;
use undertone::v1::participation_server::ParticipationServer;
use undertone_store::{Blobs, FolderBlobs, SqliteStore, Store};

/// Bounds the messages of a service.
macro_rules! limited {
    ($service:expr) => {
        $service.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
    };
}

/// How long open calls may take to end at a shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the daemon did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The port.
    #[error(
        "cannot listen on {address}: {reason} (another program on this port? change `listen` in server.toml)"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Keys and certificates.
    #[error("{0}: is the pki folder whole? `undertone-server init` makes one")]
    Identity(#[from] IdentityError),
    /// Keys and certificates that rustls refuses.
    #[error("the TLS set-up is refused: {0}")]
    Tls(tonic::transport::Error),
    /// State and blobs.
    #[error("cannot open the state: {0}")]
    State(String),
    /// The transport.
    #[error("the server stopped: {0}")]
    Transport(String),
}

/// A running coordinator.
pub struct Server {
    address: SocketAddr,
    coordinator: Arc<Coordinator>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
    /// Held for the daemon's life.
    _lock: Option<std::fs::File>,
}

fn bind(config: &ServerConfig) -> Result<TcpIncoming, ServerError> {
    TcpIncoming::bind(config.listen)
        .map(|incoming| incoming.with_nodelay(Some(true)))
        .map_err(|e| ServerError::Listen { address: config.listen, reason: e.to_string() })
}

impl Server {
    /// Starts the coordinator of a configuration, with its SQLite file and blob folder.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(config: ServerConfig) -> Result<Self, ServerError> {
        // The port first: what is in the way most often is said first.
        let incoming = bind(&config)?;
        let folder = config.storage.folder.clone();
        let state = |e: &dyn std::fmt::Display| ServerError::State(format!("{}: {e}", folder.display()));
        std::fs::create_dir_all(&folder).map_err(|e| state(&e))?;
        // Two daemons on one folder would take up each other's jobs.
        let lock = std::fs::File::create(folder.join("lock")).map_err(|e| state(&e))?;
        lock.try_lock().map_err(|_| state(&"another coordinator runs on this folder"))?;
        let durability = match config.storage.durability {
            Durability::Disk => undertone_store::Durability::Disk,
            Durability::Process => undertone_store::Durability::Process,
        };
        let store =
            SqliteStore::open(&folder.join("undertone.sqlite"), durability).await.map_err(|e| state(&e))?;
        let blobs = FolderBlobs::open(&folder.join("blobs"), durability).await.map_err(|e| state(&e))?;
        let server = Self::serve(config, incoming, Arc::new(store), Arc::new(blobs)).await?;
        Ok(Self { _lock: Some(lock), ..server })
    }

    /// Starts with a given store and blobs.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start_with(
        config: ServerConfig,
        store: Arc<dyn Store>,
        blobs: Arc<dyn Blobs>,
    ) -> Result<Self, ServerError> {
        let incoming = bind(&config)?;
        Self::serve(config, incoming, store, blobs).await
    }

    async fn serve(
        config: ServerConfig,
        incoming: TcpIncoming,
        store: Arc<dyn Store>,
        blobs: Arc<dyn Blobs>,
    ) -> Result<Self, ServerError> {
        let window = config.limits.upload_window_kib << 10;
        let address = incoming
            .local_addr()
            .map_err(|e| ServerError::Listen { address: config.listen, reason: e.to_string() })?;
        let authority = Authority::open(&config.pki)?;
        let tls = tls(&config.pki, &authority)?;
        let coordinator =
            Arc::new(Coordinator::open(config, authority, store, blobs).await.map_err(ServerError::State)?);

        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ParticipationServer<ParticipationService>>().await;
        health.set_serving::<OperatorServer<OperatorService>>().await;
        health.set_serving::<EnrolmentServer<EnrolmentService>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(undertone::v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("our descriptors are valid");
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown_of = coordinator.clone();
        let router = Transport::builder()
            .tls_config(tls)
            .map_err(ServerError::Tls)?
            .max_frame_size(FRAME_BYTES)
            // Not `adaptive`: those grow to 16 MiB for each connection.
            .initial_stream_window_size(window)
            .initial_connection_window_size(2 * window)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .add_service(health_service)
            .add_service(reflection)
            .add_service(limited!(EnrolmentServer::new(EnrolmentService(coordinator.clone()))))
            .add_service(RawBodies(limited!(ParticipationServer::new(ParticipationService(
                coordinator.clone()
            )))))
            .add_service(limited!(OperatorServer::new(OperatorService(coordinator.clone()))));
        let task = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async move {
            let _ = stopped.await;
            shutdown_of.stop();
        }));
        Ok(Self { address, coordinator, stop: Some(stop), task, _lock: None })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of participants connected now.
    pub fn connected(&self) -> usize {
        let roster = self.coordinator.shared.sessions.roster();
        roster.trainers.len() + roster.evaluators.len()
    }

    /// Resolves when the transport stops by itself.
    ///
    /// # Errors
    /// [`ServerError::Transport`].
    pub async fn stopped(&mut self) -> Result<(), ServerError> {
        match (&mut self.task).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(ServerError::Transport(e.to_string())),
            Err(e) => Err(ServerError::Transport(e.to_string())),
        }
    }

    /// Shuts down: drivers stop between steps, sessions are told to come back later, open calls get a few seconds.
    pub async fn shutdown(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if tokio::time::timeout(DRAIN, &mut self.task).await.is_err() {
            tracing::warn!("open calls did not end in time and were cut");
            self.task.abort();
        }
        if tokio::time::timeout(DRAIN, self.coordinator.finish()).await.is_err() {
            tracing::warn!("a job's driver did not stop in time; its last durable step stands");
        }
    }
}

fn tls(pki: &Path, authority: &Authority) -> Result<ServerTlsConfig, ServerError> {
    let read = |name: &str| {
        let path = pki.join(name);
        std::fs::read(&path)
            .map_err(|source| IdentityError::File { path: path.display().to_string(), source })
    };
    Ok(ServerTlsConfig::new()
        .identity(Identity::from_pem(read("server.crt")?, read("server.key")?))
        .client_ca_root(Certificate::from_pem(authority.ca_pem()))
        // Enrolment comes without a certificate, health and reflection need none; the others ask for one themselves.
        .client_auth_optional(true))
}
