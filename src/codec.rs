//! What calls hold in memory: little while they wait, and no second copy of what they send.

use crate::v1::Chunk;
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::marker::PhantomData;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What each direction of a call begins with. Every client has one call that is open for months and says nothing: with
/// tonic's 8 KiB in each direction it would cost more than the connection below it. A larger message makes itself room.
const BUFFER_BYTES: usize = 256;
/// Encoded bytes that are handed to the network together: tonic's own.
const YIELD_BYTES: usize = 32 << 10;

/// prost's codec with small buffers to begin with.
#[derive(Debug, Clone)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}

/// What stands before the bytes of a [`Chunk`](crate::v1::Chunk) that travels alone in a stream: with them it is the message that
/// prost would make, but they need not be copied for it.
///
/// # Panics
/// If the message would be longer than gRPC's 4 GiB; a chunk is a hundred thousandth of that.
pub fn chunk_head(offset: u64, data_bytes: usize) -> Bytes {
    // Without data it is what stands before the data: fields are encoded in their order.
    let mut fields = Chunk { offset, data: Bytes::new() }.encode_to_vec();
    if data_bytes > 0 {
        encode_key(2, WireType::LengthDelimited, &mut fields);
        encode_varint(data_bytes as u64, &mut fields);
    }
    let message_bytes = u32::try_from(fields.len() + data_bytes).expect("a chunk is a small message");
    let mut head = BytesMut::with_capacity(5 + fields.len());
    // Not compressed.
    head.put_u8(0);
    head.put_u32(message_bytes);
    head.put_slice(&fields);
    head.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_and_its_bytes_are_what_prost_encodes() {
        for offset in [0, 1, 127, 128, 1 << 18, 10 << 30] {
            for len in [0, 1, 127, 128, 1 << 18] {
                let data = Bytes::from(vec![7; len]);
                let message = Chunk { offset, data: data.clone() }.encode_to_vec();
                let mut wanted = vec![0];
                wanted.extend((message.len() as u32).to_be_bytes());
                wanted.extend(message);
                let found = [&chunk_head(offset, len)[..], &data[..]].concat();
                assert!(found == wanted, "{len} bytes at {offset}");
            }
        }
    }
}
