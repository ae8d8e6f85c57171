//! What is told of a shape.

use std::time::Instant;

use serde_json::{Value, json};

use smelt::backend::Work;
use smelt::cpu::Peaks;

use super::shape::Shape;
use crate::show::count;

/// Everything that is told of a shape.
pub struct Measured {
    pub name: String,
    pub backend: String,
    pub dtype: String,
    pub compute: &'static str,
    pub threads: usize,
    /// How many tokens, images or sounds one of the times stands for.
    pub amount: usize,
    pub times: Vec<f64>,
    /// Of a time, what is not spent in the backend.
    pub interpreter_ms: f64,
    pub work: Work,
    pub peaks: Peaks,
    pub cold: Option<Cold>,
}

impl Measured {
    fn ms(&self) -> f64 {
        median(self.times.iter().copied())
    }

    fn amount_per_s(&self) -> f64 {
        self.amount as f64 * 1e3 / self.ms()
    }

    fn gb_per_s(&self) -> f64 {
        self.work.bytes as f64 / self.ms() / 1e6
    }

    fn gflops_per_s(&self) -> f64 {
        self.work.flops as f64 / self.ms() / 1e6
    }

    pub fn json(&self, shape: &Shape) -> Value {
        json!({
            "contender": "smelt",
            "dtype": self.dtype,
            "compute": self.compute,
            "threads": self.threads,
            "shape": shape.to_string(),
            "ms_median": rounded(self.ms(), 3),
            "ms_min": rounded(self.times[0], 3),
            "ms_max": rounded(self.times[self.times.len() - 1], 3),
            "runs": self.times.len(),
            "cold_ms": self.cold.as_ref().map(|cold| rounded(cold.ms, 1)),
            "rss_mb": self.cold.as_ref().and_then(|cold| cold.rss_mb),
            (format!("{}_per_s", shape.unit())): rounded(self.amount_per_s(), 1),
            "gb_per_s": rounded(self.gb_per_s(), 2),
            "gflops_per_s": rounded(self.gflops_per_s(), 2),
            "peak_gb_per_s": rounded(self.peaks.bytes_per_s / 1e9, 2),
            "peak_gflops_per_s": rounded(self.peaks.flops_per_s / 1e9, 2),
            "region_us": rounded(self.peaks.region_s * 1e6, 3),
            "interpreter_us": rounded(self.interpreter_ms * 1e3, 1),
        })
    }

    pub fn text(&self, shape: &Shape) -> String {
        let (ms, min, max) = (self.ms(), self.times[0], self.times[self.times.len() - 1]);
        let (bytes, flops) = (self.peaks.bytes_per_s / 1e9, self.peaks.flops_per_s / 1e9);
        let share = |found: f64, peak: f64| 100.0 * found / peak;
        format!(
            "{shape}: {name}, {dtype}, compute {compute}, {backend}\n  \
             time        {ms:.3} ms ({min:.3} to {max:.3} in {runs}), {amount:.1} {unit}/s\n  \
             memory      {gb:.1} GB/s, {gb_share:.0} % of the {bytes:.1} that the machine reads\n  \
             arithmetic  {gf:.1} GFLOP/s, {gf_share:.0} % of the {flops:.1} that the machine computes\n  \
             threads     {region:.2} us to hand an empty loop to all of them and to come back\n  \
             interpreter {outside:.1} us, {outside_share:.2} % of the time: what is not spent in the backend\n",
            name = self.name,
            dtype = self.dtype,
            backend = self.backend,
            compute = self.compute,
            runs = count(self.times.len(), "run"),
            amount = self.amount_per_s(),
            unit = shape.unit(),
            gb = self.gb_per_s(),
            gb_share = share(self.gb_per_s(), bytes),
            gf = self.gflops_per_s(),
            gf_share = share(self.gflops_per_s(), flops),
            region = self.peaks.region_s * 1e6,
            outside = self.interpreter_ms * 1e3,
            outside_share = share(self.interpreter_ms, ms),
        )
    }
}

/// What it takes to have a first result.
pub struct Cold {
    pub ms: f64,
    pub rss_mb: Option<u64>,
}

impl Cold {
    pub fn since(started: Instant) -> Cold {
        Cold { ms: started.elapsed().as_secs_f64() * 1e3, rss_mb: rss_mb() }
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { (values[(n - 1) / 2] + values[n / 2]) / 2.0 }
}

/// A number with so many digits after the point.
pub fn rounded(x: f64, digits: i32) -> Value {
    let factor = 10f64.powi(digits);
    json!((x * factor).round() / factor)
}

/// The most memory that this process has had so far, in MB, where the system tells.
fn rss_mb() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.div_ceil(1024))
}
