use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::DType;

/// Bytes that arrays share.
pub trait Storage: AsRef<[u8]> + Send + Sync {
    /// Says that no byte is needed for now: those of a mapped file need not stay in memory. Reading them again gives the same.
    fn release(&self) {}

    /// Says that from now on a few bytes here and there are all that is read.
    fn settle(&self) {}
}

/// Bytes that any number of owners share.
pub type Bytes = Arc<dyn Storage>;

impl Storage for Vec<u8> {}
impl Storage for &'static [u8] {}

/// An n-dimensional array as it is stored: little-endian elements of one type, row-major, in memory that
/// somebody else may own (a mapped file). Cloning shares the memory.
#[derive(Clone)]
pub struct Array {
    dtype: DType,
    shape: Vec<usize>,
    owner: Bytes,
    range: Range<usize>,
}

impl Array {
    /// The array of `shape` stored in bytes `range` of `owner`; none if the range lies outside of it or
    /// its length is not what shape and type ask for.
    pub fn new(dtype: DType, shape: Vec<usize>, owner: Bytes, range: Range<usize>) -> Option<Self> {
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        let bytes = elements.checked_mul(dtype.size())?;
        let held = (*owner).as_ref().get(range.clone())?.len();
        (held == bytes).then_some(Array { dtype, shape, owner, range })
    }

    /// A float32 array that owns its elements.
    ///
    /// # Panics
    /// If `data` does not hold the product of `shape`.
    pub fn from_f32(shape: Vec<usize>, data: &[f32]) -> Self {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        let range = 0..bytes.len();
        let elements = shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
        assert_eq!(Some(data.len()), elements, "elements of {shape:?}");
        Array { dtype: DType::F32, shape, owner: Arc::new(bytes), range }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.range.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The elements as stored.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }

    /// Elements `start .. start + out.len()` as float32. Integers are converted too.
    ///
    /// # Panics
    /// If the elements lie outside of the array.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.bytes()[start * size..(start + out.len()) * size];
        fn each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *to = read(*from);
            }
        }
        match self.dtype {
            DType::F32 => each(bytes, out, f32::from_le_bytes),
            DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            DType::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            DType::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
            DType::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
            DType::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
            DType::U8 | DType::Bool => each(bytes, out, |[b]| f32::from(b)),
        }
    }

    /// Says that nothing of the storage that the array is a part of is needed for now.
    pub fn release_storage(&self) {
        self.owner.release();
    }

    /// The same elements with axes of other sizes.
    ///
    /// # Panics
    /// If the sizes do not multiply to the same number.
    pub fn reshaped(&self, shape: Vec<usize>) -> Array {
        assert_eq!(shape.iter().product::<usize>(), self.len(), "elements of {shape:?}");
        Array { shape, ..self.clone() }
    }

    /// One item of the first axis; it shares the memory.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn item(&self, i: usize) -> Array {
        assert!(i < self.shape[0], "item {i} of {:?}", self.shape);
        let bytes = self.range.len() / self.shape[0];
        let start = self.range.start + i * bytes;
        Array { shape: self.shape[1..].to_vec(), range: start..start + bytes, ..self.clone() }
    }

    /// Some items of the first axis, as float32.
    ///
    /// # Panics
    /// If there is no such item, or no axis.
    pub fn items(&self, which: &[usize]) -> Array {
        let each = self.len() / self.shape[0].max(1);
        let mut data = vec![0.0; each * which.len()];
        for (to, item) in data.chunks_mut(each.max(1)).zip(which) {
            self.read_f32(item * each, to);
        }
        let mut shape = self.shape.clone();
        shape[0] = which.len();
        Array::from_f32(shape, &data)
    }

    /// All elements as float32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.read_f32(0, &mut out);
        out
    }

    /// All elements as 64-bit integers; none unless the type is an integer or bool.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let bytes = self.bytes();
        match self.dtype {
            DType::I64 => Some(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            DType::I32 => {
                Some(bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect())
            }
            DType::U8 | DType::Bool => Some(bytes.iter().map(|b| i64::from(*b)).collect()),
            _ => None,
        }
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({} {:?})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_widened() {
        let values = [0.0f32, 1.5, -2.25, 65504.0];
        let half: Vec<u8> = values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let array = Array::new(DType::F16, vec![2, 2], Arc::new(half), 0..8).unwrap();
        assert_eq!(array.to_f32(), values);
        let mut row = [0.0; 2];
        array.read_f32(2, &mut row);
        assert_eq!(row, [-2.25, 65504.0]);
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let bytes: Arc<Vec<u8>> = Arc::new(vec![0; 16]);
        let make = |shape: &[usize], range| Array::new(DType::F32, shape.to_vec(), bytes.clone(), range);
        assert!(make(&[4], 0..16).is_some());
        assert!(make(&[5], 0..20).is_none());
        assert!(make(&[3], 0..16).is_none());
        assert!(make(&[usize::MAX, 2], 0..16).is_none());
    }
}
