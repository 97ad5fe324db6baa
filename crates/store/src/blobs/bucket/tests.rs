//! What the contract cannot say: a store that is away, a folder that is full, machines that share a bucket.

use super::{BucketBlobs, BucketConfig, BucketKey, PART};
use crate::contract::blobs_contract;
use crate::{BlobError, Blobs};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;
use undertone_core::digest::Digest;
use undertone_test_servers::S3Server;

fn new_bucket(server: &S3Server, name: &str) -> BucketConfig {
    let made = server.bucket(name);
    let key = Some(BucketKey { id: made.key_id, secret: made.secret });
    BucketConfig { url: made.url, endpoint: Some(made.endpoint), region: Some(made.region), key }
}

/// The blobs of a machine: the bucket with a folder of its own.
async fn machine(config: &BucketConfig, near_bytes: u64) -> (BucketBlobs, TempDir) {
    let folder = TempDir::new().unwrap();
    (BucketBlobs::open(config, "us", true, &folder.path().join("near"), near_bytes).await.unwrap(), folder)
}

fn content(n: u8, len: usize) -> Bytes {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ n).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keeps_the_contract() {
    let server = S3Server::start().await;
    let folder = TempDir::new().unwrap();
    let next = AtomicU32::new(0);
    // With room for all, and with room for nothing.
    for near_bytes in [u64::MAX, 0] {
        blobs_contract(async || {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let config = new_bucket(&server, &format!("bucket-{n}"));
            let folder = folder.path().join(n.to_string());
            Arc::new(BucketBlobs::open(&config, "us", true, &folder, near_bytes).await.unwrap())
                as Arc<dyn Blobs>
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_one_machine_puts_another_gets() {
    let server = S3Server::start().await;
    let config = new_bucket(&server, "fleet");
    let (one, _folder) = machine(&config, u64::MAX).await;
    let (other, near) = machine(&config, u64::MAX).await;
    // In one request, and in parts of which the last is smaller, as large, and alone.
    for len in [0, 1, PART - 1, PART, PART + 1, 2 * PART, 4 * PART + 3] {
        let content = content(len as u8, len);
        let (digest, _) = one.put(content.clone()).await.unwrap();
        assert_eq!(other.len(&digest).await.unwrap(), len as u64);
        assert!(other.get(&digest, u64::MAX).await.unwrap() == content, "{len} bytes came back changed");
        let mut half = vec![0; len / 2];
        other.local(&digest).await.unwrap().read_at(&mut half, (len - len / 2) as u64).unwrap();
        assert!(half == content[len - len / 2..], "{len} bytes, from the middle");
    }
    let (mut here, mut there) = (one.list().await.unwrap(), other.list().await.unwrap());
    here.sort();
    there.sort();
    assert_eq!((here.len(), &here), (7, &there));
    // What a machine had is there again after it was replaced.
    drop((other, near));
    let (third, _near) = machine(&config, 0).await;
    for digest in here {
        third.get(&digest, u64::MAX).await.unwrap();
    }
}

#[tokio::test]
async fn two_deployments_may_share_a_bucket() {
    let server = S3Server::start().await;
    let config = new_bucket(&server, "shared");
    let at = |prefix: &str| BucketConfig { url: format!("{}/{prefix}", config.url), ..config.clone() };
    let (one, _a) = machine(&at("one"), u64::MAX).await;
    let (two, _b) = machine(&at("two/deep/"), u64::MAX).await;
    let (digest, _) = one.put(content(1, 100)).await.unwrap();
    assert_eq!(one.list().await.unwrap(), [digest]);
    assert_eq!(two.list().await.unwrap(), []);
    assert!(matches!(two.get(&digest, 100).await, Err(BlobError::NotFound { .. })));
}

/// The folder keeps what was used last, and no more than it has room for.
#[tokio::test]
async fn the_folder_keeps_what_was_used_last() {
    let server = S3Server::start().await;
    let config = new_bucket(&server, "near");
    let (blobs, folder) = machine(&config, 2_500).await;
    let mut digests = vec![];
    for n in 0..3 {
        digests.push(blobs.put(content(n, 1_000)).await.unwrap().0);
        blobs.get(&digests[0], 1_000).await.unwrap();
    }
    let kept = async |blobs: &BucketBlobs| {
        let mut kept = blobs.near.folder().list().await.unwrap();
        kept.sort();
        kept
    };
    let sorted = |mut digests: Vec<Digest>| {
        digests.sort();
        digests
    };
    assert_eq!(kept(&blobs).await, sorted(vec![digests[0], digests[2]]));
    // What is larger than all the room is there while it is used, alone.
    let (large, _) = blobs.put(content(9, 5_000)).await.unwrap();
    assert_eq!(kept(&blobs).await, [large]);
    // All that went is fetched again.
    for digest in &digests {
        assert_eq!(blobs.get(digest, 1_000).await.unwrap().len(), 1_000);
    }
    // The next process has room for less and keeps to it.
    drop(blobs);
    let blobs = BucketBlobs::open(&config, "us", true, &folder.path().join("near"), 1_500).await.unwrap();
    assert_eq!(kept(&blobs).await.len(), 1);
    assert_eq!(blobs.list().await.unwrap().len(), 4);
}

/// Many who want the same blob at once fetch it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_readers_fetch_once() {
    let server = S3Server::start().await;
    let config = new_bucket(&server, "once");
    let (one, _a) = machine(&config, u64::MAX).await;
    let (other, _b) = machine(&config, u64::MAX).await;
    let (digest, _) = one.put(content(1, 3 << 20)).await.unwrap();
    let before = server.gets();
    let readers: Vec<_> = (0..16)
        .map(|_| {
            let other = other.clone();
            tokio::spawn(async move { other.get(&digest, u64::MAX).await.unwrap().len() })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), 3 << 20);
    }
    assert_eq!(server.gets() - before, 1);
}

#[tokio::test]
async fn what_is_damaged_in_the_bucket_is_told() {
    let server = S3Server::start().await;
    let config = new_bucket(&server, "damaged");
    let (one, _a) = machine(&config, u64::MAX).await;
    let (digest, _) = one.put(content(1, 1_000)).await.unwrap();
    let hex = digest.to_string();
    let file = server.file("damaged", &format!("{}/{}", &hex[..2], &hex[2..]));
    std::fs::write(file, "something else").unwrap();
    let (other, _b) = machine(&config, u64::MAX).await;
    for _ in 0..2 {
        let told = other.get(&digest, 1_000).await.unwrap_err();
        assert!(matches!(&told, BlobError::Damaged { digest: of, .. } if *of == digest), "{told:?}");
    }
    // Nothing of it stays; who puts it again mends it.
    one.put(content(1, 1_000)).await.unwrap();
    assert!(other.get(&digest, 1_000).await.unwrap() == content(1, 1_000));
}

/// Nobody is told that a blob is kept while it is in the folder alone.
#[tokio::test]
async fn what_did_not_reach_the_bucket_is_not_kept() {
    let server = S3Server::start().await;
    let config = new_bucket(&server, "away");
    let (blobs, _folder) = machine(&config, u64::MAX).await;
    server.refuse_puts(true);
    for len in [1_000, PART + 1] {
        let told = blobs.put(content(1, len)).await.unwrap_err();
        assert!(matches!(&told, BlobError::Away { .. }), "{told:?}");
        assert!(told.may_pass());
        assert!(told.to_string().starts_with("s3://away cannot be used now ("), "{told}");
    }
    // An upload that came whole goes on from its end.
    let mut upload = blobs.resume("an-upload", &mut |_| {}).await.unwrap();
    upload.write(content(2, 1_000)).await.unwrap();
    upload.commit(None).await.unwrap_err();
    assert_eq!(blobs.written("an-upload").await.unwrap(), 1_000);
    server.refuse_puts(false);
    let upload = blobs.resume("an-upload", &mut |_| {}).await.unwrap();
    let (digest, bytes) = upload.commit(None).await.unwrap();
    assert_eq!((blobs.list().await.unwrap(), bytes), (vec![digest], 1_000));
    assert_eq!(blobs.written("an-upload").await.unwrap(), 0);
}

/// What the bucket has not is not there, whatever lies in the folder.
#[tokio::test]
async fn what_another_machine_deleted_is_not_there() {
    let server = S3Server::start().await;
    let config = new_bucket(&server, "gone");
    let (one, _a) = machine(&config, u64::MAX).await;
    let (other, _b) = machine(&config, u64::MAX).await;
    let (digest, _) = one.put(content(1, 1_000)).await.unwrap();
    other.get(&digest, 1_000).await.unwrap();
    one.delete(&digest).await.unwrap();
    let found = other.len(&digest).await;
    assert!(matches!(found, Err(BlobError::NotFound { .. })), "{found:?}");
    other.put(content(1, 1_000)).await.unwrap();
    assert!(one.get(&digest, 1_000).await.unwrap() == content(1, 1_000));
}

/// A coordinator deletes what it does not know: it must not be let at what others keep.
#[tokio::test]
async fn a_place_of_a_bucket_has_one_owner() {
    let server = S3Server::start().await;
    let config = new_bucket(&server, "owned");
    let folder = TempDir::new().unwrap();
    let open = async |owner: &str, config: &BucketConfig| {
        BucketBlobs::open(config, owner, true, &folder.path().join(owner), 0).await
    };
    let ours = open("us", &config).await.unwrap();
    ours.put(content(1, 100)).await.unwrap();
    open("us", &config).await.unwrap();
    let told = open("them", &config).await.unwrap_err();
    assert!(matches!(told, BlobError::Foreign { .. }), "{told:?}");
    assert!(told.to_string().contains("s3://owned holds the blobs of another deployment"), "{told}");
    let elsewhere = BucketConfig { url: format!("{}/theirs", config.url), ..config.clone() };
    open("them", &elsewhere).await.unwrap();
    // A deployment that was there before is told if its place is empty now: it is another one.
    let empty = BucketConfig { url: format!("{}/empty", config.url), ..config.clone() };
    let told = BucketBlobs::open(&empty, "us", false, &folder.path().join("us"), 0).await.unwrap_err();
    assert!(told.to_string().contains("though this deployment was here before"), "{told}");
    // Blobs without an owner's word are somebody's all the same.
    std::fs::remove_file(server.file("owned", "undertone-deployment")).unwrap();
    assert!(matches!(open("us", &config).await, Err(BlobError::Foreign { .. })));
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_is_told_at_the_start() {
    let server = S3Server::start().await;
    let folder = TempDir::new().unwrap();
    let good = new_bucket(&server, "good");
    let open = async |config: BucketConfig| {
        BucketBlobs::open(&config, "us", true, folder.path(), 0).await.map(drop).unwrap_err().to_string()
    };
    let told = open(BucketConfig { url: "s3://none".into(), ..good.clone() }).await;
    assert!(told.contains("s3://none cannot be used now") && told.contains("NoSuchBucket"), "{told}");
    for url in ["good/prefix", "s3://", "https://good"] {
        let told = open(BucketConfig { url: url.into(), ..good.clone() }).await;
        assert!(told.contains("not of the form s3://bucket/prefix"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_says_whose_it_is_and_leaves_nothing() {
    let server = S3Server::start().await;
    let config = new_bucket(&server, "probed");
    assert_eq!(BucketBlobs::probe(&config, "one").await.unwrap().owner, None);
    let (blobs, _folder) = machine(&config, u64::MAX).await;
    let (digest, _) = blobs.put(content(1, 100)).await.unwrap();
    assert_eq!(BucketBlobs::probe(&config, "two").await.unwrap().owner.as_deref(), Some("us"));
    assert_eq!(blobs.list().await.unwrap(), [digest]);
    server.refuse_puts(true);
    let refused = BucketBlobs::probe(&config, "three").await.unwrap_err().to_string();
    assert!(refused.contains("put: "), "{refused}");
    let nowhere = BucketConfig { url: "s3://nowhere".into(), ..config };
    assert!(BucketBlobs::probe(&nowhere, "four").await.is_err());
}
