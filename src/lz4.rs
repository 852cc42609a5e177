//! Compression of blocks and values with LZ4, through its checked interface.
//!
//! Invariants:
//! 1. What does not shrink by an eighth is kept as it is: unpacking would cost more than it saves.
//! 2. Unpacking never allocates more than LZ4 can have packed, whatever the bytes say.

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

/// What is longer stays as it is, so that a reader can bound what it unpacks.
pub(crate) const PACK_BYTES_MAX: usize = 64 << 20;
/// LZ4 cannot do better; bytes that claim to are none of ours.
const RATIO_MAX: usize = 255;

/// Packs bytes, keeping its memory from one call to the next.
#[derive(Default)]
pub(crate) struct Packer {
    out: Vec<u8>,
    table: CompressTable,
}

impl Packer {
    /// `raw` packed, if that saves at least an eighth.
    pub(crate) fn pack(&mut self, raw: &[u8]) -> Option<&[u8]> {
        if raw.len() > PACK_BYTES_MAX {
            return None;
        }
        let room = get_maximum_output_size(raw.len());
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        let len = compress_into_with_table(raw, &mut self.out, &mut self.table).ok()?;
        self.out.get(..len).filter(|packed| packed.len() <= raw.len() - raw.len() / 8)
    }
}

/// The `raw` bytes that `stored` was packed from.
pub(crate) fn unpack(stored: &[u8], raw: usize) -> Result<Bytes, &'static str> {
    if raw > PACK_BYTES_MAX || raw > stored.len().saturating_mul(RATIO_MAX) {
        return Err("unpacked it would be too large");
    }
    let mut out = Vec::new();
    out.try_reserve_exact(raw).map_err(|_| "no memory to unpack it")?;
    out.resize(raw, 0);
    match lz4_flex::block::decompress_into(stored, &mut out) {
        Ok(bytes) if bytes == raw => Ok(Bytes::from(out)),
        _ => Err("LZ4 cannot unpack it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shrinks_by_an_eighth_is_packed() {
        let mut packer = Packer::default();
        let text = b"again and again and again and ".repeat(20);
        let packed = packer.pack(&text).unwrap().to_vec();
        assert!(packed.len() < text.len() / 2);
        assert_eq!(unpack(&packed, text.len()).unwrap(), text);
        let noise: Vec<u8> =
            (0u32..600).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert_eq!(packer.pack(&noise), None);
        assert_eq!(packer.pack(b""), None);
    }

    #[test]
    fn bytes_that_were_not_packed_are_refused() {
        let mut packer = Packer::default();
        let packed = packer.pack(&[7; 1000]).unwrap().to_vec();
        assert!(unpack(&packed, 999).is_err());
        assert!(unpack(&packed, 1001).is_err());
        assert!(unpack(&packed[1..], 1000).is_err());
        assert!(unpack(&packed, PACK_BYTES_MAX + 1).is_err());
        assert!(unpack(&[0; 3], 4 * 255).is_err());
    }
}
