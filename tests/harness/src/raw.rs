//! A participant that the test speaks for, message by message.

use crate::PATIENCE;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};
use undertone::limits::MAX_CHUNK_BYTES;
use undertone::v1::participation_client::ParticipationClient;
use undertone::v1::{self, client_message, server_message, upload_message, upload_reply};
use undertone_client::ClientConfig;
use undertone_core::digest::Digest;

/// An enrolled participant on the bare wire.
pub struct RawClient {
    /// The generated client.
    pub client: ParticipationClient<Channel>,
    outbox: Option<mpsc::Sender<v1::ClientMessage>>,
    inbox: Option<Streaming<v1::ServerMessage>>,
}

impl RawClient {
    /// Connects with an enrolled client's identity.
    pub async fn connect(config: &ClientConfig) -> Self {
        let folder = config.folder.identity();
        let read = |name: &str| std::fs::read(folder.join(name)).expect("a file of the identity");
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")))
            .identity(Identity::from_pem(read("client.crt"), read("client.key")));
        let endpoint =
            Endpoint::from_shared(config.server.clone()).expect("a URL").tls_config(tls).expect("TLS");
        let channel = endpoint.connect().await.expect("the coordinator answers");
        Self { client: ParticipationClient::new(channel), outbox: None, inbox: None }
    }

