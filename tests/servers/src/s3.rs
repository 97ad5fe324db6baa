//! An S3 server of a test's own, in its process.

use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const KEY: &str = "test";
const SECRET: &str = "a secret of the test";

/// How a bucket is reached.
#[derive(Debug, Clone)]
pub struct S3Bucket {
    /// `s3://NAME`.
    pub url: String,
    /// Where the server is.
    pub endpoint: String,
    /// The region that it says it is in.
    pub region: String,
    /// The name of the key.
    pub key_id: String,
    /// The key.
    pub secret: String,
}

/// A server whose buckets are folders. It ends with the value.
#[derive(Debug)]
pub struct S3Server {
    folder: TempDir,
    address: SocketAddr,
    watched: Arc<Watched>,
    serving: JoinHandle<()>,
}

/// What a test counts and forbids.
#[derive(Debug, Default)]
struct Watched {
    gets: AtomicU64,
    refuses_puts: AtomicBool,
}

impl S3Server {
    /// Starts a server without buckets.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start() -> Self {
        let folder = TempDir::new().expect("a folder for buckets");
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).expect("a server"));
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a port");
        let watched = Arc::<Watched>::default();
        let serving = tokio::spawn(serve(listener, service.build(), watched.clone()));
        Self { folder, address, watched, serving }
    }

    /// Makes an empty bucket; how to reach it.
    ///
    /// # Panics
    /// If there is one.
    pub fn bucket(&self, name: &str) -> S3Bucket {
        fs::create_dir(self.folder.path().join(name)).expect("a new bucket");
        S3Bucket {
            url: format!("s3://{name}"),
            endpoint: format!("http://{}", self.address),
            region: "us-east-1".into(),
            key_id: KEY.into(),
            secret: SECRET.into(),
        }
    }

    /// Where an object lies.
    pub fn file(&self, bucket: &str, key: &str) -> PathBuf {
        self.folder.path().join(bucket).join(key)
    }

    /// How often an object was asked for.
    pub fn gets(&self) -> u64 {
        self.watched.gets.load(Ordering::Relaxed)
    }

    /// From now on, whoever writes is told that it may not; or no longer.
    pub fn refuse_puts(&self, refuse: bool) {
        self.watched.refuses_puts.store(refuse, Ordering::Relaxed);
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, service: S3Service, watched: Arc<Watched>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let (service, watched) = (service.clone(), watched.clone());
        let answer = service_fn(move |request| answer(request, service.clone(), watched.clone()));
        tokio::spawn(Builder::new().serve_connection(TokioIo::new(socket), answer));
    }
}

async fn answer(
    request: Request<Incoming>,
    service: S3Service,
    watched: Arc<Watched>,
) -> Result<Response<Body>, HttpError> {
    let method = request.method();
    // What asks for an object has no question; a listing has.
    if method == Method::GET && request.uri().query().is_none() {
        watched.gets.fetch_add(1, Ordering::Relaxed);
    }
    if [Method::PUT, Method::POST].contains(method) && watched.refuses_puts.load(Ordering::Relaxed) {
        let mut refused = Response::new(Body::from("forbidden by the test".to_owned()));
        *refused.status_mut() = StatusCode::FORBIDDEN;
        return Ok(refused);
    }
    service.call(request.map(Body::from)).await
}
