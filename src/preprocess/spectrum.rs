//! Log-mel spectra.

use std::f64::consts::TAU;

use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

use super::sound::{Sound, SoundProcessor};
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Array;

/// The least power that a logarithm is taken of.
const FLOOR: f64 = 1e-10;

/// How far below the loudest moment the logarithms (to base 10) of the power reach.
const RANGE: f64 = 8.0;

/// `[sounds, bins, frames]`: `(max(log10 power, loudest - 8) + 4) / 4`.
pub(super) fn input_features(processor: &SoundProcessor, sounds: &[Sound]) -> Result<Array> {
    let filters = filters(processor);
    let frames = processor.frames();
    let mut features = Vec::with_capacity(sounds.len() * processor.bins * frames);
    for sound in sounds {
        let mut spectrum = powers(processor, sound, &filters)?; // [frames, bins]
        spectrum.iter_mut().for_each(|power| *power = power.max(FLOOR).log10());
        let least = spectrum.iter().copied().fold(f64::MIN, f64::max) - RANGE;
        for bin in 0..processor.bins {
            let moments = spectrum.iter().skip(bin).step_by(processor.bins);
            features.extend(moments.map(|x| ((x.max(least) + 4.0) / 4.0) as f32));
        }
    }
    Ok(Array::from_f32(vec![sounds.len(), processor.bins, frames], &features))
}

/// The power of each band at each moment: `[frames, bins]`. Frames are centred on their moments; before the first sample and
/// behind the last of the window the sound is mirrored.
fn powers(processor: &SoundProcessor, sound: &Sound, filters: &[Filter]) -> Result<Vec<f64>> {
    let (frame, window) = (processor.frame, processor.window);
    let half = frame / 2;
    let mirrored = |i: usize| {
        // `i` counts from `half` samples before the first.
        let at = half.abs_diff(i);
        let at = if at < window { at } else { 2 * (window - 1) - at };
        f64::from(sound.samples().get(at).copied().unwrap_or(processor.padding))
    };
    let hann: Vec<f64> = (0..frame).map(|i| 0.5 - 0.5 * (TAU * i as f64 / frame as f64).cos()).collect();
    let transform = RealFftPlanner::<f64>::new().plan_fft_forward(frame);
    let mut scratch = transform.make_scratch_vec();
    let mut samples = vec![0.0; frame];
    let mut spectrum = vec![Complex::default(); frame / 2 + 1];
    let frames = processor.frames();
    let mut powers = Vec::with_capacity(frames * processor.bins);
    for start in (0..frames).map(|i| i * processor.hop) {
        for (i, (sample, weight)) in samples.iter_mut().zip(&hann).enumerate() {
            *sample = mirrored(start + i) * weight;
        }
        transform
            .process_with_scratch(&mut samples, &mut spectrum, &mut scratch)
            .map_err(|e| Error::new(ErrorKind::Input, format!("no spectrum: {e}")))?;
        powers.extend(filters.iter().map(|filter| {
            let band = spectrum[filter.first..].iter().zip(&filter.weights);
            band.map(|(x, weight)| x.norm_sqr() * weight).sum::<f64>()
        }));
    }
    Ok(powers)
}

/// A band of frequencies: the first that counts, and the weights of it and those behind it.
#[derive(Debug)]
struct Filter {
    first: usize,
    weights: Vec<f64>,
}

/// Triangles that stand at equal distances on the mel scale, of equal area in hertz. Slaney, "Auditory Toolbox", 1998.
fn filters(processor: &SoundProcessor) -> Vec<Filter> {
    let (count, top) = (processor.bins, processor.highest);
    let corners: Vec<f64> = (0..count + 2).map(|i| hertz(mel(top) * i as f64 / (count + 1) as f64)).collect();
    let frequencies: Vec<f64> = {
        let (n, most) = (processor.frame / 2, (processor.rate / 2) as f64);
        (0..=n).map(|i| if n == 0 { 0.0 } else { most * i as f64 / n as f64 }).collect()
    };
    let filter = |i: usize| {
        let (low, middle, high) = (corners[i], corners[i + 1], corners[i + 2]);
        let weight = |f: &f64| ((f - low) / (middle - low)).min((high - f) / (high - middle)).max(0.0);
        let first = frequencies.iter().position(|f| weight(f) > 0.0).unwrap_or(0);
        let area = 2.0 / (high - low);
        let weights = frequencies[first..].iter().map(weight).take_while(|w| *w > 0.0).map(|w| w * area);
        Filter { first, weights: weights.collect() }
    };
    (0..count).map(filter).collect()
}

/// Where the mel scale turns from even steps to even ratios.
const TURN_HERTZ: f64 = 1000.0;
/// Hertz of a step before that.
const STEP_HERTZ: f64 = 200.0 / 3.0;
/// The logarithm of the ratio of a step behind it: 27 steps make a ratio of 6.4.
const STEP_RATIO: f64 = 1.856_297_990_365_626_3 / 27.0;

fn mel(hertz: f64) -> f64 {
    let even = hertz / STEP_HERTZ;
    if hertz < TURN_HERTZ { even } else { TURN_HERTZ / STEP_HERTZ + (hertz / TURN_HERTZ).ln() / STEP_RATIO }
}

fn hertz(mel: f64) -> f64 {
    let turn = TURN_HERTZ / STEP_HERTZ;
    if mel < turn { mel * STEP_HERTZ } else { TURN_HERTZ * ((mel - turn) * STEP_RATIO).exp() }
}
