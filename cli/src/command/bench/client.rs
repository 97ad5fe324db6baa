//! One light client: a participant of the real protocol that trains nothing.
//!
//! It does what the real client does on the wire, over connections set up alike: its own key and certificate, a session,
//! an answer to each offer, the round's model (or the difference from the version that it fetched before, where one is
//! offered) in pieces into a file that is verified and synced, an update in pieces. What it leaves out: reading the job, the
//! decision log, making a version of what was encoded, training, and the outbox; its update lies ready.

use super::update::Update;
use super::wire::{Connector, Meter};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use undertone::limits::{FRAME_BYTES, MAX_MESSAGE_BYTES};
use undertone::v1::enrolment_client::EnrolmentClient;
use undertone::v1::participation_client::ParticipationClient;
use undertone::v1::{self, client_message, server_message, upload_reply};
use undertone::{required, version};
use undertone_core::digest::Digester;

// As the real client sets its connections up.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(90);
const WINDOW_BYTES: u32 = 4 << 20;
/// Longer than the real one's: here thousands connect at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// Where a client puts what it fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Fetched {
    /// Into a file that is synced, as the real client does
    File,
    /// Nowhere: verified piece by piece and dropped, so that the clients' disk is not measured
    Memory,
}

/// How to reach the coordinator.
#[derive(Debug, Clone)]
pub(super) struct Server {
    url: String,
    /// Of the deployment's CA, PEM.
    ca: String,
    addresses: Arc<[SocketAddr]>,
}

impl Server {
    /// Looks the coordinator's address up, once for all clients.
    ///
    /// # Errors
    /// If the address makes no sense.
    pub(super) async fn new(url: String, ca: String) -> Result<Self> {
        let uri: tonic::transport::Uri = url.parse().context("the coordinator's address")?;
        let (host, port) = uri.host().zip(uri.port_u16()).ok_or_else(|| anyhow!("{url} has no port"))?;
        let addresses =
            tokio::net::lookup_host((host, port)).await.with_context(|| format!("{host}:{port}"))?;
        Ok(Self { addresses: addresses.collect(), url, ca })
    }

    async fn connect(&self, identity: Option<&Identity>, meter: Arc<Meter>) -> Result<Channel> {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca)).timeout(CONNECT_TIMEOUT);
        if let Some(identity) = identity {
            tls = tls.identity(identity.clone());
        }
        let endpoint = Endpoint::from_shared(self.url.clone())?
            .tls_config(tls)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .max_frame_size(FRAME_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES);
        let connector = Connector::new(self.addresses.clone(), meter);
        Ok(endpoint.connect_with_connector(connector).await?)
    }

    /// A connection that enrols, without a certificate; one is enough for all.
    ///
    /// # Errors
    /// If nobody answers.
    pub(super) async fn enrolment(&self) -> Result<EnrolmentClient<Channel>> {
        Ok(EnrolmentClient::new(self.connect(None, Arc::default()).await?))
    }
}

/// Makes a key and trades the join token's secret for a certificate.
///
/// # Errors
/// If the coordinator refuses.
pub(super) async fn enrol(
    mut enrolment: EnrolmentClient<Channel>,
    secret: &[u8],
    name: String,
) -> Result<Identity> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
    let request = CertificateParams::default().serialize_request(&key).context("cannot sign a request")?;
    let request = v1::EnrolRequest {
        token_secret: secret.to_vec().into(),
        certificate_request: request.der().to_vec().into(),
        name,
        software: version::SOFTWARE.into(),
    };
    let answer = enrolment.enrol(request).await?.into_inner();
    Ok(Identity::from_pem(answer.certificate, key.serialize_pem()))
}

/// What all clients of a process do alike.
#[derive(Debug)]
pub(super) struct Conduct {
    /// What is uploaded in each round.
    pub(super) update: Update,
    /// Where it goes what is fetched.
    pub(super) fetched: Fetched,
    /// The round whose offer begins the count of bytes.
    pub(super) count_from: u32,
}

/// A client in a session.
#[derive(Debug)]
pub(super) struct Client {
    stub: ParticipationClient<Channel>,
    outbox: mpsc::Sender<v1::ClientMessage>,
    inbox: Streaming<v1::ServerMessage>,
    meter: Arc<Meter>,
    /// The file of what it fetched last.
    model: PathBuf,
    /// The version of the model that it fetched last, where versions are named.
    held: Option<Bytes>,
}

