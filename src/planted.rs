//! Bugs planted on purpose, to test the tests: each must be found (`tests/sim/planted.rs`).
//!
//! A build with `--cfg seerdb_planted` has the bug that the environment variable `SEERDB_PLANT`
//! names; in every other build `planted!` is the constant `false` and costs nothing.
//!
//! Invariants:
//! 1. A planted bug breaks the contract: one that nobody could notice is none.

macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is_planted($crate::planted::Bug::$bug)
    };
}

/// Declares the bugs, and what they are looked up by.
macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident,)*) => {
        /// What can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Bug {
            $($(#[$doc])* $bug,)*
        }

        #[cfg(seerdb_planted)]
        const ALL: &[(&str, Bug)] = &[$((stringify!($bug), Bug::$bug)),*];
    };
}

bugs! {
    /// A new log segment may lose its name.
    SkipDirSyncOfLog,
    /// A new table may lose its name.
    SkipDirSyncOfTable,
    /// A replaced manifest may come back.
    SkipDirSyncOfCurrent,
    /// CURRENT takes its name before its bytes are durable.
    SkipSyncOfCurrent,
    /// A table is named in the manifest before its bytes are durable.
    SkipSyncOfTable,
    /// The failed sync of a table is not noticed.
    SwallowSyncErrorOfTable,
    /// The mark behind an edit may be durable without it.
    SkipSyncOfEdit,
    /// Edits are in force before they are durable.
    SkipSyncsOfManifest,
    /// A group is acknowledged when it is written.
    AckBeforeSyncOfGroup,
    /// A sync that failed is repeated, and believed.
    RetryFailedSync,
    /// A page-cached segment counts as synced when it is written.
    AckBeforeSyncOfSegment,
    /// Writing goes on behind a group that failed.
    IgnoreFailedLogWrite,
    /// A bad record is the end of the log, whatever stands behind it.
    StopAtBadRecord,
    /// Zeros are taken for padding up to the end of the segment.
    ZerosArePadding,
    /// A whole record behind a torn one is taken for proof of damage.
    TornTailIsDamage,
    /// The payload of a record is not looked at.
    SkipChecksumOfRecord,
    /// The checksum of a block is not looked at.
    SkipChecksumOfBlock,
    /// A log segment that is gone held nothing.
    IgnoreMissingLog,
    /// The manifest does not say how far the log was durable.
    ForgetDurableMark,
    /// A tombstone goes before what it hides.
    DropTombstoneEarly,
    /// Merges keep what the newest reader sees, no more.
    IgnoreSnapshots,
    /// Files that no edit names do not count for the next number.
    ReuseFileNumber,
    /// The inputs of a merge go before its edit is in force.
    DeleteInputsEarly,
    /// Log segments go before the edit that brings their table.
    DeleteLogEarly,
    /// A flush retires the segment that the next memtable begins in.
    RetireTooMuch,
    /// A flush claims the commit behind its memtable.
    FlushedSeqnoTooHigh,
    /// A sealed memtable disowns its last commit.
    SealTooLow,
    /// Reads see commits that are not durable yet.
    SeeBeforeDurable,
    /// A synced commit is acknowledged as a written one.
    PublishUnsynced,
    /// A record says that the commit before it is durable.
    StampTooEarly,
    /// A sync counts for what was appended while it ran.
    DurableTooEarly,
    /// A sync leaves out segments that were closed since the last one.
    ForgetClosedSegment,
    /// Closing leaves what nobody waits for in the page cache.
    CloseWithoutSync,
    /// A buffered commit waits for somebody else to want a sync.
    BufferedForEver,
    /// The manifest is appended to behind an append that failed.
    AppendAfterFailedAppend,
    /// Recovery leaves the segments that it has replayed in the manifest.
    KeepReplayedSegments,
    /// The first commit of a life takes the seqno of the last one before.
    SeqnoUsedAgain,
    /// Replay applies the first half of a batch.
    ReplayHalfABatch,
    /// The cache takes all blocks of a table for one.
    CacheByFileOnly,
    /// Point reads pass over the newest run.
    SkipNewestRun,
    /// Results that came from the disk land in the wrong slots.
    MixUpResults,
    /// A stream that begins anew gives its last key again.
    RepeatAfterRestart,
    /// The excluded end of a range is given out.
    BoundOffByOne,
    /// A flush gives back only what it has written.
    LeakCredits,
    /// A snapshot sees one commit more.
    SnapshotTooNew,
    /// A reverse stream holds on to the first version it meets.
    ReverseShowsOldest,
    /// The last key of a table is not in its filter.
    FilterForgetsLast,
    /// The index points behind the block that begins with the key.
    BlockBehind,
    /// A background task that panics stops nobody.
    PanicUnnoticed,
    /// A merge goes on without the tables that it cannot read.
    DropDamagedBlock,
    /// A read that goes wrong on its way is not repeated.
    ReadOnce,
    /// Reads do not compare a value with its pointer.
    SkipChecksumOfValue,
    /// Rewritten values are read where they stood at first.
    MapToOldPosition,
    /// Tables do not list all that they refer to.
    ForgetReference,
    /// Collection forgets the last body of a segment.
    DropSurvivor,
    /// Collection copies what does not check out.
    RewriteUnchecked,
    /// A rewritten value file may lose its name.
    SkipDirSyncOfValues,
    /// A table refers to values that may not be durable.
    ReferBeforeDurable,
    /// Nobody keeps a value between its commit and its write.
    ForgetFreshValue,
    /// A rewritten value file is named in the manifest before its bytes are durable.
    SkipSyncOfValues,
    /// A file of which little is alive counts as dead.
    CollectReferred,
    /// The victims of a rewrite go before its edit is in force.
    DeleteVictimsEarly,
    /// A rewritten file serves the first of its segments alone.
    MapFirstSegment,
    /// A flush seals the segment that the next memtable begins in.
    SealTooMuch,
    /// A sealed segment loses its last bytes.
    CutOffTooMuch,
    /// Recovery takes replayed segments out of the log, and says nowhere what they are.
    ForgetSeal,
    /// Recovery takes what it could read for durable.
    SealUnproven,
    /// Replay points behind the first byte of the key.
    PointerOff,
    /// The cache takes the values at one position of all segments for one.
    CacheByPositionOnly,
    /// A stream gives what memory has before what it waits for.
    OvertakeInStream,
    /// A stream leaves out what it cannot read ahead.
    SkipUnreadableValue,
    /// Readers meet what a run was trimmed of.
    ReadTrimmed,
    /// The manifest keeps to itself where a run begins.
    ForgetTrim,
    /// A piece of a merge says of one entry more that it is gone.
    TrimTooMuch,
    /// A version keeps a run as it was before it was trimmed.
    KeepOldTrim,
    /// A piece takes a table away that the next one still needs.
    DropStraddler,
    /// What a merge puts out is as new as its newest input.
    OutputTooNew,
    /// A merge begins beside one that works on older runs than it may pass.
    PassOlderMerge,
    /// A merge that waits is not told that the pause is over.
    ResumeUnnoticed,
    /// A merge that waits is not told that the one above it is over.
    EndUnnoticed,
    /// A merge of some runs drops tombstones as one of all would.
    BottomWhileMerging,
    /// Behind a merge that was left halfway, a table mixes what it had merged and what it had not.
    TableAcrossMerges,
    /// A long merge leaves its inputs where they were.
    ForgetStage,
    /// Collection takes what is left of a table for nothing while a merge is between two pieces.
    ForgetStraddler,
    /// A merge begins while somebody pauses.
    BeginWhilePaused,
    /// A merge that runs does not heed a pause.
    WorkWhilePaused,
    /// Flushes wait for merges that nobody may do.
    FlushWaitsForPause,
    /// Who asked for a merge is told that it is done when it was called off.
    CancelledIsDone,
    /// A merge that waits is not told that it was called off.
    CancelUnnoticed,
    /// A flush that slows down gives no credits back.
    SlowFlushKeepsCredits,
    /// Merges do not keep to the rate that they may have.
    IgnoreRate,
    /// The rate holds at every time of the day.
    IgnoreWindow,
    /// Deletions may go although a snapshot needs what they hide.
    DroppableTooHigh,
    /// Merges are not told that the snapshot is gone that held deletions back.
    FreedUnnoticed,
    /// Merges are not told that deletions have come of age.
    AgeUnnoticed,
    /// What was deleted soon after the last look comes of age with the next one.
    MarkUnnoticed,
}

/// Whether this is the bug of this process.
#[cfg(seerdb_planted)]
pub(crate) fn is_planted(bug: Bug) -> bool {
    static PLANTED: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let planted = PLANTED.get_or_init(|| {
        let name = std::env::var("SEERDB_PLANT").ok()?;
        let found = ALL.iter().find(|(known, _)| *known == name);
        Some(found.unwrap_or_else(|| panic!("no bug is called {name}")).1)
    });
    *planted == Some(bug)
}

/// Whether this is the bug of this process: there is none.
#[cfg(not(seerdb_planted))]
pub(crate) const fn is_planted(_: Bug) -> bool {
    false
}
