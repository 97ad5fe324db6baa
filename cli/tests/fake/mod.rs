//! A scripted coordinator with real mutual TLS: it can misbehave in ways that the real one cannot.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, iter};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use undertone::v1;
use undertone::v1::operator_server::{Operator, OperatorServer};
use undertone_core::digest::Digest;

/// What the coordinator tells, and how it misbehaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    /// The jobs it has.
    pub(crate) jobs: Vec<v1::JobSummary>,
    /// The events of each job, as JSON.
    pub(crate) events: Vec<&'static str>,
    /// How often a stream of events breaks after two of them.
    pub(crate) breaks: u32,
    /// The model that it sends.
    pub(crate) model: Vec<u8>,
    /// The digest that it promises, if not the right one.
    pub(crate) promised: Option<Digest>,
    /// The bytes that it promises, if not the right number.
    pub(crate) promised_bytes: Option<u64>,
    /// A refusal of every submission.
    pub(crate) refusal: Option<&'static str>,
    /// What it was asked for.
    pub(crate) asked: Vec<String>,
    /// The file that was handed in, or the beginning of it that it has already.
    pub(crate) file: Vec<u8>,
}

/// A deployment of its own: a CA, a running coordinator, an operator's profile.
pub(crate) struct Fake {
    folder: TempDir,
    script: Arc<Mutex<Script>>,
    runtime: tokio::runtime::Runtime,
}

impl Fake {
    /// Starts it on a free port.
    pub(crate) fn start(script: Script) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (ca, server) = write_profile(folder.path(), &address);
        let script = Arc::new(Mutex::new(script));
        let tls = ServerTlsConfig::new().identity(server).client_ca_root(Certificate::from_pem(ca));
        let service = OperatorServer::new(Service(script.clone()));
        let serve = async move {
            let server = Server::builder().tls_config(tls).unwrap();
            server.serve_with_incoming(service, TcpListenerStream::new(listener)).await.unwrap();
        };
        runtime.spawn(serve);
        Self { folder, script, runtime }
    }

    /// The operator's profile.
    pub(crate) fn profile(&self) -> PathBuf {
        self.folder.path().join("operator")
    }

    /// Where the tests may write.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What was asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }

    /// Runs `undertone` as this deployment's operator.
    pub(crate) fn undertone(&self, args: &[&str]) -> Output {
        undertone(&self.profile(), args)
    }

    /// The file that was handed in.
    pub(crate) fn file(&self) -> Vec<u8> {
        self.script.lock().unwrap().file.clone()
    }

    /// Stops answering.
    pub(crate) fn stop(self) -> TempDir {
        self.runtime.shutdown_background();
        self.folder
    }
}

/// Runs `undertone` with this profile.
pub(crate) fn undertone(profile: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_undertone"))
        .args(args)
        .env("UNDERTONE_OPERATOR", profile)
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap()
}

/// Makes a CA and the profile of an operator of it; gives the CA's certificate and the server's identity.
pub(crate) fn write_profile(folder: &Path, address: &str) -> (String, Identity) {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "a test's CA");
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let issue = |name: &str, purpose| {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
    };
    let (server, server_key) = issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let (operator, operator_key) = issue("ada", ExtendedKeyUsagePurpose::ClientAuth);
    let profile = folder.join("operator");
    std::fs::create_dir_all(&profile).unwrap();
    for (name, text) in [
        ("operator.toml", format!("server = \"{address}\"\n")),
        ("ca.crt", ca.pem()),
        ("operator.crt", operator),
        ("operator.key", operator_key),
    ] {
        std::fs::write(profile.join(name), text).unwrap();
    }
    (ca.pem(), Identity::from_pem(server, server_key))
}

struct Service(Arc<Mutex<Script>>);

