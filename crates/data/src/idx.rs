//! IDX files, the format of MNIST and its kin: bytes in an array of some dimensions.
//!
//! ```text
//! 0 0 8 n          no meaning, no meaning, "unsigned bytes", the number of dimensions
//! u32 ... (n)      the dimensions, big-endian; the first counts the items
//! u8 ...           the items, one behind the other
//! ```
//!
//! A file may be compressed with gzip; that is seen by its first bytes, not by its name. What the header declares is held
//! against limits before anything is read, and against what is there: any bytes at all give an array or an error.

use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::Path;

/// Most bytes in the items of one file.
pub const MAX_IDX_BYTES: u64 = 1 << 30;
/// Most dimensions of a file.
const MAX_DIMENSIONS: u8 = 4;
/// The first bytes of a gzip file (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// The type of the items: unsigned bytes.
const BYTES: u8 = 8;

/// Why bytes could not be read as IDX.
#[derive(Debug, thiserror::Error)]
pub enum IdxError {
    /// The disk, or the operating system, refused, or the compression is damaged.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Another format.
    #[error("it is no IDX file: it begins with {0:?}, where 0 0 8 and the number of dimensions should be")]
    Magic(Vec<u8>),
    /// IDX of other numbers than bytes.
    #[error("its items are of IDX type {0:#04x}, not unsigned bytes (0x08): convert it")]
    Type(u8),
    /// Too many dimensions, or none.
    #[error("it has {0} dimensions, where 1 to {MAX_DIMENSIONS} make sense")]
    Dimensions(u8),
    /// Larger than what is read.
    #[error("its header declares more than {MAX_IDX_BYTES} bytes: split the file")]
    TooLarge,
    /// Fewer bytes than declared.
    #[error("it is cut off: the header declares {declared} bytes of items, {found} are there")]
    CutOff {
        /// What the header says.
        declared: u64,
        /// What there is.
        found: u64,
    },
    /// More bytes than declared.
    #[error("more bytes follow after the {0} that the header declares: is the file damaged?")]
    Trailing(u64),
}

/// An open file whose header makes sense; the items are still to be read.
pub(crate) struct IdxSource<'a> {
    dimensions: Vec<u64>,
    input: Box<dyn Read + 'a>,
}

impl<'a> IdxSource<'a> {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, IdxError> {
        IdxSource::new(File::open(path)?)
    }

    /// Reads a header.
    pub(crate) fn new(mut input: impl Read + 'a) -> Result<Self, IdxError> {
        let mut head = Vec::new();
        input.by_ref().take(2).read_to_end(&mut head)?;
        let zipped = head == GZIP;
        let input = BufReader::with_capacity(64 << 10, Cursor::new(head).chain(input));
        let mut input: Box<dyn Read + 'a> =
            if zipped { Box::new(MultiGzDecoder::new(input)) } else { Box::new(input) };
        let mut magic = Vec::new();
        input.by_ref().take(4).read_to_end(&mut magic)?;
        let n = match magic[..] {
            [0, 0, BYTES, n] if (1..=MAX_DIMENSIONS).contains(&n) => n,
            [0, 0, BYTES, n] => return Err(IdxError::Dimensions(n)),
            [0, 0, kind @ 0x09..=0x0e, _] => return Err(IdxError::Type(kind)),
            _ => return Err(IdxError::Magic(magic)),
        };
        let mut sizes = Vec::new();
        input.by_ref().take(4 * u64::from(n)).read_to_end(&mut sizes)?;
        if sizes.len() != 4 * usize::from(n) {
            return Err(IdxError::CutOff { declared: 4 * u64::from(n), found: sizes.len() as u64 });
        }
        let dimensions: Vec<u64> = sizes
            .chunks_exact(4)
            .map(|b| u32::from_be_bytes(b.try_into().expect("chunks are of four bytes")).into())
            .collect();
        let bytes = dimensions.iter().try_fold(1u64, |product, n| product.checked_mul(*n));
        if bytes.is_none_or(|n| n > MAX_IDX_BYTES) {
            return Err(IdxError::TooLarge);
        }
        Ok(Self { dimensions, input })
    }

    /// The dimensions; the first counts the items.
    pub(crate) fn dimensions(&self) -> &[u64] {
        &self.dimensions
    }

    /// Reads all items in pieces of any size.
    pub(crate) fn read(mut self, mut take: impl FnMut(&[u8])) -> Result<(), IdxError> {
        let declared: u64 = self.dimensions.iter().product();
        let mut piece = vec![0; 64 << 10];
        let mut found = 0;
        loop {
            let n = match self.input.read(&mut piece) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                // What a cut gzip file looks like.
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(IdxError::CutOff { declared, found });
                }
                Err(e) => return Err(e.into()),
            };
            found += n as u64;
            if found > declared {
                return Err(IdxError::Trailing(declared));
            }
            if n == 0 && found < declared {
                return Err(IdxError::CutOff { declared, found });
            }
            if n == 0 {
                return Ok(());
            }
            take(&piece[..n]);
        }
    }
}

