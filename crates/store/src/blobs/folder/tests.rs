use super::*;
use crate::contract::blobs_contract;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

async fn open(folder: &TempDir) -> FolderBlobs {
    FolderBlobs::open(folder.path().join("blobs"), Durability::Disk).await.unwrap()
}

/// The files in `tmp/`.
fn unfinished(folder: &TempDir) -> usize {
    fs::read_dir(folder.path().join("blobs/tmp")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keeps_the_contract() {
    let folder = TempDir::new().unwrap();
    let next = AtomicU64::new(0);
    for durability in [Durability::Disk, Durability::Process] {
        blobs_contract(async || {
            let root = folder.path().join(format!("a/b/{}", next.fetch_add(1, Ordering::Relaxed)));
            Arc::new(FolderBlobs::open(root, durability).await.unwrap()) as Arc<dyn Blobs>
        })
        .await;
    }
}

#[tokio::test]
async fn a_blob_is_a_file_of_this_user() {
    let folder = TempDir::new().unwrap();
    open(&folder).await.put(Bytes::from_static(b"abc")).await.unwrap();
    // FIPS 180-4, example "abc".
    let path = "blobs/ba/7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let path = folder.path().join(path);
    assert_eq!(fs::read(&path).unwrap(), b"abc");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&folder.path().join("blobs")), 0o700);
    }
    assert_eq!(open(&folder).await.get(&Digest::of(b"abc"), 3).await.unwrap(), b"abc");
}

#[tokio::test]
async fn what_is_given_up_leaves_no_file() {
    let folder = TempDir::new().unwrap();
    let blobs = open(&folder).await;
    let mut given_up = blobs.writer().await.unwrap();
    given_up.write(Bytes::from_static(b"half")).await.unwrap();
    assert_eq!(unfinished(&folder), 1);
    drop(given_up);
    assert_eq!(unfinished(&folder), 0);
    let mut wrong = blobs.writer().await.unwrap();
    wrong.write(Bytes::from_static(b"wrong")).await.unwrap();
    wrong.commit(Some(Digest::of(b"right"))).await.unwrap_err();
    blobs.put(Bytes::from_static(b"kept")).await.unwrap();
    assert_eq!(unfinished(&folder), 0);
}

#[tokio::test]
async fn opening_removes_what_the_dead_left_and_spares_the_living() {
    let folder = TempDir::new().unwrap();
    let blobs = open(&folder).await;
    fs::write(folder.path().join("blobs/tmp/4711-0"), "left by a crash").unwrap();
    let mut living = blobs.writer().await.unwrap();
    living.write(Bytes::from_static(b"living")).await.unwrap();
    assert_eq!(unfinished(&folder), 2);
    let other = open(&folder).await;
    assert_eq!(unfinished(&folder), 1);
    let (digest, _) = living.commit(None).await.unwrap();
    assert_eq!(other.get(&digest, 9).await.unwrap(), b"living");
}

#[tokio::test]
async fn a_damaged_blob_is_told_and_can_be_mended() {
    let folder = TempDir::new().unwrap();
    let blobs = open(&folder).await;
    let content = vec![7; 3 << 20];
    let (digest, _) = blobs.put(content.clone().into()).await.unwrap();
    let path = blobs.path(&digest);
    let mut flipped = content.clone();
    flipped[1_000_000] ^= 1;
    for damage in [flipped.as_slice(), &content[..content.len() - 1], b""] {
        fs::write(&path, damage).unwrap();
        let got = blobs.get(&digest, u64::MAX).await;
        let told = matches!(got, Err(BlobError::Damaged { digest: d, found }) if d == digest && found == Digest::of(damage));
        assert!(told, "damage of {} bytes", damage.len());
        // A reader that streams meets it at the end, and can say what it was.
        let mut reader = blobs.open(&digest, 0).await.unwrap();
        let error = reader.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert!(matches!(BlobError::from(error), BlobError::Damaged { .. }));
        blobs.put(content.clone().into()).await.unwrap();
        assert!(blobs.get(&digest, u64::MAX).await.unwrap() == content);
    }
}

#[tokio::test]
async fn a_write_given_up_half_way_spoils_the_blob() {
    let folder = TempDir::new().unwrap();
    let blobs = open(&folder).await;
    let mut writer = blobs.writer().await.unwrap();
    // On its way when the next comes.
    writer.write(vec![1; 64 << 20].into()).await.unwrap();
    // Polled once and dropped: nobody was told whether it was taken.
    let polled = tokio::select! {
        biased;
        done = writer.write(vec![2; 2 << 20].into()) => Some(done),
        () = std::future::ready(()) => None,
    };
    assert!(polled.is_none(), "64 MiB were written at once: the test tests nothing");
    assert!(matches!(writer.write(Bytes::from_static(b"more")).await, Err(BlobError::Spoilt)));
    assert!(matches!(writer.commit(None).await, Err(BlobError::Spoilt)));
    assert_eq!(unfinished(&folder), 0);
}

#[tokio::test]
async fn a_commit_given_up_keeps_a_whole_blob_or_none() {
    let folder = TempDir::new().unwrap();
    let blobs = open(&folder).await;
    for n in 0..40_u64 {
        let content = vec![n as u8; 300_000];
        let digest = Digest::of(&content);
        let mut writer = blobs.writer().await.unwrap();
        writer.write(content.clone().into()).await.unwrap();
        let limit = std::time::Duration::from_micros(n * 50);
        let told = tokio::time::timeout(limit, writer.commit(None)).await;
        match blobs.get(&digest, u64::MAX).await {
            Ok(kept) => assert!(kept == content),
            Err(BlobError::NotFound { .. }) => assert!(told.is_err(), "told that it is kept, and it is not"),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_place_that_is_no_folder_is_refused() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = FolderBlobs::open(&file, Durability::Disk).await.unwrap_err();
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
}

/// However many write: together they hold what the room has, and one that stands still holds nothing of it.
#[tokio::test]
async fn writers_share_their_room() {
    let folder = TempDir::new().unwrap();
    let blobs = open(&folder).await;
    let piece = Bytes::from(vec![7; 1 << 20]);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..(2 * ROOM_KIB) >> 10 {
        let (blobs, piece) = (blobs.clone(), piece.clone());
        writers.spawn(async move {
            let mut writer = blobs.writer().await.unwrap();
            for _ in 0..3 {
                writer.write(piece.clone()).await.unwrap();
            }
            writer
        });
    }
    // Nobody settles: what was accepted goes to its file by itself.
    let writers = writers.join_all().await;
    let all = blobs.room.acquire_many(ROOM_KIB as u32).await.unwrap();
    drop(all);
    for writer in writers {
        let (digest, bytes) = writer.commit(None).await.unwrap();
        assert_eq!((digest, bytes), (Digest::of(&piece.repeat(3)), 3 << 20));
    }
}

#[tokio::test]
async fn a_piece_larger_than_the_room_is_written_alone() {
    let folder = TempDir::new().unwrap();
    let blobs = open(&folder).await;
    let large = vec![3; (ROOM_KIB << 10) + 1];
    let (digest, _) = blobs.put(large.clone().into()).await.unwrap();
    assert_eq!(digest, Digest::of(&large));
}
