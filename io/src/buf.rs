//! Page-aligned buffers that file operations own while the kernel uses them.
//!
//! Invariants:
//! 1. `ptr` is aligned to [`BUF_ALIGN`] and points to `cap` initialised bytes, or dangles when
//!    `cap` is 0.
//! 2. `len <= cap`; the bytes from `len` to `cap` are initialised but meaningless.
//! 3. Moving an `AlignedBuf` never moves its bytes: a driver may keep the address of the bytes for
//!    as long as it keeps the buffer.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

/// The alignment of every buffer, in bytes: the largest unit that O_DIRECT asks for in practice.
pub const BUF_ALIGN: usize = 4096;

/// An owned, growable, page-aligned byte buffer.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    cap: usize,
}

// SAFETY: the buffer owns its bytes exclusively, as a `Vec<u8>` does.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads the bytes.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// An empty buffer; allocates nothing.
    pub const fn new() -> Self {
        AlignedBuf { ptr: NonNull::dangling(), len: 0, cap: 0 }
    }

    /// An empty buffer with room for `cap` bytes, rounded up to [`BUF_ALIGN`].
    pub fn with_capacity(cap: usize) -> Self {
        let mut buf = AlignedBuf::new();
        buf.reserve(cap);
        buf
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = AlignedBuf::with_capacity(len);
        buf.len = len;
        buf
    }

    /// The number of bytes in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of bytes that fit without a new allocation.
    pub fn capacity(&self) -> usize {
        self.cap
    }

    /// Forgets the content and keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Shortens the buffer to `len` bytes; longer lengths change nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Sets the length, filling new bytes with zeros.
    pub fn resize(&mut self, len: usize) {
        if len > self.len {
            self.reserve(len - self.len);
            let start = self.len;
            self.len = len;
            if let Some(new) = self.get_mut(start..) {
                new.fill(0);
            }
        } else {
            self.len = len;
        }
    }

    /// Makes room for `additional` bytes beyond the length, at least doubling the memory.
    ///
    /// # Panics
    ///
    /// When the size would overflow `isize`.
    pub fn reserve(&mut self, additional: usize) {
        let needed = self.len.checked_add(additional).expect("buffer size overflows usize");
        if needed <= self.cap {
            return;
        }
        let cap = needed.max(self.cap * 2).next_multiple_of(BUF_ALIGN);
        let layout = Layout::from_size_align(cap, BUF_ALIGN).expect("buffer size overflows isize");
        // SAFETY: the layout is not empty, `cap` is at least BUF_ALIGN here.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { handle_alloc_error(layout) };
        // SAFETY: both ranges are valid for `len` bytes and belong to different allocations.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr(), ptr.as_ptr(), self.len) };
        self.release();
        self.ptr = ptr;
        self.cap = cap;
    }

    /// Appends `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let end = self.len + bytes.len();
        // SAFETY: `reserve` made `cap` at least `end`, so `len` is inside the allocation.
        let tail = unsafe { self.ptr.as_ptr().add(self.len) };
        // SAFETY: there is room for `bytes` behind `len` (invariant 2); `bytes` is borrowed while
        // `self` is borrowed mutably, so the ranges do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), tail, bytes.len()) };
        self.len = end;
    }

    /// Turns the buffer into shared immutable bytes without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn release(&mut self) {
        if self.cap > 0 {
            let layout = Layout::from_size_align(self.cap, BUF_ALIGN).expect("layout was valid");
            // SAFETY: `ptr` came from `alloc_zeroed` with this very layout (invariant 1).
            unsafe { dealloc(self.ptr.as_ptr(), layout) };
            self.cap = 0;
        }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        self.release();
    }
}

impl Default for AlignedBuf {
    fn default() -> Self {
        AlignedBuf::new()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: invariants 1 and 2.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: invariants 1 and 2; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).field("cap", &self.cap).finish()
    }
}

#[cfg(all(feature = "tokio-uring", target_os = "linux", not(seerdb_no_uring)))]
mod tokio_uring_buf {
    use super::AlignedBuf;

    // SAFETY: invariant 3 keeps the address stable while the value moves; the bytes up to `len`
    // are initialised. The spare room is not offered: an operation is as long as the buffer.
    unsafe impl tokio_uring::buf::IoBuf for AlignedBuf {
        fn stable_ptr(&self) -> *const u8 {
            self.ptr.as_ptr()
        }

        fn bytes_init(&self) -> usize {
            self.len
        }

        fn bytes_total(&self) -> usize {
            self.len
        }
    }

    // SAFETY: as above; the buffer owns its bytes exclusively, so they may be written to.
    unsafe impl tokio_uring::buf::IoBufMut for AlignedBuf {
        fn stable_mut_ptr(&mut self) -> *mut u8 {
            self.ptr.as_ptr()
        }

        unsafe fn set_init(&mut self, pos: usize) {
            // All of `len` is initialised already, and no more was offered.
            debug_assert!(pos <= self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_buffer_owns_no_memory() {
        let buf = AlignedBuf::new();
        assert!(buf.is_empty());
        assert_eq!(buf.capacity(), 0);
        assert_eq!(&buf[..], b"");
    }

    #[test]
    fn memory_is_aligned_and_zeroed() {
        for len in [1, 511, 4095, 4096, 4097, 1 << 20] {
            let buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.as_ptr() as usize % BUF_ALIGN, 0);
            assert_eq!(buf.len(), len);
            assert!(buf.capacity() >= len && buf.capacity().is_multiple_of(BUF_ALIGN));
            assert!(buf.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn growing_keeps_the_content_and_the_alignment() {
        let mut buf = AlignedBuf::new();
        for i in 0..20_000u32 {
            buf.extend_from_slice(&i.to_le_bytes());
            assert_eq!(buf.as_ptr() as usize % BUF_ALIGN, 0);
        }
        for (i, word) in buf.chunks_exact(4).enumerate() {
            assert_eq!(word, u32::try_from(i).unwrap().to_le_bytes());
        }
    }

    #[test]
    fn resize_after_truncate_shows_zeros_and_not_old_bytes() {
        let mut buf = AlignedBuf::new();
        buf.extend_from_slice(&[7; 100]);
        buf.truncate(10);
        buf.truncate(50);
        assert_eq!(buf.len(), 10);
        buf.resize(100);
        assert_eq!(&buf[..10], &[7; 10]);
        assert!(buf[10..].iter().all(|b| *b == 0));
        buf.resize(3);
        assert_eq!(&buf[..], &[7; 3]);
        buf.clear();
        assert!(buf.is_empty() && buf.capacity() >= 100);
    }

    #[test]
    fn frozen_bytes_are_the_same_memory() {
        let mut buf = AlignedBuf::with_capacity(10);
        buf.extend_from_slice(b"hello");
        let address = buf.as_ptr();
        let bytes = buf.freeze();
        assert_eq!(bytes.as_ptr(), address);
        assert_eq!(&bytes.slice(1..3)[..], b"el");
        let empty = AlignedBuf::new().freeze();
        assert!(empty.is_empty());
    }

    #[test]
    fn moving_a_buffer_between_threads_keeps_its_address() {
        let mut buf = AlignedBuf::zeroed(8192);
        buf[8191] = 9;
        let address = buf.as_ptr() as usize;
        let buf = std::thread::scope(|s| s.spawn(move || buf).join().unwrap());
        assert_eq!((buf.as_ptr() as usize, buf[8191]), (address, 9));
    }
}
