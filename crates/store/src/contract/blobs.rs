//! Blobs.

use crate::{BlobError, Blobs};
use bytes::Bytes;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use undertone_core::digest::Digest;

/// Bytes that repeat nowhere near.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

pub(super) async fn what_is_put_comes_back(blobs: &dyn Blobs) {
    for len in [0, 1, 4096, 3 << 20] {
        let content = bytes(len);
        let digest = Digest::of(&content);
        assert_eq!(blobs.put(content.clone().into()).await.unwrap(), (digest, len as u64));
        assert_eq!(blobs.len(&digest).await.unwrap(), len as u64);
        assert!(blobs.get(&digest, len as u64).await.unwrap() == content, "{len} bytes came back changed");
    }
    let digest = Digest::of(&bytes(4096));
    let refused = blobs.get(&digest, 4095).await;
    assert!(matches!(refused, Err(BlobError::TooLarge { bytes: 4096, max_bytes: 4095, .. })), "{refused:?}");

    // Piece by piece, in pieces of all sizes.
    let content = bytes(1 << 20);
    let mut writer = blobs.writer().await.unwrap();
    let (mut rest, mut piece) = (content.as_slice(), 0);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece.min(rest.len()));
        writer.write(Bytes::copy_from_slice(now)).await.unwrap();
        assert_eq!(writer.settle().await.unwrap(), Digest::of(&content[..content.len() - later.len()]));
        (rest, piece) = (later, piece * 3 + 1);
    }
    let digest = Digest::of(&content);
    assert_eq!(writer.commit(Some(digest)).await.unwrap(), (digest, 1 << 20));
    assert!(blobs.get(&digest, u64::MAX).await.unwrap() == content, "the pieces came back changed");
}

pub(super) async fn reads_begin_anywhere(blobs: &dyn Blobs) {
    let content = bytes(10_000);
    let (digest, _) = blobs.put(content.clone().into()).await.unwrap();
    for offset in [0, 1, 9_999, 10_000] {
        let mut read = Vec::new();
        blobs.open(&digest, offset).await.unwrap().read_to_end(&mut read).await.unwrap();
        assert!(read == content[offset as usize..], "from {offset}");
    }
    let refused = blobs.open(&digest, 10_001).await.err();
    assert!(matches!(refused, Some(BlobError::PastEnd { bytes: 10_000, offset: 10_001, .. })), "{refused:?}");
    let none = Digest::of(b"none");
    let refused = blobs.open(&none, 0).await.err();
    assert!(matches!(refused, Some(BlobError::NotFound { digest }) if digest == none), "{refused:?}");
}

pub(super) async fn a_local_blob_is_read_anywhere_and_by_many(blobs: &dyn Blobs) {
    let content = bytes((2 << 20) + 17);
    let (digest, _) = blobs.put(content.clone().into()).await.unwrap();
    let local = blobs.local(&digest).await.unwrap();
    // Whoever has it open may read on.
    blobs.delete(&digest).await.unwrap();
    assert_eq!(local.bytes().unwrap(), content.len() as u64);
    std::thread::scope(|threads| {
        for start in [0usize, 1, 70_000, 1 << 20, content.len() - 5] {
            let (local, content) = (&local, &content);
            threads.spawn(move || {
                let mut piece = vec![0; 5.min(content.len() - start)];
                local.read_at(&mut piece, start as u64).unwrap();
                assert_eq!(piece, content[start..start + piece.len()]);
            });
        }
    });
    let beyond = local.read_at(&mut [0; 6], content.len() as u64 - 5).unwrap_err();
    assert_eq!(beyond.kind(), std::io::ErrorKind::UnexpectedEof);
    let mut seen = vec![];
    assert_eq!(local.verified(|block| seen.extend_from_slice(block)).unwrap(), digest);
    assert!(seen == content);
    assert!(matches!(blobs.local(&digest).await, Err(BlobError::NotFound { .. })));
}

pub(super) async fn only_what_was_announced_is_kept(blobs: &dyn Blobs) {
    let (right, wrong) = (Digest::of(b"right"), Digest::of(b"wrong"));
    let mut writer = blobs.writer().await.unwrap();
    writer.write(Bytes::from_static(b"wrong")).await.unwrap();
    let refused = writer.commit(Some(right)).await;
    assert!(
        matches!(refused, Err(BlobError::Mismatch { expected, found }) if (expected, found) == (right, wrong)),
        "{refused:?}"
    );
    for digest in [right, wrong] {
        let found = blobs.len(&digest).await;
        assert!(matches!(found, Err(BlobError::NotFound { .. })), "{found:?}");
    }
}

pub(super) async fn unfinished_blobs_are_not_seen(blobs: &dyn Blobs) {
    let digest = Digest::of(b"half");
    let mut writer = blobs.writer().await.unwrap();
    writer.write(Bytes::from_static(b"half")).await.unwrap();
    assert!(matches!(blobs.len(&digest).await, Err(BlobError::NotFound { .. })));
    drop(writer);
    assert!(matches!(blobs.get(&digest, 9).await, Err(BlobError::NotFound { .. })));
    assert_eq!(blobs.put(Bytes::from_static(b"half")).await.unwrap(), (digest, 4));
}

