/// Keys of one page of a [`KvCache`].
pub const PAGE_KEYS: usize = 16;

/// Keys and values of one sequence in one attention block.
///
/// They lie in pages of [`PAGE_KEYS`] positions, so growing never moves what is inside a page. A page holds,
/// for each key-value head in turn, the keys as `[k_dim][PAGE_KEYS]` (the same feature of all keys side by
/// side, the order in which scores are computed) and then the values as `[PAGE_KEYS][v_dim]`. Places beyond the
/// last position hold zeros.
#[derive(Clone, Debug)]
pub struct KvCache {
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    len: usize,
    pages: Vec<f32>,
}

impl KvCache {
    /// An empty cache for `kv_heads` heads with keys of `k_dim` and values of `v_dim` elements.
    pub fn new(kv_heads: usize, k_dim: usize, v_dim: usize) -> Self {
        KvCache::reusing(Vec::new(), kv_heads, k_dim, v_dim)
    }

    /// An empty cache that uses the memory of `pages`, whatever they hold.
    pub fn reusing(pages: Vec<f32>, kv_heads: usize, k_dim: usize, v_dim: usize) -> Self {
        KvCache { kv_heads, k_dim, v_dim, len: 0, pages }
    }

    /// The memory.
    pub fn into_pages(self) -> Vec<f32> {
        self.pages
    }

    /// Elements that a cache for `len` positions takes.
    pub fn elements(kv_heads: usize, k_dim: usize, v_dim: usize, len: usize) -> usize {
        len.div_ceil(PAGE_KEYS) * PAGE_KEYS * kv_heads * (k_dim + v_dim)
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
        self.k_dim
    }

    /// Elements of a value of one head.
    pub fn v_dim(&self) -> usize {
        self.v_dim
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        KvCache::elements(self.kv_heads, self.k_dim, self.v_dim, self.len) as u64 * 4
    }

    /// Elements of one page.
    pub fn page_len(&self) -> usize {
        self.kv_heads * (self.k_dim + self.v_dim) * PAGE_KEYS
    }

    /// Adds `n` positions of unspecified contents, and gives all pages to write them into.
    pub fn grow(&mut self, n: usize) -> &mut [f32] {
        let (before, page_len) = (self.len.div_ceil(PAGE_KEYS), self.page_len());
        self.len += n;
        let pages = self.len.div_ceil(PAGE_KEYS);
        self.pages.resize(pages * page_len, 0.0);
        // Memory that was used before holds anything; of new pages only the last may stay incomplete.
        if pages > before {
            self.pages[(pages - 1) * page_len..].fill(0.0);
        }
        &mut self.pages
    }

    /// Makes room for `n` more positions without moving anything later.
    pub fn reserve(&mut self, n: usize) {
        let pages = (self.len + n).div_ceil(PAGE_KEYS) * self.page_len();
        self.pages.reserve_exact(pages.saturating_sub(self.pages.len()));
    }

    /// All pages.
    pub fn pages(&self) -> &[f32] {
        &self.pages
    }

    /// Where in the pages the keys of head `h` of page `page` begin: `[k_dim][PAGE_KEYS]`.
    pub fn keys_at(&self, page: usize, h: usize) -> usize {
        page * self.page_len() + h * (self.k_dim + self.v_dim) * PAGE_KEYS
    }

    /// Where in the pages the values of head `h` of page `page` begin: `[PAGE_KEYS][v_dim]`.
    pub fn values_at(&self, page: usize, h: usize) -> usize {
        self.keys_at(page, h) + self.k_dim * PAGE_KEYS
    }

    /// Element `d` of the key of head `h` at position `j`.
    pub fn key(&self, h: usize, j: usize, d: usize) -> f32 {
        self.pages[self.keys_at(j / PAGE_KEYS, h) + d * PAGE_KEYS + j % PAGE_KEYS]
    }

    /// Element `d` of the value of head `h` at position `j`.
    pub fn value(&self, h: usize, j: usize, d: usize) -> f32 {
        self.pages[self.values_at(j / PAGE_KEYS, h) + j % PAGE_KEYS * self.v_dim + d]
    }

    /// Appends one position; `key` is `[kv_heads, k_dim]`, `value` is `[kv_heads, v_dim]`.
    pub fn push(&mut self, key: &[f32], value: &[f32]) {
        let j = self.len;
        self.grow(1);
        for h in 0..self.kv_heads {
            let at = self.keys_at(j / PAGE_KEYS, h) + j % PAGE_KEYS;
            for (d, x) in key[h * self.k_dim..(h + 1) * self.k_dim].iter().enumerate() {
                self.pages[at + d * PAGE_KEYS] = *x;
            }
            let at = self.values_at(j / PAGE_KEYS, h) + j % PAGE_KEYS * self.v_dim;
            self.pages[at..at + self.v_dim].copy_from_slice(&value[h * self.v_dim..(h + 1) * self.v_dim]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_is_found() {
        let (heads, k_dim, v_dim) = (2, 3, 5);
        let mut cache = KvCache::new(heads, k_dim, v_dim);
        let element = |j: usize, i: usize| (100 * j + i) as f32;
        for j in 0..2 * PAGE_KEYS + 1 {
            let key: Vec<f32> = (0..heads * k_dim).map(|i| element(j, i)).collect();
            let value: Vec<f32> = (0..heads * v_dim).map(|i| -element(j, i)).collect();
            cache.push(&key, &value);
        }
        assert_eq!(cache.len(), 2 * PAGE_KEYS + 1);
        for j in 0..cache.len() {
            for h in 0..heads {
                assert!((0..k_dim).all(|d| cache.key(h, j, d) == element(j, h * k_dim + d)));
                assert!((0..v_dim).all(|d| cache.value(h, j, d) == -element(j, h * v_dim + d)));
            }
        }
    }
}
