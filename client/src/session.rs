//! The session with the coordinator: opened from here, kept up, opened again when it breaks.

use crate::backoff::Backoff;
use crate::connect::{ConnectError, certificate_refused, connect, participation};
use crate::identity::Identity;
use crate::probe;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use undertone::v1::{ClientMessage, Hello, ServerMessage, Welcome, client_message, server_message};
use undertone::{ApiError, Fault, version};

/// What the session tells the driver.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// The coordinator has welcomed the client; messages to it go here.
    Up(Welcome, mpsc::Sender<ClientMessage>),
    /// It said something.
    Said(Box<server_message::Kind>),
    /// The session broke; another is on its way.
    Lost,
}

/// Why there will be no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Address or certificates.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator does not take this client: unknown, revoked, or of a version that it does not speak.
    #[error("the coordinator refused this client: {0}")]
    Refused(String),
}

const WELCOME_WITHIN: Duration = Duration::from_secs(60);
const MESSAGES: usize = 256;
/// A session that lasted this long was a good one: the next wait is short again.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// Keeps a session up until the driver goes away or the coordinator refuses the client for good.
pub(crate) async fn keep_up(
    endpoint: Endpoint,
    identity: &Identity,
    line: watch::Sender<Option<Channel>>,
    events: mpsc::Sender<SessionEvent>,
) -> SessionError {
    let server = endpoint.uri().to_string();
    let mut backoff = Backoff::new();
    let mut told = None;
    loop {
        let begun = Instant::now();
        let end = one(&endpoint, &server, &line, &events).await;
        line.send_replace(None);
        match end {
            End::DriverGone => return SessionError::Refused("the client is shutting down".into()),
            End::Refused(e) => return e,
            End::Broken { reason, was_up } => {
                if was_up && events.send(SessionEvent::Lost).await.is_err() {
                    return SessionError::Refused("the client is shutting down".into());
                }
                if was_up && begun.elapsed() > GOOD_SESSION {
                    backoff.reset();
                }
                // A first "transport error" may hide that the certificate was refused.
                if !was_up
                    && told.as_ref() != Some(&reason)
                    && let Some(e) = probe::certificate_refused(endpoint.uri(), identity).await
                {
                    return e.into();
                }
                let wait = backoff.next();
                // The same trouble again and again is told once.
                if was_up || told.as_ref() != Some(&reason) {
                    tracing::warn!(%server, %reason, "no session with the coordinator; trying again until there is one");
                    told = Some(reason);
                } else {
                    tracing::debug!(%server, %reason, wait_ms = wait.as_millis() as u64, "still no session");
                }
                sleep(wait).await;
            }
        }
    }
}

/// How a session ended.
enum End {
    Broken { reason: String, was_up: bool },
    Refused(SessionError),
    DriverGone,
}

