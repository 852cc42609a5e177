//! Tells a forked child from the process that made a file layer, at the price of a load.
//!
//! `getpid` is a system call each time, a tenth of a cached write; so on Linux the kernel wipes a
//! page of ours when the process forks.
//!
//! Invariants:
//! 1. A [`Page`] is a private mapping of its own that nobody else points to. It begins with a 1,
//!    which nothing but a fork changes, to 0.

/// Remembers in which process it was made.
pub(crate) struct ForkMark {
    #[cfg(target_os = "linux")]
    page: Option<Page>,
    /// What to ask where no page can be wiped.
    process: u32,
}

impl ForkMark {
    pub(crate) fn new() -> Self {
        ForkMark {
            #[cfg(target_os = "linux")]
            page: Page::new(),
            process: std::process::id(),
        }
    }

    /// Whether this is another process than the one that made the mark.
    pub(crate) fn is_forked(&self) -> bool {
        #[cfg(target_os = "linux")]
        if let Some(page) = &self.page {
            return page.is_wiped();
        }
        std::process::id() != self.process
    }
}

#[cfg(target_os = "linux")]
use self::page::Page;

#[cfg(target_os = "linux")]
mod page {
    use std::ptr::{self, NonNull};
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    /// A mapping is rounded up to whole pages, whatever their size is.
    const BYTES: usize = size_of::<AtomicU32>();

    /// A page that is zeros in a forked child.
    pub(super) struct Page(NonNull<AtomicU32>);

    // SAFETY: all that is ever done with the page is an atomic load.
    unsafe impl Send for Page {}
    // SAFETY: as above.
    unsafe impl Sync for Page {}

    impl Page {
        /// None where the kernel cannot do it, as before Linux 4.14.
        pub(super) fn new() -> Option<Page> {
            let read_write = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping, at a place that the kernel chooses, replaces none.
            let page = unsafe {
                mmap_anonymous(ptr::null_mut(), BYTES, read_write, MapFlags::PRIVATE).ok()?
            };
            let page = Page(NonNull::new(page.cast::<AtomicU32>())?);
            // SAFETY: the advice is given for our own mapping, which is private and anonymous.
            unsafe { madvise(page.0.as_ptr().cast(), BYTES, Advice::LinuxWipeOnFork).ok()? };
            page.first().store(1, Ordering::Relaxed);
            Some(page)
        }

        pub(super) fn is_wiped(&self) -> bool {
            // Order: a fork happens before everything in the child.
            self.first().load(Ordering::Relaxed) == 0
        }

        fn first(&self) -> &AtomicU32 {
            // SAFETY: the mapping is aligned to a page, initialised, and lives as long as `self`.
            unsafe { self.0.as_ref() }
        }
    }

    impl Drop for Page {
        fn drop(&mut self) {
            // SAFETY: the mapping is ours, and the last reference into it ends here. A failure
            // leaves the page mapped: nothing else can be done about it.
            let _still_mapped = unsafe { munmap(self.0.as_ptr().cast(), BYTES) };
        }
    }
}
