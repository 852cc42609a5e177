//! Tables that open, since all their checksums are right, but whose parts contradict each other.

#![expect(clippy::disallowed_methods, reason = "the tests write files behind the engine's back")]

use futures::executor::block_on;
use seerdb_io::{Env, OpenOptions};

use super::*;
use crate::codec::{Sink, crc32c};
use crate::filename::FileName;
use crate::filter::FilterBuilder;
use crate::key::ValueKind;
use crate::sstable::block::BlockBuilder;
use crate::sstable::format::{BlockKind, Footer, Handle, Stored, block_trailer};
use crate::sstable::index::IndexBuilder;

const NUMBER: u64 = 7;

/// A table of one block, to be made wrong.
struct Forged {
    keys: Vec<&'static [u8]>,
    /// The keys that the filter knows, and those that the tags are of.
    filtered: Vec<&'static [u8]>,
    tagged: Vec<&'static [u8]>,
    separator: &'static [u8],
    /// Stands at the end of the block, where its count belongs.
    behind: &'static [u8],
    /// Added to the checksum that the manifest and the properties agree on.
    off_by: u32,
    /// Added to the entries that they agree on.
    more: u64,
}

fn honest() -> Forged {
    let keys: Vec<&[u8]> = vec![b"a", b"b", b"c"];
    let (filtered, tagged) = (keys.clone(), keys.clone());
    Forged { keys, filtered, tagged, separator: b"a", behind: b"", off_by: 0, more: 0 }
}

impl Forged {
    /// Writes the table, opens it, and verifies it.
    fn verify(&self) -> Result<()> {
        let trailer = Trailer::new(1, ValueKind::Put);
        let mut meta = TableMeta::empty(NUMBER);
        let mut block = BlockBuilder::default();
        for (key, tagged) in self.keys.iter().zip(&self.tagged) {
            block.add(key, trailer, b"value", hash_tag(key_hash(tagged)));
            meta.note(key, trailer);
        }
        let mut filter = FilterBuilder::new();
        self.filtered.iter().for_each(|key| filter.add(key_hash(key)));
        let mut out = Vec::new();
        let data = put(&mut out, BlockKind::Data, &[block.finish(), self.behind].concat());
        let mut index = IndexBuilder::default();
        index.begin_block(None, self.separator, trailer);
        index.end_block(data);
        let filter = put(&mut out, BlockKind::Filter, &filter.finish(20.0));
        let index = put(&mut out, BlockKind::Index, &index.finish());
        meta.checksum = crc32c(&out).wrapping_add(self.off_by);
        meta.entries += self.more;
        let mut facts = Vec::new();
        meta.put_facts(&mut facts);
        let properties = put(&mut out, BlockKind::Properties, &facts);
        out.put(&Footer { filter, index, properties }.encode(NUMBER));
        meta.file_bytes = out.len() as u64;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(FileName::Table(NUMBER).in_dir(dir.path()), out).unwrap();
        let env = Env::new(&Default::default()).unwrap();
        let table =
            block_on(Table::open(env.fs(), dir.path(), Arc::new(meta), OpenOptions::default()));
        block_on(table.expect("every checksum is right").verify())
    }
}

/// Puts a block out, sealed; where it stands.
fn put(out: &mut Vec<u8>, kind: BlockKind, bytes: &[u8]) -> Handle {
    let len = u32::try_from(bytes.len()).unwrap();
    let handle = Handle { offset: out.len() as u64, stored: len, raw: len };
    out.put(bytes);
    out.put(&block_trailer(NUMBER, handle.offset, kind, Stored::Plain, bytes));
    handle
}

#[test]
fn parts_that_contradict_each_other_are_told_apart() {
    honest().verify().unwrap();
    let of = |keys: [&'static [u8]; 3]| Forged {
        keys: keys.to_vec(),
        filtered: keys.to_vec(),
        tagged: keys.to_vec(),
        ..honest()
    };
    let cases: [(Forged, &str); 7] = [
        (Forged { behind: &[9, 9], ..honest() }, "its count contradicts its length"),
        (of([b"a", b"c", b"b"]), "its keys do not ascend"),
        (of([b"a", b"a", b"b"]), "its keys do not ascend"),
        (Forged { filtered: vec![b"a"], ..honest() }, "the filter excludes a key"),
        (Forged { separator: b"b", ..honest() }, "a key is outside its separators"),
        (Forged { more: 1, ..honest() }, "its entries contradict the manifest"),
        (Forged { off_by: 1, ..honest() }, "the checksum of the table is not the one"),
    ];
    for (forged, what) in cases {
        let error = forged.verify().unwrap_err();
        assert!(error.is_corruption() && error.to_string().contains(what), "{error}, not {what}");
    }
}

#[test]
fn a_tag_is_its_keys() {
    let error = Forged { tagged: vec![b"a", b"x", b"c"], ..honest() }.verify().unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("a tag is not its"), "{error}");
}