/// The items of an IDX file in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdxArray {
    /// The dimensions; the first counts the items.
    pub dimensions: Vec<usize>,
    /// The items, one behind the other.
    pub bytes: Vec<u8>,
}

impl IdxArray {
    /// Reads a file, compressed or not.
    ///
    /// # Errors
    /// [`IdxError`].
    pub fn read(path: &Path) -> Result<Self, IdxError> {
        Self::from_source(IdxSource::open(path)?)
    }

    fn from_source(source: IdxSource<'_>) -> Result<Self, IdxError> {
        let dimensions = source.dimensions().iter().map(|&n| n as usize).collect();
        let mut bytes = Vec::new();
        source.read(|piece| bytes.extend_from_slice(piece))?;
        Ok(Self { dimensions, bytes })
    }

    /// Bytes of one item.
    pub fn item_len(&self) -> usize {
        self.dimensions.iter().skip(1).product()
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.dimensions.first().copied().unwrap_or(0)
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These items, in this order.
    ///
    /// # Panics
    /// If there is no such item.
    #[must_use]
    pub fn select(&self, items: &[usize]) -> Self {
        let n = self.item_len();
        let mut dimensions = self.dimensions.clone();
        dimensions[0] = items.len();
        let bytes = items.iter().flat_map(|&i| &self.bytes[i * n..(i + 1) * n]).copied().collect();
        Self { dimensions, bytes }
    }

    /// Writes it without compression.
    ///
    /// # Errors
    /// The writer's, and one of kind `InvalidInput` if a dimension is more than IDX can say.
    pub fn write(&self, output: &mut impl Write) -> std::io::Result<()> {
        let too_large = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "too large for an IDX file");
        let n = u8::try_from(self.dimensions.len()).map_err(|_| too_large())?;
        output.write_all(&[0, 0, BYTES, n])?;
        for &size in &self.dimensions {
            output.write_all(&u32::try_from(size).map_err(|_| too_large())?.to_be_bytes())?;
        }
        output.write_all(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<IdxArray, IdxError> {
        IdxArray::from_source(IdxSource::new(bytes)?)
    }

    fn written(array: &IdxArray) -> Vec<u8> {
        let mut bytes = Vec::new();
        array.write(&mut bytes).unwrap();
        bytes
    }

    fn zipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn array() -> IdxArray {
        IdxArray { dimensions: vec![3, 2, 2], bytes: (0..12).collect() }
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let bytes = written(&array());
        assert_eq!(bytes[..16], [0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 2]);
        assert_eq!(read(&bytes).unwrap(), array());
        assert_eq!(read(&zipped(&bytes)).unwrap(), array());
        assert_eq!(array().select(&[2, 0]).bytes, [8, 9, 10, 11, 0, 1, 2, 3]);
        assert_eq!(array().select(&[]).dimensions, [0, 2, 2]);
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let good = written(&array());
        let says = |bytes: &[u8], words: &str| {
            let e = read(bytes).unwrap_err().to_string();
            assert!(e.contains(words), "{words}: {e}");
        };
        says(&good[..27], "declares 12 bytes of items, 11 are there");
        says(&good[..7], "cut off");
        says(&good[..3], "no IDX file");
        says(b"", "no IDX file");
        says(b"x,y\n1,2\n", "no IDX file: it begins with [120, 44, 121, 10]");
        says(&[&good[..], &[0]].concat(), "more bytes follow after the 12");
        says(&[0, 0, 0x0d, 1, 0, 0, 0, 0], "type 0x0d");
        says(&[0, 0, 8, 0], "0 dimensions");
        says(&[0, 0, 8, 9], "9 dimensions");
        says(&[&[0, 0, 8, 4][..], &[255; 16]].concat(), "more than 1073741824 bytes");
        let zip = zipped(&good);
        says(&zip[..zip.len() - 12], "cut off");
        says(&zipped(&good[..27]), "11 are there");
        assert!(read(&[&zip[..], b"garbage"].concat()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            shape in proptest::collection::vec(0usize..5, 1..5),
            byte in any::<u8>(),
            zip: bool,
        ) {
            let n = shape.iter().product::<usize>();
            let array = IdxArray { dimensions: shape, bytes: (0..n).map(|i| byte.wrapping_add(i as u8)).collect() };
            let bytes = if zip { zipped(&written(&array)) } else { written(&array) };
            prop_assert_eq!(read(&bytes).unwrap(), array);
        }

        #[test]
        fn any_bytes_give_an_array_or_an_error(
            head in prop_oneof![Just(vec![]), Just(vec![0, 0, 8, 1, 0, 0, 0]), Just(vec![0x1f, 0x8b, 8])],
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let bytes = [head, bytes].concat();
            if let Ok(array) = read(&bytes) {
                prop_assert_eq!(array.bytes.len(), array.dimensions.iter().product::<usize>());
            }
        }
    }
}