    /// Says hello with these protocols and returns the first message.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn hello(&mut self, min: u32, max: u32) -> Result<server_message::Kind, Status> {
        let (tx, rx) = mpsc::channel(16);
        let hello = v1::Hello { protocol_min: min, protocol_max: max, software: "raw".into() };
        let message = v1::ClientMessage { kind: Some(client_message::Kind::Hello(hello)) };
        tx.send(message).await.expect("a new queue");
        let inbox = self.client.session(ReceiverStream::new(rx)).await?.into_inner();
        (self.outbox, self.inbox) = (Some(tx), Some(inbox));
        self.next().await
    }

    /// The next message of the session.
    ///
    /// # Errors
    /// If the session broke.
    pub async fn next(&mut self) -> Result<server_message::Kind, Status> {
        let inbox = self.inbox.as_mut().expect("hello was said");
        let next = tokio::time::timeout(PATIENCE, inbox.next()).await.expect("a message");
        match next {
            Some(message) => Ok(message?.kind.expect("a kind")),
            None => Err(Status::cancelled("the session ended")),
        }
    }

    /// Waits for an offer.
    pub async fn offer(&mut self) -> v1::Offer {
        loop {
            match self.next().await.expect("the session goes on") {
                server_message::Kind::Offer(offer) => return offer,
                _ => continue,
            }
        }
    }

    /// Sends a message on the session.
    pub async fn say(&self, kind: client_message::Kind) {
        let outbox = self.outbox.as_ref().expect("hello was said");
        outbox.send(v1::ClientMessage { kind: Some(kind) }).await.expect("the session is open");
    }

    /// Uploads integers as an update, whole.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn upload(
        &mut self,
        attempt: &v1::AttemptRef,
        units: &[i32],
        weight: u32,
    ) -> Result<v1::UploadReceipt, Status> {
        self.upload_within(attempt, units, weight, None).await
    }

    /// The same with an answer about the clip norm.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn upload_within(
        &mut self,
        attempt: &v1::AttemptRef,
        units: &[i32],
        weight: u32,
        within_clip_norm: Option<bool>,
    ) -> Result<v1::UploadReceipt, Status> {
        self.upload_saying(attempt, units, weight, within_clip_norm, None).await
    }

    /// The same with a number beside it.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn upload_beside(
        &mut self,
        attempt: &v1::AttemptRef,
        units: &[i32],
        number: Option<u64>,
    ) -> Result<v1::UploadReceipt, Status> {
        self.upload_saying(attempt, units, 1, None, number).await
    }

    async fn upload_saying(
        &mut self,
        attempt: &v1::AttemptRef,
        units: &[i32],
        weight: u32,
        within_clip_norm: Option<bool>,
        number: Option<u64>,
    ) -> Result<v1::UploadReceipt, Status> {
        let bytes: Vec<u8> = units.iter().flat_map(|u| u.to_le_bytes()).collect();
        let header = v1::UploadHeader {
            attempt: Some(attempt.clone()),
            update: Some(v1::BlobRef::new(Digest::of(&bytes), bytes.len() as u64)),
            weight,
            within_clip_norm,
            number,
        };
        let pieces = (0..).step_by(MAX_CHUNK_BYTES).zip(bytes.chunks(MAX_CHUNK_BYTES));
        let chunks = pieces.map(|(offset, data)| v1::Chunk { offset, data: data.to_vec().into() });
        let chunks = chunks.map(upload_message::Kind::Chunk);
        self.upload_messages(std::iter::once(upload_message::Kind::Header(header)).chain(chunks).collect())
            .await
    }

    /// Begins to upload integers as an update, sends the first half and no more. The upload stands open until the
    /// returned task is aborted and this client dropped, as if its machine had lost power.
    pub async fn upload_half(&self, attempt: &v1::AttemptRef, units: &[i32]) -> tokio::task::JoinHandle<()> {
        let bytes: Vec<u8> = units.iter().flat_map(|u| u.to_le_bytes()).collect();
        let header = v1::UploadHeader {
            attempt: Some(attempt.clone()),
            update: Some(v1::BlobRef::new(Digest::of(&bytes), bytes.len() as u64)),
            weight: 1,
            within_clip_norm: None,
            number: None,
        };
        let chunk = v1::Chunk { offset: 0, data: bytes[..bytes.len() / 2].to_vec().into() };
        let (tx, rx) = mpsc::channel(4);
        for kind in [upload_message::Kind::Header(header), upload_message::Kind::Chunk(chunk)] {
            tx.send(v1::UploadMessage { kind: Some(kind) }).await.expect("a new queue");
        }
        let mut client = self.client.clone();
        tokio::spawn(async move {
            let _open = tx;
            let _ = receipt(&mut client, ReceiverStream::new(rx)).await;
        })
    }

    /// Asks how much of an upload the coordinator has.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn uploaded(&mut self, header: &v1::UploadHeader) -> Result<u64, Status> {
        Ok(self.client.resume_upload(header.clone()).await?.into_inner().offset)
    }

    /// Uploads as a client should: sends no more than the header until it may go, and from where it is told. Returns that with
    /// the receipt.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn upload_when_told(
        &mut self,
        header: v1::UploadHeader,
        bytes: &[u8],
    ) -> Result<(u64, v1::UploadReceipt), Status> {
        let (tx, rx) = mpsc::channel(2);
        let message = |kind| v1::UploadMessage { kind: Some(kind) };
        tx.send(message(upload_message::Kind::Header(header))).await.expect("a new queue");
        let mut tx = Some(tx);
        let mut replies = self.client.upload_update(ReceiverStream::new(rx)).await?.into_inner();
        let mut offset = 0;
        while let Some(reply) = replies.message().await? {
            match reply.kind {
                Some(upload_reply::Kind::Go(go)) => {
                    offset = go.offset;
                    let data = bytes[offset as usize..].to_vec().into();
                    let chunk = message(upload_message::Kind::Chunk(v1::Chunk { offset, data }));
                    let tx = tx.take().expect("told once");
                    tx.send(chunk).await.expect("the call is open");
                }
                Some(upload_reply::Kind::Receipt(receipt)) => return Ok((offset, receipt)),
                None => panic!("an empty reply"),
            }
        }
        Err(Status::data_loss("the upload ended without a receipt"))
    }

    /// Uploads whatever messages the test likes.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn upload_messages(
        &mut self,
        messages: Vec<upload_message::Kind>,
    ) -> Result<v1::UploadReceipt, Status> {
        let messages = messages.into_iter().map(|kind| v1::UploadMessage { kind: Some(kind) });
        receipt(&mut self.client, tokio_stream::iter(messages.collect::<Vec<_>>())).await
    }
}

/// Sends an upload's messages without waiting until it may go, and takes its receipt.
///
/// # Errors
/// What the coordinator says.
pub async fn receipt(
    client: &mut ParticipationClient<Channel>,
    messages: impl Stream<Item = v1::UploadMessage> + Send + 'static,
) -> Result<v1::UploadReceipt, Status> {
    let mut replies = client.upload_update(messages).await?.into_inner();
    while let Some(reply) = replies.message().await? {
        if let Some(upload_reply::Kind::Receipt(receipt)) = reply.kind {
            return Ok(receipt);
        }
    }
    Err(Status::data_loss("the upload ended without a receipt"))
}
