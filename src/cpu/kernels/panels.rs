//! Stored weights on their way into panels.

use std::ops::Range;

use super::matmul::panel_width;
use super::simd::{Checked, Kernel, Simd};

/// Up to a panel's width of rows become columns of a panel.
pub struct Transpose<'a> {
    /// Rows of as many elements as the panel has rows, `step` elements apart.
    pub rows: &'a [f32],
    pub step: usize,
    /// Which columns of the panel they become.
    pub lanes: Range<usize>,
    /// `[n][width]`.
    pub panel: &'a mut [f32],
}

impl Kernel for Transpose<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let Transpose { rows, step, lanes, panel } = self;
        let (width, n) = (panel_width::<S>(), panel.len() / panel_width::<S>());
        assert!(lanes.end <= width && n <= step && lanes.len() * step <= rows.len(), "rows of a panel");
        let whole = if lanes.len() == width { n / S::LANES * S::LANES } else { 0 };
        for first in (0..whole).step_by(S::LANES) {
            for half in [0, S::LANES] {
                // SAFETY: a square of elements from `first` on, of rows from `half` on, lies inside of the rows and of the panel.
                unsafe {
                    let to = panel.as_mut_ptr().add(first * width + half);
                    for i in 0..S::LANES {
                        s.store(to.add(i * width), s.load(rows.as_ptr().add((half + i) * step + first)));
                    }
                    s.transpose(to, width);
                }
            }
        }
        for (i, to) in panel.chunks_exact_mut(width).enumerate().skip(whole) {
            for (to, row) in to[lanes.clone()].iter_mut().zip(rows.chunks_exact(step)) {
                *to = row[i];
            }
        }
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl Checked for Transpose<'_> {}

/// A row is dealt out to panels, each of which gets so many elements as it is wide.
pub struct Deal<'a> {
    pub row: &'a [f32],
    /// Where the first panel's begin; those of the next do so `step` elements behind.
    pub panels: &'a mut [f32],
    pub step: usize,
}

impl Kernel for Deal<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let Deal { row, panels, step } = self;
        let width = panel_width::<S>();
        let whole = row.len() / width;
        assert!(whole == 0 || (whole - 1) * step + width <= panels.len(), "panels of a row");
        for panel in 0..whole {
            // SAFETY: two vectors lie inside of the row and of the panels.
            unsafe {
                let (from, to) = (row.as_ptr().add(panel * width), panels.as_mut_ptr().add(panel * step));
                s.store(to, s.load(from));
                s.store(to.add(S::LANES), s.load(from.add(S::LANES)));
            }
        }
        let rest = &row[whole * width..];
        if !rest.is_empty() {
            panels[whole * step..][..rest.len()].copy_from_slice(rest);
        }
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl Checked for Deal<'_> {}
