//! Damage to one file while the machine is off: it is harmless, told, or hits what nothing can
//! prove yet. Afterwards the disk is as it was, and the history goes on.

use std::rc::Rc;

use futures::StreamExt;
use futures::stream;
use seerdb::{DBOptions, ErrorKind};
use seerdb_io::sim::{Chance, Disk};

use super::context::Context;
use super::disk::{DIR, is_log};
use super::life::bounded;
use super::model::Found;
use super::plan::draw_options;
use super::world::Key;

/// Damages a file, opens, reads everything, and undoes the damage.
pub(crate) fn try_one(context: &Rc<Context>, chance: &mut Chance) {
    let saved = context.sim.disk();
    let mut names = saved.names();
    names.retain(|name| name.starts_with(DIR));
    let Some(name) = chance.pick(&names).cloned() else { return };
    let len = saved.visible_bytes(&name).map_or(0, |bytes| bytes.len() as u64);
    let what = context.sim.edit_disk(|disk| plant(disk, &name, len, chance));
    let told = format!("{what} in {} of {len} bytes", name.display());
    let env = context.sim.boot();
    let options = draw_options(chance).env(env.clone());
    let looked = look(Rc::clone(context), options);
    let outcome = context.sim.run(async { bounded(&env, "a damaged database", looked).await });
    // A cut that was meant for the life before may come late.
    let found = outcome.unless_cut();
    if context.sim.is_alive() {
        context.sim.kill();
    }
    context.sim.edit_disk(|disk| *disk = saved);
    let Some(found) = found else { return };
    context.world().probe(if found.is_some() { "damage survived" } else { "damage refused" });
    let Some((last, found)) = found else { return };
    let world = context.world();
    if let Err(error) = world.explain(last, &found) {
        panic!("after {told}: {error}");
    }
    let is_log = is_log(&name);
    let excused = is_log && world.is_newest_group(last);
    assert!(last >= world.durable || excused, "{told}: {last} of {} is back", world.durable);
}

fn plant(disk: &mut Disk, name: &std::path::Path, len: u64, chance: &mut Chance) -> String {
    let at = chance.below(len);
    let sector = at / 512 * 512;
    let bytes = disk.visible_bytes(name).unwrap_or_default();
    let old = usize::try_from(at).ok().and_then(|at| bytes.get(at)).copied().unwrap_or(0);
    let size = usize::try_from((len - sector).min(512)).unwrap();
    match chance.below(if len == 0 { 1 } else { 6 }) {
        0 => {
            disk.remove(name).unwrap();
            "removal".to_owned()
        }
        1..3 => {
            disk.write_bytes(name, at, &[old ^ (1 << chance.below(8))]).unwrap();
            format!("a bit at {at}")
        }
        3 => {
            disk.write_bytes(name, sector, &vec![0; size]).unwrap();
            format!("zeros at {sector}")
        }
        4 => {
            let mut garbage = vec![0; size];
            chance.fill(&mut garbage);
            disk.write_bytes(name, sector, &garbage).unwrap();
            format!("garbage at {sector}")
        }
        _ => {
            disk.truncate(name, at).unwrap();
            format!("the end cut off at {at}")
        }
    }
}

/// The recovered seqno and contents; nothing when the open tells of damage.
async fn look(context: Rc<Context>, options: DBOptions) -> Option<(u64, Vec<Found>)> {
    let db = match options.open(DIR).await {
        Ok(db) => db,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
            assert!(error.location().is_some(), "{error}");
            return None;
        }
    };
    let names = context.world().keys.clone();
    let last = context.visible(&db);
    let found = stream::iter(names.iter().enumerate()).then(async |(key, name)| {
        let key = Key::try_from(key).unwrap();
        match db.get(name).await {
            Ok(value) => {
                let world = context.world();
                Some(value.map(|v| world.identify(key, &v).unwrap_or_else(|e| panic!("{e}"))))
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
                None
            }
        }
    });
    let found: Vec<Found> = found.collect().await;
    Some((last, found))
}
