//! What must survive: the state of jobs in a [`Store`], models and updates in [`Blobs`].
//!
//! Two traits, several implementations, one contract. Mutable state is small, lives in SQL and changes by
//! compare-and-swap; blobs are large, named by their digest and never change. A store knows nothing of rounds,
//! contracts or the wire: documents are text to it, so that the machines above may change without a migration.
//!
//! Read in this order: [`records`] says what is kept, [`Store`] how it changes, [`Blobs`] how bytes are kept;
//! [`SqlStore`] is an SQLite file on one machine, PostgreSQL beyond it; [`FolderBlobs`] and [`BucketBlobs`] are the same of blobs; [`MemoryStore`] and
//! [`MemoryBlobs`] serve tests.

mod blobs;
#[cfg(any(test, feature = "contract-suite"))]
pub mod contract;
mod durability;
mod error;
pub mod fleet;
mod inspection;
mod memory;
mod postgres;
pub mod records;
mod rules;
mod sql;
mod sqlite;
mod store;

pub use blobs::{
    BlobError, BlobWriter, Blobs, BucketBlobs, BucketConfig, BucketKey, BucketProbe, FolderBlobs, LocalBlob,
    MemoryBlobs,
};
pub use durability::Durability;
pub use error::{CommitError, EnrolError, StoreError};
pub use inspection::Inspection;
pub use memory::MemoryStore;
pub use postgres::Listener;
pub use records::*;
pub use sql::SqlStore;
pub use store::Store;
