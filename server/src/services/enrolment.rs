//! Enrolment: a join token and a signing request become a certificate.

use crate::clock::unix_s;
use crate::coordinator::Coordinator;
use crate::identity::{IdentityError, Subject, new_serial};
use std::sync::Arc;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};
use undertone::limits::{MAX_CSR_BYTES, TOKEN_SECRET_BYTES};
use undertone::v1::{self, enrolment_server::Enrolment};
use undertone::{ApiError, Fault, role_message};
use undertone_core::digest::Digest;
use undertone_core::id::{ClientId, ClientRole};
use undertone_core::limits::clip_text;
use undertone_store::{EnrolError, EnrolRequest};

pub(crate) struct EnrolmentService(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        Ok(Response::new(self.enrol_inner(request.into_inner()).await?))
    }
}

impl EnrolmentService {
    #[tracing::instrument(name = "enrol", skip_all)]
    async fn enrol_inner(&self, m: v1::EnrolRequest) -> Result<v1::EnrolResponse, ApiError> {
        let shared = &self.0.shared;
        let bad = |text: String| ApiError::new(Fault::BadRequest, text);
        if m.token_secret.len() != TOKEN_SECRET_BYTES {
            return Err(bad(format!(
                "a token secret has {TOKEN_SECRET_BYTES} bytes, not {}",
                m.token_secret.len()
            )));
        }
        if m.certificate_request.len() > MAX_CSR_BYTES {
            return Err(ApiError::new(Fault::TooMuch, "the certificate signing request is too long"));
        }
        let wanted = match m.name.as_str() {
            "" => None,
            name => Some(ClientId::new(name).map_err(|e| bad(e.to_string()))?),
        };
        let key_digest = shared
            .authority
            .key_digest(&m.certificate_request)
            .map_err(|e| bad(format!("the certificate signing request is invalid: {e}")))?;
        let internal = |e: IdentityError| {
            tracing::error!(error = %e, "cannot make a certificate");
            ApiError::new(
                Fault::Internal,
                "the coordinator cannot make certificates; its operator finds the cause in its log",
            )
        };
        let request = EnrolRequest {
            name: wanted,
            key_digest,
            certificate_serial: new_serial().map_err(internal)?,
            software: clip_text(&m.software).to_owned(),
        };
        let client =
            shared.store.enrol(Digest::of(&m.token_secret), unix_s(), request).await.map_err(refuse)?;
        if client.role == ClientRole::Evaluator {
            shared.add_evaluator(client.id.clone());
            if let Some(fleet) = &shared.fleet {
                fleet.enrolled().await;
            }
        }
        let signed = shared
            .authority
            .client_certificate(
                &m.certificate_request,
                &Subject {
                    name: client.id.as_str(),
                    role: client.role.as_str(),
                    serial: &client.certificate_serial,
                },
                shared.config.limits.certificate_lifetime.0,
                OffsetDateTime::now_utc(),
            )
            .map_err(internal)?;
        tracing::info!(client = %client.id, role = %client.role, serial = %client.certificate_serial, "enrolled");
        Ok(v1::EnrolResponse {
            client: client.id.to_string(),
            role: role_message(client.role).into(),
            certificate: signed.certificate_pem,
            expires_unix_s: signed.expires_unix_s,
        })
    }
}

fn refuse(e: EnrolError) -> ApiError {
    let again = "ask the operator for a new one (`undertone token create`)";
    match e {
        EnrolError::UnknownToken => ApiError::new(
            Fault::Unauthenticated,
            format!("this coordinator does not know the join token: {again}"),
        ),
        EnrolError::Expired { .. } => {
            ApiError::new(Fault::Unauthenticated, format!("the join token has expired: {again}"))
        }
        EnrolError::UsedUp { .. } => {
            ApiError::new(Fault::Unauthenticated, format!("the join token was used already: {again}"))
        }
        EnrolError::NameTaken(name) => ApiError::new(
            Fault::AlreadyExists,
            format!("a participant named {name} is enrolled already: choose another name"),
        ),
        EnrolError::Store(e) => {
            tracing::error!(error = %e, "cannot enrol");
            ApiError::new(
                Fault::Internal,
                "the coordinator cannot save the enrolment; its operator finds the cause in its log",
            )
        }
        other => ApiError::new(Fault::BadRequest, other.to_string()),
    }
}
