//! What becomes of freed memory.

/// Makes the process keep the memory that it frees, for the next buffers of the same sizes.
///
/// Networks allocate and free the same buffers of megabytes for each step or chunk. By default glibc hands them
/// back to the system, which clears every page again. With this the process stays as large as it ever was. Meant
/// for the start of a program; elsewhere than on Linux with glibc it does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a setting of the allocator")]
    // SAFETY: mallopt may be called at any time and only changes how the allocator asks the system for memory.
    unsafe {
        // Buffers of any size come from the heap, whose top is never given back.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        libc::mallopt(libc::M_TOP_PAD, 1 << 26);
    }
}
