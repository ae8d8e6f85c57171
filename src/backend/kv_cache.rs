use super::{Compute, Pair};

/// Keys of one page of a [`KvCache`].
pub const PAGE_KEYS: usize = 16;

/// Keys and values of one sequence in one attention block.
///
/// They lie in pages of [`PAGE_KEYS`] positions, so growing never moves what is inside a page. A page holds,
/// for each key-value head in turn, the keys as `[k_dim][PAGE_KEYS]` (the same feature of all keys side by
/// side, the order in which scores are computed) and then the values as `[PAGE_KEYS][v_dim]`. Places beyond the
/// last position hold what the memory held before.
///
/// With [`Compute::Bf16`] they are kept in bfloat16, as [`Pair`]s of numbers that are added up one after the other: keys as
/// `[k_dim / 2][PAGE_KEYS]` pairs of features, values as `[PAGE_KEYS / 2][v_dim]` pairs of positions, the last of either filled up with a
/// zero.
#[derive(Clone, Debug)]
pub struct KvCache {
    layout: HeadLayout,
    kv_heads: usize,
    len: usize,
    /// How many positions there will be, or 0.
    expected: usize,
    /// The pages, and behind them what the memory held before.
    pages: Vec<f32>,
}

/// How the keys and values of one head lie in a page.
#[derive(Clone, Copy, Debug)]
pub struct HeadLayout {
    /// What they are kept for.
    pub compute: Compute,
    /// Elements of a key.
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
}

impl HeadLayout {
    /// Words of 4 bytes that the keys take: numbers of float32 or pairs of bfloat16.
    pub fn key_words(&self) -> usize {
        match self.compute {
            Compute::F32 => self.k_dim * PAGE_KEYS,
            Compute::Bf16 => self.k_dim.div_ceil(2) * PAGE_KEYS,
        }
    }

    /// Words of keys and values.
    pub fn words(&self) -> usize {
        let values = match self.compute {
            Compute::F32 => self.v_dim * PAGE_KEYS,
            Compute::Bf16 => self.v_dim * (PAGE_KEYS / 2),
        };
        self.key_words() + values
    }

    /// Bytes of one position of so many heads.
    pub fn position_bytes(&self, heads: usize) -> u64 {
        (4 * heads * self.words() / PAGE_KEYS) as u64
    }

    /// Writes the key, `[k_dim]`, and the value, `[v_dim]`, of position `lane` of a page into the head's part of it.
    #[inline(always)]
    pub fn put(&self, head: &mut [f32], lane: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = head.split_at_mut(self.key_words());
        let column = keys[lane..].iter_mut().step_by(PAGE_KEYS);
        match self.compute {
            Compute::F32 => column.zip(key).for_each(|(to, from)| *to = *from),
            Compute::Bf16 => column.zip(key.chunks(2)).for_each(|(to, from)| {
                *to = Pair::new(from[0], from.get(1).copied().unwrap_or(0.0)).as_word();
            }),
        }
        self.put_value(values, lane, value);
    }

    /// Writes the value of position `lane` of a page.
    #[inline(always)]
    pub fn put_value(&self, values: &mut [f32], lane: usize, value: &[f32]) {
        match self.compute {
            Compute::F32 => values[lane * self.v_dim..][..self.v_dim].copy_from_slice(value),
            Compute::Bf16 => {
                let values = &mut values[lane / 2 * self.v_dim..][..self.v_dim];
                values.iter_mut().zip(value).for_each(|(to, from)| {
                    let pair = if lane.is_multiple_of(2) {
                        Pair::new(*from, 0.0)
                    } else {
                        Pair::of_word(*to).with(1, *from)
                    };
                    *to = pair.as_word();
                });
            }
        }
    }
}

impl KvCache {
    /// An empty cache for `kv_heads` heads with keys of `k_dim` and values of `v_dim` elements.
    pub fn new(compute: Compute, kv_heads: usize, k_dim: usize, v_dim: usize) -> Self {
        KvCache {
            layout: HeadLayout { compute, k_dim, v_dim },
            kv_heads,
            len: 0,
            expected: 0,
            pages: Vec::new(),
        }
    }