pub(super) async fn deleting_is_for_good_and_for_once(blobs: &dyn Blobs) {
    let (digest, _) = blobs.put(Bytes::from_static(b"gone")).await.unwrap();
    let (kept, _) = blobs.put(Bytes::from_static(b"kept")).await.unwrap();
    for _ in 0..2 {
        blobs.delete(&digest).await.unwrap();
        let found = blobs.get(&digest, 9).await;
        assert!(matches!(found, Err(BlobError::NotFound { .. })), "{found:?}");
    }
    assert_eq!(blobs.get(&kept, 9).await.unwrap(), b"kept");
    blobs.put(Bytes::from_static(b"gone")).await.unwrap();
    assert_eq!(blobs.get(&digest, 9).await.unwrap(), b"gone");
}

pub(super) async fn a_list_names_what_is_there(blobs: &dyn Blobs) {
    assert_eq!(blobs.list().await.unwrap(), []);
    let mut kept = vec![];
    for content in [&b"one"[..], b"two", b"three"] {
        kept.push(blobs.put(Bytes::copy_from_slice(content)).await.unwrap().0);
    }
    let mut unfinished = blobs.writer().await.unwrap();
    unfinished.write(Bytes::from_static(b"four")).await.unwrap();
    blobs.delete(&kept.swap_remove(1)).await.unwrap();
    kept.sort();
    let mut listed = blobs.list().await.unwrap();
    listed.sort();
    assert_eq!(listed, kept);
}

pub(super) async fn equal_bytes_at_once_are_one_blob(blobs: Arc<dyn Blobs>) {
    let content = bytes(100_000);
    let digest = Digest::of(&content);
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let (blobs, content) = (blobs.clone(), content.clone());
            tokio::spawn(async move {
                let kept = blobs.put(content.clone().into()).await.unwrap();
                // Whoever was told that it is there finds it.
                assert!(blobs.get(&kept.0, u64::MAX).await.unwrap() == content);
                kept
            })
        })
        .collect();
    for writer in writers {
        assert_eq!(writer.await.unwrap(), (digest, 100_000));
    }
}

pub(super) async fn what_is_unfinished_can_be_gone_on_with(blobs: &dyn Blobs) {
    let content = bytes(3 << 20);
    let digest = Digest::of(&content);
    let cuts = [0, 1, 1, 70_000, 1 << 20, (2 << 20) + 3, content.len()];
    for piece in cuts.windows(2) {
        let mut seen = vec![];
        assert_eq!(blobs.written("an-upload-1").await.unwrap(), piece[0] as u64);
        let mut writer =
            blobs.resume("an-upload-1", &mut |block| seen.extend_from_slice(block)).await.unwrap();
        assert!(seen == content[..piece[0]], "{} bytes came back changed", piece[0]);
        let other = blobs.resume("an-upload-1", &mut |_| {}).await.err();
        assert!(matches!(other, Some(BlobError::InUse { .. })), "{other:?}");
        writer.write(Bytes::copy_from_slice(&content[piece[0]..piece[1]])).await.unwrap();
        if piece[1] == content.len() {
            assert_eq!(writer.commit(Some(digest)).await.unwrap(), (digest, content.len() as u64));
        } else {
            assert_eq!(writer.settle().await.unwrap(), Digest::of(&content[..piece[1]]));
        }
    }
    assert!(blobs.get(&digest, u64::MAX).await.unwrap() == content);
    assert_eq!(blobs.unfinished().await.unwrap(), []);
    assert_eq!(blobs.written("an-upload-1").await.unwrap(), 0);

    // What is unfinished is no blob, is listed apart, and can be given up.
    let mut writer = blobs.resume("other", &mut |_| {}).await.unwrap();
    writer.write(Bytes::from_static(b"half")).await.unwrap();
    writer.settle().await.unwrap();
    drop(writer);
    assert_eq!(blobs.list().await.unwrap(), [digest]);
    assert_eq!(
        blobs.unfinished().await.unwrap().iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
        ["other"]
    );
    blobs.abandon("other").await.unwrap();
    blobs.abandon("other").await.unwrap();
    assert_eq!(blobs.unfinished().await.unwrap(), []);
    // What turns out to be something else is not gone on with.
    let mut writer = blobs.resume("wrong", &mut |_| {}).await.unwrap();
    writer.write(Bytes::from_static(b"wrong")).await.unwrap();
    assert!(matches!(writer.commit(Some(digest)).await, Err(BlobError::Mismatch { .. })));
    assert_eq!(blobs.written("wrong").await.unwrap(), 0);
    for name in ["", "../up", "UPPER", &"x".repeat(129)] {
        assert!(blobs.resume(name, &mut |_| {}).await.is_err(), "{name}");
    }
}
