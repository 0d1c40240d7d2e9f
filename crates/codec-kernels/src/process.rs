//! What a program sets once, at its start.

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

/// Keeps candle from starting threads of its own, which wait busily for work beside those of rayon and so take
/// the processor from them.
///
/// candle reads the variable `CANDLE_NUM_THREADS` once; this sets it to 1, unless it is set. To be called first in
/// `main`: it does nothing once there are other threads, nor on systems other than Linux, where the variable has
/// to be set by hand.
pub fn keep_candle_single_threaded() {
    #[cfg(target_os = "linux")]
    {
        const NAME: &str = "CANDLE_NUM_THREADS";
        let is_alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
        if is_alone && std::env::var_os(NAME).is_none() {
            #[expect(unsafe_code, reason = "a setting of another library that has no other place")]
            // SAFETY: no other thread reads or writes the environment, because there is none.
            unsafe {
                std::env::set_var(NAME, "1");
            }
        }
    }
}