impl Client {
    /// Connects and opens a session; the client's file goes into `folder`.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or refuses.
    pub(super) async fn connect(
        server: &Server,
        identity: &Identity,
        folder: &Path,
        name: &str,
    ) -> Result<Self> {
        let meter = Arc::new(Meter::default());
        let channel = server.connect(Some(identity), meter.clone()).await?;
        let mut stub = ParticipationClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (outbox, messages) = mpsc::channel(4);
        let hello = v1::Hello {
            protocol_min: version::PROTOCOL_MIN,
            protocol_max: version::PROTOCOL_MAX,
            software: version::SOFTWARE.into(),
        };
        outbox.send(v1::ClientMessage { kind: Some(client_message::Kind::Hello(hello)) }).await?;
        let mut inbox = stub.session(ReceiverStream::new(messages)).await?.into_inner();
        match inbox.message().await?.and_then(|m| m.kind) {
            Some(server_message::Kind::Welcome(_)) => {}
            other => bail!("the session began with {other:?} and not with a welcome"),
        }
        Ok(Self { stub, outbox, inbox, meter, model: folder.join(format!("{name}.safetensors")), held: None })
    }

    /// What its connection counts.
    pub(super) fn meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// Takes part in every round until it is dropped.
    ///
    /// # Errors
    /// If anything goes wrong: a benchmark with fewer clients than it says is none.
    pub(super) async fn take_part(mut self, conduct: Arc<Conduct>) -> Result<()> {
        loop {
            match self.inbox.message().await?.and_then(|m| m.kind) {
                Some(server_message::Kind::Offer(offer)) => self.round(offer, &conduct).await?,
                Some(server_message::Kind::Withdraw(w)) => bail!("the coordinator withdrew: {}", w.reason),
                Some(server_message::Kind::Goodbye(g)) => bail!("the coordinator said goodbye: {}", g.reason),
                Some(_) => {}
                None => bail!("the coordinator ended the session"),
            }
        }
    }

    async fn round(&mut self, offer: v1::Offer, conduct: &Conduct) -> Result<()> {
        let attempt = required(offer.attempt, "attempt")?;
        if attempt.round == conduct.count_from {
            self.meter.begin();
        }
        let answer = v1::Answer { attempt: Some(attempt.clone()), accepts: true, reason: String::new() };
        self.outbox.send(v1::ClientMessage { kind: Some(client_message::Kind::Answer(answer)) }).await?;
        let delta = offer.delta.filter(|delta| self.held.as_ref() == Some(&delta.base));
        let file = match delta {
            Some(delta) => required(delta.file, "file")?,
            None => required(offer.model, "model")?,
        };
        self.fetch(file, conduct.fetched).await.context("cannot fetch the model")?;
        self.held = offer.version;
        self.upload(attempt, &conduct.update).await.context("cannot upload the update")
    }

    /// Sends the update as soon as it may, and waits for the receipt.
    async fn upload(&mut self, attempt: v1::AttemptRef, update: &Update) -> Result<()> {
        let (messages, stream) = mpsc::channel(2);
        messages.send(update.header(attempt)).await?;
        let mut replies = self.stub.upload_update(ReceiverStream::new(stream)).await?.into_inner();
        let go = replies.message().await?.and_then(|reply| reply.kind);
        ensure!(matches!(go, Some(upload_reply::Kind::Go(v1::Go { offset: 0, .. }))), "{go:?} and not: go");
        let chunks = update.chunks();
        let feed = async move {
            for chunk in chunks {
                if messages.send(chunk).await.is_err() {
                    break;
                }
            }
        };
        let ((), receipt) = tokio::join!(feed, replies.message());
        let receipt = receipt?.and_then(|reply| reply.kind);
        ensure!(matches!(receipt, Some(upload_reply::Kind::Receipt(_))), "{receipt:?} and not a receipt");
        Ok(())
    }

    /// Fetches a file; the one before goes.
    async fn fetch(&mut self, model: v1::BlobRef, fetched: Fetched) -> Result<()> {
        let request = v1::DownloadRequest { digest: model.digest.clone(), offset: 0 };
        let mut pieces = self.stub.download_model(request).await?.into_inner();
        let part = self.model.with_extension("part");
        let mut file = match fetched {
            Fetched::File => Some(File::create(&part)?),
            Fetched::Memory => None,
        };
        let (mut digester, mut offset) = (Digester::new(), 0);
        while let Some(piece) = pieces.message().await? {
            ensure!(piece.offset == offset, "a piece at {} where {offset} comes next", piece.offset);
            // The page cache takes a piece: not worth a thread each.
            if let Some(file) = &mut file {
                file.write_all(&piece.data)?;
            }
            digester.update(&piece.data);
            offset += piece.data.len() as u64;
        }
        let found = digester.finish();
        ensure!(offset == model.bytes, "{offset} bytes, {} were offered", model.bytes);
        ensure!(found == model.parsed_digest()?, "digest {found} is not the offered one");
        if let Some(file) = file {
            let path = self.model.clone();
            tokio::task::spawn_blocking(move || keep(&file, &part, &path)).await??;
        }
        Ok(())
    }
}

/// Durable under its name.
fn keep(file: &File, part: &Path, path: &Path) -> std::io::Result<()> {
    file.sync_all()?;
    std::fs::rename(part, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