impl Service {
    fn ask(&self, what: String) -> Script {
        let mut script = self.0.lock().unwrap();
        script.asked.push(what);
        script.clone()
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Operator for Service {
    type WatchJobStream = Messages<v1::JobEvent>;
    type DownloadReleaseStream = Messages<v1::ReleaseMessage>;
    type ReadLedgerStream = Messages<v1::LedgerLine>;

    async fn submit_job(&self, r: Request<v1::SubmitJobRequest>) -> Answer<v1::SubmitJobResponse> {
        let document = r.into_inner().job_document;
        if let Some(refusal) = self.ask("submit".into()).refusal {
            return Err(Status::invalid_argument(refusal));
        }
        let job_digest = Digest::of(&document).as_bytes().to_vec().into();
        Ok(Response::new(v1::SubmitJobResponse { job: "toy-abc".into(), job_digest }))
    }

    async fn resume_file(&self, r: Request<v1::BlobRef>) -> Answer<v1::FileProgress> {
        let here = self.ask("resume".into()).file.len() as u64;
        Ok(Response::new(v1::FileProgress { offset: here, complete: here == r.get_ref().bytes }))
    }

    async fn upload_file(&self, r: Request<Streaming<v1::FileMessage>>) -> Answer<v1::FileProgress> {
        self.ask("upload".into());
        let mut messages = r.into_inner();
        while let Some(message) = messages.message().await? {
            let mut script = self.0.lock().unwrap();
            match message.kind {
                Some(v1::file_message::Kind::Header(h)) => assert_eq!(h.offset as usize, script.file.len()),
                Some(v1::file_message::Kind::Chunk(chunk)) => script.file.extend_from_slice(&chunk.data),
                None => panic!("an empty message"),
            }
        }
        let offset = self.0.lock().unwrap().file.len() as u64;
        Ok(Response::new(v1::FileProgress { offset, complete: true }))
    }

    async fn list_jobs(&self, _: Request<v1::ListJobsRequest>) -> Answer<v1::ListJobsResponse> {
        Ok(Response::new(v1::ListJobsResponse { jobs: self.ask("list".into()).jobs }))
    }

    async fn get_job(&self, r: Request<v1::GetJobRequest>) -> Answer<v1::JobDetail> {
        let job = r.into_inner().job;
        let summary = self.ask(format!("get {job}")).jobs.into_iter().find(|j| j.job == job);
        Ok(Response::new(v1::JobDetail {
            summary,
            job_document: b"{\"name\":\"toy\"}".to_vec().into(),
            privacy: r#"{"promise":true,"unit":"record","epsilon":1.25}"#.into(),
            state: r#"{"phase":"collecting","missing":["va"]}"#.into(),
        }))
    }

    async fn watch_job(&self, r: Request<v1::WatchJobRequest>) -> Answer<Self::WatchJobStream> {
        let after = r.into_inner().after as usize;
        let script = self.ask(format!("watch after {after}"));
        let event = |(i, document): (usize, &&str)| {
            Ok(v1::JobEvent { sequence: i as u64 + 1, unix_ms: 1000, document: (*document).to_owned() })
        };
        let mut rest: Vec<_> = script.events.iter().enumerate().skip(after).map(event).collect();
        if script.breaks > 0 {
            self.0.lock().unwrap().breaks -= 1;
            rest.truncate(2);
            rest.push(Err(Status::unavailable("shutting down")));
        }
        Ok(Response::new(Box::pin(iter(rest))))
    }

    async fn cancel_job(&self, r: Request<v1::CancelJobRequest>) -> Answer<v1::CancelJobResponse> {
        let r = r.into_inner();
        self.ask(format!("cancel {}: {}", r.job, r.reason));
        Ok(Response::new(v1::CancelJobResponse {}))
    }

    async fn download_release(
        &self,
        r: Request<v1::DownloadReleaseRequest>,
    ) -> Answer<Self::DownloadReleaseStream> {
        let script = self.ask(format!("download round {}", r.into_inner().round));
        let digest = script.promised.unwrap_or_else(|| Digest::of(&script.model));
        let bytes = script.promised_bytes.unwrap_or(script.model.len() as u64);
        let header = v1::ReleaseHeader { round: 3, model: Some(v1::BlobRef::new(digest, bytes)) };
        let message = |kind| Ok(v1::ReleaseMessage { kind: Some(kind) });
        let mut messages = vec![message(v1::release_message::Kind::Header(header))];
        for (i, data) in script.model.chunks(1000).enumerate() {
            let chunk = v1::Chunk { offset: i as u64 * 1000, data: data.to_vec().into() };
            messages.push(message(v1::release_message::Kind::Chunk(chunk)));
        }
        Ok(Response::new(Box::pin(iter(messages))))
    }

    async fn list_clients(&self, _: Request<v1::ListClientsRequest>) -> Answer<v1::ListClientsResponse> {
        let client = |name: &str, role: v1::Role, connected| v1::ClientSummary {
            client: name.into(),
            role: role.into(),
            connected,
            enrolled_unix_s: 1_700_000_000,
            last_seen_unix_s: None,
            software: "0.1.0\u{1b}[31m".into(),
            uploads_refused: u64::from(connected),
            downloads_refused: 0,
            last_refusal: if connected { "chunk at 5, expected one at 4".into() } else { String::new() },
        };
        let clients =
            vec![client("va", v1::Role::Trainer, true), client("judge", v1::Role::Evaluator, false)];
        Ok(Response::new(v1::ListClientsResponse { clients }))
    }

    async fn create_token(&self, r: Request<v1::CreateTokenRequest>) -> Answer<v1::CreateTokenResponse> {
        let r = r.into_inner();
        self.ask(format!("token {} {:?} {} {}", r.role, r.name, r.uses, r.lifetime_s));
        Ok(Response::new(v1::CreateTokenResponse {
            id: "t1".into(),
            token: "undertone-join-1.secret".into(),
            expires_unix_s: 4_000_000_000,
        }))
    }

    async fn list_tokens(&self, _: Request<v1::ListTokensRequest>) -> Answer<v1::ListTokensResponse> {
        Ok(Response::new(v1::ListTokensResponse { tokens: Vec::new() }))
    }

    async fn get_ledger(&self, _: Request<v1::GetLedgerRequest>) -> Answer<v1::LedgerSummary> {
        Err(Status::unimplemented("the ledger is tested on a real coordinator"))
    }

    async fn read_ledger(&self, _: Request<v1::ReadLedgerRequest>) -> Answer<Self::ReadLedgerStream> {
        Err(Status::unimplemented("the ledger is tested on a real coordinator"))
    }

    async fn revoke_token(&self, r: Request<v1::RevokeTokenRequest>) -> Answer<v1::RevokeTokenResponse> {
        match r.into_inner().id.as_str() {
            "t1" => Ok(Response::new(v1::RevokeTokenResponse {})),
            other => Err(Status::not_found(format!("there is no token \"{other}\""))),
        }
    }
}
