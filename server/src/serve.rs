//! Opening the port: TLS, services, health, reflection, shutdown.

use crate::clock;
use crate::config::ServerConfig;
use crate::coordinator::Coordinator;
use crate::fleet::Fleet;
use crate::identity::{Authority, IdentityError};
use crate::services::{EnrolmentService, OperatorService, ParticipationService, RawBodies};
use crate::storage::{self, Opened};
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server as Transport, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use undertone::limits::{FRAME_BYTES, MAX_MESSAGE_BYTES};
use undertone::v1::enrolment_server::EnrolmentServer;
use undertone::v1::operator_server::OperatorServer;
use undertone::v1::participation_server::ParticipationServer;
use undertone_store::{Blobs, Store};

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
    /// Another coordinator has its place.
    #[error("this coordinator steps down: {0}; started again, it stands by")]
    SteppedDown(String),
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
    lock: Option<File>,
}

fn bind(config: &ServerConfig) -> Result<TcpIncoming, ServerError> {
    TcpIncoming::bind(config.listen)
        .map(|incoming| incoming.with_nodelay(Some(true)))
        .map_err(|e| ServerError::Listen { address: config.listen, reason: e.to_string() })
}

impl Server {
    /// Starts the coordinator of a configuration.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(config: ServerConfig) -> Result<Self, ServerError> {
        // The port first: what is in the way most often is said first. One that waits for its turn listens when that has come, so
        // that nobody is led to it before.
        let may_wait = config.storage.database.is_some() && config.storage.bucket.is_none();
        let incoming = if may_wait { None } else { Some(bind(&config)?) };
        let Opened { store, blobs, fleet, lock } =
            storage::open(&config.storage).await.map_err(ServerError::State)?;
        let incoming = incoming.map_or_else(|| bind(&config), Ok);
        let started = match incoming {
            Ok(incoming) => Self::serve(config, incoming, store, blobs, fleet.clone()).await,
            Err(e) => Err(e),
        };
        match started {
            Ok(server) => Ok(Self { lock: Some(lock), ..server }),
            Err(e) => {
                if let Some(fleet) = fleet {
                    fleet.leave().await;
                }
                Err(e)
            }
        }
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
        Self::serve(config, incoming, store, blobs, None).await
    }

    async fn serve(
        config: ServerConfig,
        incoming: TcpIncoming,
        store: Arc<dyn Store>,
        blobs: Arc<dyn Blobs>,
        fleet: Option<Arc<Fleet>>,
    ) -> Result<Self, ServerError> {
        let window = config.limits.upload_window_kib << 10;
        let address = incoming
            .local_addr()
            .map_err(|e| ServerError::Listen { address: config.listen, reason: e.to_string() })?;
        let authority = Authority::open(&config.pki)?;
        let tls = tls(&config.pki, &authority)?;
        let (reach, is_alone) = (fleet.as_ref().map(|fleet| fleet.reach()), fleet.is_none());
        let coordinator = Coordinator::open(config, authority, store, blobs, fleet).await;
        let coordinator = Arc::new(coordinator.map_err(ServerError::State)?);

        if is_alone {
            tokio::spawn(clock::stand_alone());
        }
        let (health, health_service) = tonic_health::server::health_reporter();
        tell_health(&health, true).await;
        if let Some(mut reach) = reach {
            tokio::spawn(async move {
                // A load balancer leads nobody to a coordinator that does not reach its database.
                while reach.changed().await.is_ok() {
                    let is_serving = *reach.borrow_and_update();
                    tell_health(&health, is_serving).await;
                }
            });
        }
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
        Ok(Self { address, coordinator, stop: Some(stop), task, lock: None })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of participants connected to this coordinator now.
    pub fn connected(&self) -> usize {
        self.coordinator.shared.sessions.here()
    }

    /// Resolves when the transport stops by itself, or when another coordinator has this one's place: end the process then, with all
    /// that may be under way in it.
    ///
    /// # Errors
    /// [`ServerError::Transport`], [`ServerError::SteppedDown`].
    pub async fn stopped(&mut self) -> Result<(), ServerError> {
        let fleet = self.coordinator.shared.fleet.as_ref();
        let over = async {
            match fleet {
                Some(fleet) => fleet.over().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = &mut self.task => ended,
            why = over => return Err(ServerError::SteppedDown(why)),
        };
        match ended {
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
        if let Some(fleet) = &self.coordinator.shared.fleet {
            fleet.leave().await;
        }
        if tokio::time::timeout(DRAIN, self.coordinator.shared.store.close()).await.is_err() {
            tracing::warn!("the database did not let go of its connections in time");
        }
        drop(self.lock);
    }
}

/// Tells load balancers and service managers how all services are.
async fn tell_health(health: &HealthReporter, is_serving: bool) {
    let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in [
        "",
        ParticipationServer::<ParticipationService>::NAME,
        OperatorServer::<OperatorService>::NAME,
        EnrolmentServer::<EnrolmentService>::NAME,
    ] {
        health.set_service_status(service, status).await;
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
