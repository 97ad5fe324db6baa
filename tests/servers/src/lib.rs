//! Servers of others that tests start for themselves. Nothing of ours is in here, so that every crate's tests may use it.

mod postgres;
mod s3;

pub use postgres::PostgresServer;
pub use s3::{S3Bucket, S3Server};
