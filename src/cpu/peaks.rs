//! What the machine can do at most: the yardstick for everything else.

#![forbid(unsafe_code)]

use std::time::Instant;

use super::Cpu;
use super::kernels::peaks::{Multiply, Read};

/// Speeds that no computation exceeds, measured with all threads of a backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Bytes read from memory per second.
    pub bytes_per_s: f64,
    /// Float32 multiplications and additions per second.
    pub flops_per_s: f64,
    /// Seconds that it takes to hand an empty loop to all threads and to come back.
    pub region_s: f64,
}

/// Elements that are read: 256 MiB, more than caches hold.
const ELEMENTS: usize = 64 << 20;

/// Elements that a thread reads at a time.
const CHUNK: usize = 256 << 10;

/// Empty loops that are measured together.
const REGIONS: u32 = 1000;

/// Measures [`Peaks`].
#[derive(Debug)]
pub struct Meter {
    data: Vec<f32>,
}

impl Default for Meter {
    fn default() -> Self {
        // Written, so that every page is there.
        Meter { data: vec![1.0; ELEMENTS] }
    }
}

impl Meter {
    /// Measures once, in about 30 ms.
    pub fn measure(&self, cpu: &Cpu) -> Peaks {
        let engine = &cpu.engine;
        let start = Instant::now();
        engine.pool.run(ELEMENTS / CHUNK, &|i| {
            let data = &self.data[i * CHUNK..(i + 1) * CHUNK];
            std::hint::black_box(engine.run(Read { data }));
        });
        let bytes_per_s = (ELEMENTS * 4) as f64 / start.elapsed().as_secs_f64();
        let flops = std::sync::atomic::AtomicU64::new(0);
        let start = Instant::now();
        engine.pool.run(8 * engine.pool.threads(), &|_| {
            let done = engine.run(Multiply { rounds: 50_000 });
            flops.fetch_add(done, std::sync::atomic::Ordering::Relaxed);
        });
        let flops_per_s = flops.into_inner() as f64 / start.elapsed().as_secs_f64();
        let start = Instant::now();
        for _ in 0..REGIONS {
            engine.pool.run(engine.pool.threads(), &|_| {});
        }
        let region_s = start.elapsed().as_secs_f64() / f64::from(REGIONS);
        Peaks { bytes_per_s, flops_per_s, region_s }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_those_of_a_computer() {
        let peaks = Meter::default().measure(&Cpu::new(Some(1)));
        assert!(peaks.bytes_per_s > 1e7 && peaks.bytes_per_s < 1e13, "{peaks:?}");
        assert!(peaks.flops_per_s > 1e7 && peaks.flops_per_s < 1e13, "{peaks:?}");
        assert!(peaks.region_s > 0.0 && peaks.region_s < 1.0, "{peaks:?}");
    }
}
