//! Oracle O5 for values, without a line of the engine's: whatever a durable table refers to in the
//! value log stands in durable bytes, in the file that the durable manifest names for its segment,
//! and is what the table says it is.

use std::collections::BTreeMap;

use crc32c::crc32c;
use seerdb_io::sim::Disk;

use super::disk::{Bytes, Manifest, path};

/// Where a table lists the bodies that it refers to in one segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Reference {
    segment: u64,
    bodies: u64,
    bytes: u64,
    offset: u64,
    stored: u64,
}

/// Reads the summaries at the end of the description of a table, behind its number.
pub(crate) fn read_references(description: &mut Bytes<'_>) -> Option<Vec<Reference>> {
    for _ in 0..4 {
        description.varint()?;
    }
    description.slice()?;
    description.slice()?;
    let count = description.varint()?;
    (0..count)
        .map(|_| {
            let (segment, bodies) = (description.varint()?, description.varint()?);
            let (bytes, offset) = (description.varint()?, description.u64()?);
            let stored = description.u32()?.into();
            description.take(4)?;
            Some(Reference { segment, bodies, bytes, offset, stored })
        })
        .collect()
}

/// A key and its value: position in the segment, length, checksum.
type Body = (u64, u64, u32);

/// A number whose sign is its last bit.
fn signed(number: u64) -> i64 {
    let magnitude = i64::try_from(number / 2).unwrap();
    if number.is_multiple_of(2) { magnitude } else { -magnitude - 1 }
}

fn read_bodies(block: &[u8], reference: &Reference) -> Option<Vec<Body>> {
    let mut block = Bytes(block);
    let mut bodies = Vec::new();
    let (mut end, mut len) = (0, 0);
    if block.varint()? != reference.segment {
        return None;
    }
    while !block.0.is_empty() {
        let position = end + signed(block.varint()?);
        len += signed(block.varint()?);
        end = position + len;
        bodies.push((u64::try_from(position).ok()?, u64::try_from(len).ok()?, block.u32()?));
    }
    let bytes: u64 = bodies.iter().map(|(_, len, _)| len).sum();
    ((bodies.len() as u64, bytes) == (reference.bodies, reference.bytes)).then_some(bodies)
}

/// Where the bodies stand in a rewritten file, by segment and position.
fn read_sections(file: &[u8]) -> Option<BTreeMap<(u64, u64), u64>> {
    let (rest, footer) = file.split_at_checked(file.len().checked_sub(40)?)?;
    let mut footer = Bytes(footer);
    footer.take(28)?;
    let block = usize::try_from(footer.u32()?).ok()?;
    let mut block = Bytes(rest.get(rest.len().checked_sub(block)?..)?);
    let (mut places, mut offset) = (BTreeMap::new(), 0);
    while !block.0.is_empty() {
        let (segment, count) = (block.varint()?, block.varint()?);
        let (mut section, mut position) = (Bytes(block.slice()?), 0);
        for _ in 0..count {
            position += section.varint()?;
            places.insert((segment, position), offset);
            offset += section.varint()?;
        }
    }
    Some(places)
}

/// What is wrong with what the tables of a durable manifest refer to.
pub(crate) fn look(disk: &Disk, manifest: &Manifest) -> Option<String> {
    let mut files = BTreeMap::new();
    for (number, values) in &manifest.values {
        files.extend(values.segments.iter().map(|segment| (*segment, *number)));
    }
    let in_log = manifest.segments.iter().filter(|(_, is_values)| **is_values);
    files.extend(in_log.map(|(number, _)| (*number, *number)));
    let mut read = BTreeMap::new();
    for (number, table) in &manifest.tables {
        let bytes = disk.durable_bytes(path(&format!("{number:06}.sst")))?;
        for reference in &table.references {
            let what = || format!("table {number} refers to segment {}", reference.segment);
            let Some(file) = files.get(&reference.segment) else {
                return Some(format!("O5: {}, which no file holds", what()));
            };
            let name = path(&format!("{file:06}.vlog"));
            let (values, places) = read.entry(file).or_insert_with(|| {
                let values = disk.durable_bytes(&name).unwrap_or_default();
                let is_rewritten = manifest.values.get(file).is_some_and(|v| v.is_rewritten);
                let places = is_rewritten.then(|| read_sections(&values).unwrap_or_default());
                (values, places)
            });
            let from = usize::try_from(reference.offset).unwrap();
            let block = bytes.get(from..from + usize::try_from(reference.stored).unwrap());
            let Some(bodies) = block.and_then(|block| read_bodies(block, reference)) else {
                return Some(format!("O5: {}, and its list is none", what()));
            };
            for (position, len, crc) in bodies {
                let offset = match places {
                    None => Some(position),
                    Some(places) => places.get(&(reference.segment, position)).copied(),
                };
                let range = offset.map(|offset| offset..offset + len);
                let is_there = range.clone().is_some_and(|range| {
                    let bytes = values.get(index(range.start)..index(range.end));
                    bytes.is_some_and(|bytes| crc32c(bytes) == crc) && disk.is_durable(&name, range)
                });
                if !is_there {
                    let what = what();
                    return Some(format!("O5: {what}, {position}; not at {range:?} of {name:?}"));
                }
            }
        }
    }
    None
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}
