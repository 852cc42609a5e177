//! Testing a service of your own against power cuts, on a simulated machine.
//!
//! The service keeps accounts in a database and moves money between them. Its promise: the sum of
//! all accounts never changes, and a transfer that it confirmed is never lost. The test runs the
//! service, cuts the power in the middle of a random operation, starts it again, and looks; a
//! thousand crashes take a few seconds. A failure names a seed that repeats it exactly.
//!
//! Run it with `cargo run --release --example simulated --features sim`.

#![expect(clippy::print_stdout, reason = "it reports to a person")]

use std::cell::Cell;

use seerdb::sim::{Chance, LifeEnd, Moment, Options, Outcome, Sim};
use seerdb::{DB, DBOptions, Env, Result};

const ACCOUNTS: u64 = 4;
const START: u64 = 1000;

/// The service; the environment is the only thing that the test gives it.
struct Bank {
    db: DB,
}

impl Bank {
    async fn open(env: Env) -> Result<Bank> {
        let options = DBOptions::new().memory_budget(1 << 20).wal_segment_bytes(32 << 10);
        let db = options.env(env).open("/bank").await?;
        if db.get(b"account/0").await?.is_none() {
            let mut batch = db.batch();
            for id in 0..ACCOUNTS {
                batch.put(account(id), START.to_le_bytes().to_vec());
            }
            batch.put(b"transfers", 0_u64.to_le_bytes().to_vec());
            batch.commit().await?;
        }
        Ok(Bank { db })
    }

    async fn number(&self, key: &[u8]) -> Result<u64> {
        let value = self.db.get(key).await?.unwrap_or_default();
        Ok(value.as_ref().try_into().map_or(0, u64::from_le_bytes))
    }

    /// Moves money; confirmed when it returns.
    async fn transfer(&self, from: u64, to: u64, amount: u64) -> Result<()> {
        let (source, target) =
            (self.number(&account(from)).await?, self.number(&account(to)).await?);
        let count = self.number(b"transfers").await? + 1;
        if from == to || source < amount {
            return Ok(());
        }
        let mut batch = self.db.batch();
        batch.put(account(from), (source - amount).to_le_bytes().to_vec());
        batch.put(account(to), (target + amount).to_le_bytes().to_vec());
        batch.put(b"transfers", count.to_le_bytes().to_vec());
        batch.commit().await?;
        Ok(())
    }
}

fn account(id: u64) -> Vec<u8> {
    format!("account/{id}").into_bytes()
}

/// One machine: the service runs, crashes and runs again; the number of its crashes.
fn history(seed: u64) -> u32 {
    let sim = Sim::new(seed, Options::default());
    let mut chance = Chance::new(seed);
    let confirmed = Cell::new(0);
    let mut crashes = 0;
    for _ in 0..10 {
        let env = sim.boot();
        let last = sim.ops_submitted() + 1 + chance.below(100);
        sim.cut_at_op(last, Moment::Middle, LifeEnd::PowerCut(None));
        let outcome = sim.run(async {
            let bank = Bank::open(env).await?;
            let mut sum = 0;
            for id in 0..ACCOUNTS {
                sum += bank.number(&account(id)).await?;
            }
            assert_eq!(sum, ACCOUNTS * START, "seed {seed}: money was made or lost");
            let found = bank.number(b"transfers").await?;
            assert!(found >= confirmed.get(), "seed {seed}: a confirmed transfer is gone");
            for _ in 0..30 {
                let (from, to) = (chance.below(ACCOUNTS), chance.below(ACCOUNTS));
                bank.transfer(from, to, chance.below(500)).await?;
                confirmed.set(bank.number(b"transfers").await?);
            }
            bank.db.close().await
        });
        match outcome {
            Outcome::Cut(_) => crashes += 1,
            other => other.unwrap().unwrap_or_else(|e| panic!("seed {seed}: {e}")),
        }
    }
    crashes
}

fn main() {
    let crashes: u32 = (0..100).map(history).sum();
    println!("{crashes} power cuts: no money was lost, no confirmed transfer forgotten");
    assert!(crashes > 500, "the cuts come late: {crashes}");
}
