//! Memory for packed weights.

#![forbid(unsafe_code)]

use memmap2::MmapMut;

use crate::tensor::Storage;

/// Bytes of the large pages of x86-64, and of AArch64 with small pages of 4 KiB.
const LARGE_PAGE: usize = 2 << 20;

/// Zeros at first, beginning at a page. In large pages where the system has them: what reads weights from end to end then looks up
/// one address in 2 MiB instead of one in 4 KiB, and the processor fetches ahead across all of it.
#[derive(Debug)]
pub struct Memory(MmapMut);

impl Memory {
    /// So many bytes, and possibly some more.
    pub fn new(bytes: usize) -> Self {
        // Linux begins a map at a large page if it ends at one.
        let large = bytes / LARGE_PAGE * LARGE_PAGE;
        let len = if large > 0 { bytes.checked_next_multiple_of(LARGE_PAGE).unwrap_or(bytes) } else { bytes };
        let map = MmapMut::map_anon(len.max(1)).unwrap_or_else(|_| {
            // As everything else that is allocated: without memory there is no going on.
            let layout = std::alloc::Layout::array::<u8>(len).unwrap_or(std::alloc::Layout::new::<u8>());
            std::alloc::handle_alloc_error(layout)
        });
        // A wish: without it everything is right, if slower. What is left at the end stays in small pages, because a large one would
        // be taken as a whole.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, 0, large);
        Memory(map)
    }

    /// All bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Storage for Memory {}
