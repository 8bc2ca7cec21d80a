//! The allocator's habits.

/// The largest block that glibc's allocator counts as short-lived, in bytes (`DEFAULT_MMAP_THRESHOLD_MAX` where pointers have 64 bits).
const MOST: usize = 32 << 20;

/// Has glibc's allocator keep the pages of freed messages of up to `bytes` for the next ones.
///
/// Until a process has freed a block from outside its heaps, glibc gives memory back to the kernel whenever 128 KiB are free at the end of
/// a heap. A batch of packets is half that, so under load of large messages pages are returned and faulted in again for nearly each of
/// them, which cost a third of the throughput at 64 KiB. When such a block is freed, glibc counts blocks of its size as short-lived, and
/// keeps up to twice as much (mallopt(3), `M_MMAP_THRESHOLD`, "dynamic"). The first large message would have the same effect; this
/// does it at the start. Where another allocator serves, this is one allocation, of pages that are never touched.
pub(crate) fn keep_pages(bytes: usize) {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(bytes.min(MOST))));
}