async fn one(
    endpoint: &Endpoint,
    server: &str,
    line: &watch::Sender<Option<Channel>>,
    events: &mpsc::Sender<SessionEvent>,
) -> End {
    let broken = |reason: String| End::Broken { reason, was_up: false };
    let channel = match connect(endpoint).await {
        Ok(channel) => channel,
        Err(e) if e.is_transient() => return broken(e.to_string()),
        Err(e) => return End::Refused(e.into()),
    };
    let (messages, outgoing) = mpsc::channel(MESSAGES);
    let hello = Hello {
        protocol_min: version::PROTOCOL_MIN,
        protocol_max: version::PROTOCOL_MAX,
        software: version::SOFTWARE.into(),
    };
    messages
        .try_send(ClientMessage { kind: Some(client_message::Kind::Hello(hello)) })
        .expect("a new channel has room");
    let mut stub = participation(channel.clone());
    let opened = timeout(WELCOME_WITHIN, async {
        let mut incoming = stub.session(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = incoming.message().await?;
        Ok::<_, Status>((incoming, first))
    });
    let (incoming, welcome) = match opened.await {
        Err(_) => return broken(format!("no welcome within {WELCOME_WITHIN:?}")),
        Ok(Err(status)) => return judge(server, status, false),
        Ok(Ok((incoming, Some(ServerMessage { kind: Some(server_message::Kind::Welcome(welcome)) })))) => {
            (incoming, welcome)
        }
        Ok(Ok((_, Some(ServerMessage { kind: Some(server_message::Kind::Goodbye(g)) })))) => {
            return goodbye(g.reason, g.retry, false);
        }
        Ok(Ok((_, first))) => return broken(format!("not a welcome: {first:?}")),
    };
    if !(version::PROTOCOL_MIN..=version::PROTOCOL_MAX).contains(&welcome.protocol) {
        return End::Refused(SessionError::Refused(format!(
            "it ({}) chose wire protocol {}, this client ({}) speaks {} to {}: upgrade undertone-client",
            welcome.software,
            welcome.protocol,
            version::SOFTWARE,
            version::PROTOCOL_MIN,
            version::PROTOCOL_MAX
        )));
    }
    line.send_replace(Some(channel));
    if events.send(SessionEvent::Up(welcome, messages)).await.is_err() {
        return End::DriverGone;
    }
    listen(server, incoming, events).await
}

async fn listen(
    server: &str,
    mut incoming: Streaming<ServerMessage>,
    events: &mpsc::Sender<SessionEvent>,
) -> End {
    loop {
        match incoming.message().await {
            Ok(Some(ServerMessage { kind: Some(server_message::Kind::Goodbye(g)) })) => {
                return goodbye(g.reason, g.retry, true);
            }
            Ok(Some(ServerMessage { kind: Some(kind) })) => {
                if events.send(SessionEvent::Said(Box::new(kind))).await.is_err() {
                    return End::DriverGone;
                }
            }
            // A kind that this version does not know: a newer coordinator may say more than we understand.
            Ok(Some(ServerMessage { kind: None })) => {
                tracing::debug!("the coordinator said something that this version does not know");
            }
            Ok(None) => {
                let reason = "the coordinator ended the session without a word".into();
                return End::Broken { reason, was_up: true };
            }
            Err(status) => return judge(server, status, true),
        }
    }
}

fn goodbye(reason: String, retry: bool, was_up: bool) -> End {
    if retry { End::Broken { reason, was_up } } else { End::Refused(SessionError::Refused(reason)) }
}

/// Whether a failed session is worth another try.
fn judge(server: &str, status: Status, was_up: bool) -> End {
    if let Some(e) = certificate_refused(server, &status) {
        return End::Refused(e.into());
    }
    let e = ApiError::from(status);
    match e.fault {
        Fault::Unauthenticated | Fault::NotAllowed | Fault::NotNow => {
            End::Refused(SessionError::Refused(e.message))
        }
        // A bad request too: a hello that was late on a slow line is one.
        Fault::BadRequest
        | Fault::NotFound
        | Fault::AlreadyExists
        | Fault::TooMuch
        | Fault::Unavailable
        | Fault::Internal => End::Broken { reason: e.message, was_up },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_ends_are_for_good() {
        let refused = |status| matches!(judge("h", status, true), End::Refused(_));
        assert!(refused(Status::unauthenticated("unknown client")));
        assert!(refused(Status::permission_denied("revoked")));
        assert!(refused(Status::failed_precondition("install undertone-client 9")));
        assert!(!refused(Status::unavailable("shutting down")));
        assert!(!refused(Status::unknown("h2 protocol error")));
        assert!(!refused(Status::internal("disk full")));
        assert!(!refused(Status::invalid_argument("no hello in time")));
        assert!(matches!(goodbye("x".into(), true, true), End::Broken { was_up: true, .. }));
        assert!(matches!(goodbye("x".into(), false, true), End::Refused(_)));
    }
}
