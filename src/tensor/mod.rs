//! Data: matrices of activations ([`Tensor`]), stored arrays of any element type ([`Array`]), and the
//! buffers that activations are made from ([`Buffers`]). Read [`Tensor`] first.

mod array;
mod buffers;
mod dtype;
mod spare;

use std::fmt;
use std::ops::Range;

pub use array::{Array, Bytes, Storage};
pub use buffers::Buffers;
pub use dtype::DType;
pub(crate) use spare::Spare;

/// A matrix of float32, row by row: what every block takes and gives.
///
/// A row belongs to a token (or to a whole sequence, after pooling); a column to a feature.
#[derive(Default)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    /// The elements, and behind them what the memory held before.
    data: Vec<f32>,
}

/// Elements of a matrix.
///
/// # Panics
/// If there are more than memory could have.
fn elements(rows: usize, cols: usize) -> usize {
    rows.checked_mul(cols).unwrap_or_else(|| panic!("a [{rows}, {cols}] matrix is too large"))
}

/// The first `len` elements of memory that is used again: what they hold is unspecified, and it grows if it has to. It does not
/// become shorter, so that it need not be filled when more of it is wanted the next time.
pub(crate) fn at_least<T: Copy + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

impl Tensor {
    /// A matrix of zeros, `[rows, cols]`.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Tensor { rows, cols, data: vec![0.0; elements(rows, cols)] }
    }

    /// The matrix `[rows, cols]` whose elements are `data`, row by row.
    ///
    /// # Panics
    /// If `data` does not hold `rows * cols` elements.
    pub fn from_vec(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), elements(rows, cols), "a [{rows}, {cols}] matrix");
        Tensor { rows, cols, data }
    }

    /// A matrix `[rows, cols]` of unspecified contents in the memory of `data`, which grows if it has to.
    fn reusing(rows: usize, cols: usize, mut data: Vec<f32>) -> Self {
        at_least(&mut data, elements(rows, cols));
        Tensor { rows, cols, data }
    }

    /// Whether the memory would hold another matrix of this size. A clone takes as much as it needs.
    pub(crate) fn is_in_larger_memory(&self) -> bool {
        self.data.capacity() >= 2 * self.data().len()
    }

    /// The memory, with elements in it that are the matrix's or of no meaning.
    fn into_memory(self) -> Vec<f32> {
        self.data
    }

    /// Number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All elements, row by row.
    #[inline]
    pub fn data(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }

    /// All elements, row by row, to be written.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.rows * self.cols]
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data()[i * self.cols..(i + 1) * self.cols]
    }

    /// Row `i`, to be written.
    ///
    /// # Panics
    /// If there is none.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        let cols = self.cols;
        &mut self.data_mut()[i * cols..(i + 1) * cols]
    }

    /// Some columns, as a matrix of their own.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn columns(&self, columns: Range<usize>) -> Tensor {
        let mut some = Tensor::zeros(self.rows, columns.len());
        for i in 0..self.rows {
            some.row_mut(i).copy_from_slice(&self.row(i)[columns.clone()]);
        }
        some
    }

    /// Whether every element is a number below infinity. Minus infinity is one: the score of what is ruled out.
    pub fn is_below_infinity(&self) -> bool {
        // Chunks are looked at to their end: the compiler makes vectors of that.
        self.data().chunks(1024).all(|chunk| chunk.iter().fold(true, |all, x| all & (*x < f32::INFINITY)))
    }

    /// The elements, row by row.
    pub fn into_vec(mut self) -> Vec<f32> {
        self.data.truncate(self.rows * self.cols);
        self.data
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Self {
        Tensor { rows: self.rows, cols: self.cols, data: self.data().to_vec() }
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        (self.rows, self.cols, self.data()) == (other.rows, other.cols, other.data())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor([{}, {}], {:?})", self.rows, self.cols, self.data())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "out of range")]
    fn memory_behind_the_last_row_is_no_row() {
        let memory = Tensor::reusing(1, 4, vec![1.0; 100]);
        memory.row(1);
    }

    #[test]
    #[should_panic(expected = "is too large")]
    fn more_elements_than_there_can_be_are_refused() {
        Tensor::zeros(1 << 40, 1 << 40);
    }
}