    /// An empty cache of the same kind that uses this memory, whatever it holds.
    pub fn in_memory(self, pages: Vec<f32>) -> Self {
        KvCache { len: 0, pages, ..self }
    }

    /// The memory.
    pub fn into_pages(self) -> Vec<f32> {
        self.pages
    }

    /// How the keys and values of one head lie in a page.
    pub fn layout(&self) -> HeadLayout {
        self.layout
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no positions.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Elements of a key of one head.
    pub fn k_dim(&self) -> usize {
        self.layout.k_dim
    }

    /// Elements of a value of one head.
    pub fn v_dim(&self) -> usize {
        self.layout.v_dim
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        4 * self.elements(0) as u64
    }

    /// Elements of one page.
    pub fn page_len(&self) -> usize {
        self.kv_heads * self.layout.words()
    }

    /// Elements that the pages of `n` more positions come to, with those that are there.
    ///
    /// # Panics
    /// If there are more than memory could have.
    pub fn elements(&self, n: usize) -> usize {
        let pages = self.len.checked_add(n).map(|len| len.div_ceil(PAGE_KEYS));
        // A cache must not say that it is longer than what it holds.
        let elements = pages.and_then(|pages| pages.checked_mul(self.page_len()));
        elements.unwrap_or_else(|| panic!("a cache of {} and {n} more positions is too large", self.len))
    }

    /// Adds `n` positions of unspecified contents, and gives all pages to write them into.
    ///
    /// # Panics
    /// As [`elements`](Self::elements).
    pub fn grow(&mut self, n: usize) -> &mut [f32] {
        let (before, len) = (self.elements(0), self.elements(n));
        if len > self.pages.len() {
            // Not twice as much, as vectors do, unless somebody counts on that.
            let more = if before == 0 { 0 } else { len / 8 };
            let expected = self.expected.div_ceil(PAGE_KEYS).saturating_mul(self.page_len());
            // The system has zeros that cost nothing until they are written.
            let mut pages = vec![0.0; expected.min(2 * len).max(len + more)];
            pages[..before].copy_from_slice(&self.pages[..before]);
            self.pages = pages;
        }
        self.len += n;
        &mut self.pages[..len]
    }

    /// Says how many positions there will be: what is there has to be moved less often then.
    pub fn expect(&mut self, positions: usize) {
        self.expected = positions;
    }

    /// All pages.
    pub fn pages(&self) -> &[f32] {
        &self.pages[..self.elements(0)]
    }

    /// Where in the pages the keys of head `h` of page `page` begin.
    pub fn keys_at(&self, page: usize, h: usize) -> usize {
        page * self.page_len() + h * self.layout.words()
    }

    /// Where in the pages the values of head `h` of page `page` begin.
    pub fn values_at(&self, page: usize, h: usize) -> usize {
        self.keys_at(page, h) + self.layout.key_words()
    }

    /// Element `d` of the key of head `h` at position `j`, which must be one of those that there are: places behind them hold
    /// anything.
    pub fn key(&self, h: usize, j: usize, d: usize) -> f32 {
        let at = self.keys_at(j / PAGE_KEYS, h) + j % PAGE_KEYS;
        match self.layout.compute {
            Compute::F32 => self.pages[at + d * PAGE_KEYS],
            Compute::Bf16 => Pair::of_word(self.pages[at + d / 2 * PAGE_KEYS]).numbers()[d % 2],
        }
    }

    /// Element `d` of the value of head `h` at position `j`, likewise.
    pub fn value(&self, h: usize, j: usize, d: usize) -> f32 {
        let (at, lane) = (self.values_at(j / PAGE_KEYS, h) + d, j % PAGE_KEYS);
        match self.layout.compute {
            Compute::F32 => self.pages[at + lane * self.layout.v_dim],
            Compute::Bf16 => Pair::of_word(self.pages[at + lane / 2 * self.layout.v_dim]).numbers()[lane % 2],
        }
    }

    /// Appends one position; `key` is `[kv_heads, k_dim]`, `value` is `[kv_heads, v_dim]`.
    ///
    /// # Panics
    /// If they are shorter.
    pub fn push(&mut self, key: &[f32], value: &[f32]) {
        let (layout, j) = (self.layout, self.len);
        self.grow(1);
        for h in 0..self.kv_heads {
            let at = self.keys_at(j / PAGE_KEYS, h);
            let key = &key[h * layout.k_dim..][..layout.k_dim];
            let value = &value[h * layout.v_dim..][..layout.v_dim];
            layout.put(&mut self.pages[at..at + layout.words()], j % PAGE_KEYS, key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_by_little() {
        let mut cache = KvCache::new(Compute::F32, 1, 4, 4);
        let (mut capacity, mut moves) = (0, 0);
        for i in 0..100 * PAGE_KEYS {
            cache.push(&[0.0; 4], &[0.0; 4]);
            let held = cache.pages().len();
            let most = if i < PAGE_KEYS { held } else { held + held / 8 };
            assert!(cache.pages.capacity() <= most, "{} of {held}", cache.pages.capacity());
            moves += usize::from(cache.pages.capacity() != capacity);
            capacity = cache.pages.capacity();
        }
        assert!(moves < 40, "{moves} times");
    }

    #[test]
    fn memory_for_what_is_expected_is_taken_in_few_steps() {
        let mut cache = KvCache::new(Compute::F32, 2, 4, 4);
        cache.expect(100);
        let mut taken = Vec::new();
        for _ in 0..100 {
            cache.push(&[1.0; 8], &[2.0; 8]);
            taken.push(cache.pages.capacity() / cache.page_len());
        }
        assert!(cache.pages().iter().all(|x| [0.0, 1.0, 2.0].contains(x)));
        assert_eq!((cache.key(1, 0, 3), cache.value(0, 99, 3)), (1.0, 2.0));
        taken.dedup();
        assert_eq!(taken, [2, 6, 7]); // pages of 16
    }

    #[test]
    #[should_panic(expected = "is too large")]
    fn more_positions_than_there_can_be_are_refused() {
        // Of 32 elements a page: the product would be 0.
        KvCache::new(Compute::F32, 1, 1, 1).grow(usize::MAX / 2 + 1);
    }

    #[test]
    fn what_is_pushed_is_found() {
        let (heads, k_dim, v_dim) = (2, 3, 5);
        for compute in [Compute::F32, Compute::Bf16] {
            // In bfloat16 whole numbers of up to 8 bits.
            let step = if compute == Compute::F32 { 100 } else { 7 };
            let element = |j: usize, i: usize| (step * j + i) as f32;
            let mut cache = KvCache::new(compute, heads, k_dim, v_dim);
            for j in 0..2 * PAGE_KEYS + 1 {
                let key: Vec<f32> = (0..heads * k_dim).map(|i| element(j, i)).collect();
                let value: Vec<f32> = (0..heads * v_dim).map(|i| -element(j, i)).collect();
                cache.push(&key, &value);
            }
            assert_eq!(cache.len(), 2 * PAGE_KEYS + 1);
            for j in 0..cache.len() {
                for h in 0..heads {
                    assert!(
                        (0..k_dim).all(|d| cache.key(h, j, d) == element(j, h * k_dim + d)),
                        "{compute:?}"
                    );
                    assert!(
                        (0..v_dim).all(|d| cache.value(h, j, d) == -element(j, h * v_dim + d)),
                        "{compute:?}"
                    );
                }
            }
            assert_eq!(cache.bytes(), 3 * (4 * heads * cache.layout().words()) as u64);
            // In memory that held something else: nothing but the position is written, pairs are filled up with zeros.
            let mut short = KvCache::new(compute, heads, k_dim, v_dim).in_memory(vec![f32::NAN; 1000]);
            short.push(&[3.0; 6], &[3.0; 10]);
            let written: Vec<f32> = short.pages().iter().copied().filter(|x| !x.is_nan()).collect();
            assert_eq!(written.len(), if compute == Compute::F32 { 16 } else { 14 }, "{compute:?}");
            let numbers = written.iter().flat_map(|word| match compute {
                Compute::F32 => vec![*word],
                Compute::Bf16 => Pair::of_word(*word).numbers().to_vec(),
            });
            assert_eq!(numbers.filter(|x| *x != 0.0).collect::<Vec<_>>(), [3.0; 16], "{compute:?}");
        }
    }
}
