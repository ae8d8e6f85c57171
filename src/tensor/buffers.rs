use super::Tensor;

/// Memory that activations are made from and given back to, so that a forward pass allocates only once.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Vec<Vec<f32>>,
}

impl Buffers {
    /// A matrix `[rows, cols]` of unspecified contents: whoever takes it writes every element.
    pub fn take(&mut self, rows: usize, cols: usize) -> Tensor {
        let memory = self.take_memory(rows * cols);
        Tensor::reusing(rows, cols, memory)
    }

    /// Memory for `len` elements, of unspecified length and contents.
    pub fn take_memory(&mut self, len: usize) -> Vec<f32> {
        // The smallest that fits, else the largest, which then grows.
        let best = (0..self.free.len()).min_by_key(|&i| {
            let capacity = self.free[i].capacity();
            if capacity >= len { (0, capacity) } else { (1, usize::MAX - capacity) }
        });
        best.map(|i| self.free.swap_remove(i)).unwrap_or_default()
    }

    /// Gives the memory of `tensor` back.
    pub fn give(&mut self, tensor: Tensor) {
        self.give_memory(tensor.into_memory());
    }

    /// Gives memory back.
    pub fn give_memory(&mut self, memory: Vec<f32>) {
        self.free.push(memory);
    }
}
