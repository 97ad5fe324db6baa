//! An operator in a test.

use crate::PATIENCE;
use std::path::Path;
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use undertone::join_token::JoinToken;
use undertone::v1::operator_client::OperatorClient;
use undertone::{ApiError, role_message, v1};
use undertone_core::id::ClientRole;
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::{Job, JobSpec};

/// A connected operator.
pub struct Operator {
    /// The generated client, for calls that have no shorthand here.
    pub client: OperatorClient<Channel>,
}

/// What happened in a job, in order.
#[derive(Debug, Clone)]
pub struct Events(pub Vec<JobEvent>);

impl Events {
    /// How the job ended.
    pub fn outcome(&self) -> &Outcome {
        match self.0.last() {
            Some(JobEvent::Ended { outcome }) => outcome,
            other => panic!("the job has not ended: {other:?}"),
        }
    }

    /// The number of released rounds.
    pub fn released(&self) -> usize {
        self.0.iter().filter(|e| matches!(e, JobEvent::Released { .. })).count()
    }

    /// All events as one text, to search for a sentence.
    pub fn text(&self) -> String {
        self.0.iter().map(|e| serde_json::to_string(e).expect("plain data") + "\n").collect()
    }
}

impl Operator {
    /// Connects with an operator's profile folder.
    pub async fn connect(url: &str, profile: &Path) -> Self {
        Self::try_connect(url, profile).await.expect("the coordinator answers")
    }

    /// The same, where the coordinator may be away.
    ///
    /// # Errors
    /// That it is.
    pub async fn try_connect(url: &str, profile: &Path) -> Result<Self, tonic::transport::Error> {
        let read = |name: &str| std::fs::read(profile.join(name)).expect("a file of the profile");
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")))
            .identity(Identity::from_pem(read("operator.crt"), read("operator.key")));
        let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL").tls_config(tls).expect("TLS");
        Ok(Self { client: OperatorClient::new(endpoint.connect().await?) })
    }

    /// Submits a job file's text.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn submit(&mut self, toml: &str) -> Result<String, ApiError> {
        let spec = JobSpec::from_toml(toml, "job.toml").expect("a job that parses");
        let request = v1::SubmitJobRequest { job_document: spec.to_document().into() };
        Ok(self.client.submit_job(request).await?.into_inner().job)
    }

    /// Watches a job to its end.
    pub async fn watch_to_end(&mut self, job: &str) -> Events {
        self.watch_until(job, |_| false).await
    }

    /// Watches a job from its beginning until an event fits, or its end.
    pub async fn watch_until(&mut self, job: &str, stop: impl Fn(&JobEvent) -> bool) -> Events {
        let request = v1::WatchJobRequest { job: job.into(), after: 0 };
        let mut stream = self.client.watch_job(request).await.expect("the job is there").into_inner();
        let mut events = vec![];
        loop {
            let next = tokio::time::timeout(PATIENCE, stream.next()).await;
            let next = next.unwrap_or_else(|_| panic!("nothing more happens after {events:#?}"));
            match next {
                Some(event) => {
                    let event = event.expect("the watch goes on");
                    events.push(serde_json::from_str(&event.document).expect("an event"));
                }
                None => return Events(events),
            }
            if events.last().is_some_and(&stop) {
                return Events(events);
            }
        }
    }

    /// The events of a job after some, until its end or until who tells them goes away.
    pub async fn watch_on(&mut self, job: &str, events: &mut Vec<JobEvent>) -> Result<(), ApiError> {
        let request = v1::WatchJobRequest { job: job.into(), after: events.len() as u64 };
        let mut stream = self.client.watch_job(request).await?.into_inner();
        while let Some(event) = stream.next().await {
            events.push(serde_json::from_str(&event?.document).expect("an event"));
        }
        Ok(())
    }

    /// The detail of a job.
    pub async fn detail(&mut self, job: &str) -> v1::JobDetail {
        self.client.get_job(v1::GetJobRequest { job: job.into() }).await.expect("the job").into_inner()
    }

    /// The privacy statement of a job.
    pub async fn privacy(&mut self, job: &str) -> serde_json::Value {
        serde_json::from_str(&self.detail(job).await.privacy).expect("JSON")
    }

    /// The values of the newest model of a job, over its layout.
    pub async fn model(&mut self, job: &str) -> Vec<f32> {
        let document = self.detail(job).await.job_document;
        let spec = Job::from_document(&document).expect("the job");
        spec.layout().from_safetensors(&self.release(job, 0).await).expect("the model")
    }

    /// The model file of a round; 0: of the newest.
    pub async fn release(&mut self, job: &str, round: u32) -> Vec<u8> {
        let request = v1::DownloadReleaseRequest { job: job.into(), round };
        let mut stream = self.client.download_release(request).await.expect("a release").into_inner();
        let mut file = vec![];
        while let Some(message) = stream.next().await {
            if let Some(v1::release_message::Kind::Chunk(chunk)) = message.expect("the download").kind {
                file.extend_from_slice(&chunk.data);
            }
        }
        file
    }

    /// A join token.
    pub async fn token(&mut self, role: ClientRole, uses: u32, lifetime: Duration) -> JoinToken {
        let request = v1::CreateTokenRequest {
            role: role_message(role).into(),
            name: String::new(),
            uses,
            lifetime_s: lifetime.as_secs(),
        };
        let answer = self.client.create_token(request).await.expect("a token").into_inner();
        JoinToken::decode(&answer.token).expect("a token that parses")
    }
}
