//! A model as the body of an answer: the bytes that were read are the bytes that TLS encrypts. (Through a stream of messages each
//! would be copied once for each client.)

use super::pieces::{Piece, Pieces};
use crate::turns::Turn;
use bytes::Bytes;
use http_body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use undertone::chunk_head;

/// A stream of chunks, as gRPC frames it.
pub(super) struct ModelBody {
    pieces: Pieces,
    /// The bytes whose head has gone before them.
    next: Option<Bytes>,
    ended: bool,
    /// Counts the bytes of the model that the network took.
    sent: Arc<AtomicU64>,
    /// One of its client's downloads, until the last piece is taken or the call ends.
    _turn: Turn,
}

impl ModelBody {
    pub(super) fn new(pieces: Pieces, sent: Arc<AtomicU64>, turn: Turn) -> Self {
        Self { pieces, next: None, ended: false, sent, _turn: turn }
    }
}

impl http_body::Body for ModelBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = self.next.take() {
            self.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let end = match ready!(self.pieces.poll_recv(cx)) {
            Some(Ok(Piece { offset, data })) => {
                let head = chunk_head(offset, data.len());
                self.next = Some(data);
                return Poll::Ready(Some(Ok(Frame::data(head))));
            }
            Some(Err(e)) => e.into(),
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        end.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// How a call hands a body to [`RawBodies`], among the extensions of its answer.
#[derive(Clone)]
pub(super) struct Raw(Arc<Mutex<Option<ModelBody>>>);

impl Raw {
    pub(super) fn new(body: ModelBody) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }
}

/// A service whose calls may give their answer's body as it is to travel.
#[derive(Clone)]
pub(crate) struct RawBodies<S>(pub(crate) S);

impl<S: NamedService> NamedService for RawBodies<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for RawBodies<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            if let Some(Raw(body)) = answer.extensions_mut().remove::<Raw>()
                && let Some(body) = body.lock().expect("no panic while locked").take()
            {
                *answer.body_mut() = Body::new(body);
            }
            Ok(answer)
        })
    }
}
