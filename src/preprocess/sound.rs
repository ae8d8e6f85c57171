use std::path::Path;

use super::settings::{Kind, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Config;
use crate::spec::Tree;
use crate::tensor::Array;
use crate::weights::Repository;

/// A sound of one channel.
#[derive(Clone, PartialEq)]
pub struct Sound {
    rate: u32,
    samples: Vec<f32>,
}

impl Sound {
    /// Samples that a sound may have.
    pub const MAX_SAMPLES: usize = 1 << 26;

    /// A sound of its samples, from -1 to 1, `rate` of them a second.
    ///
    /// # Errors
    /// `Input` when there are none, one is not a number, or the rate is 0.
    pub fn from_samples(rate: u32, samples: Vec<f32>) -> Result<Sound> {
        let wrong = if samples.is_empty() {
            "expected a sound of at least one sample, found none"
        } else if rate == 0 {
            "expected at least one sample a second, found 0"
        } else if samples.iter().any(|x| !x.is_finite()) {
            "expected samples that are numbers, found others"
        } else {
            return Ok(Sound { rate, samples });
        };
        Err(Error::new(ErrorKind::Input, wrong))
    }

    /// Reads a WAV file of one channel: whole numbers of 8, 16, 24 or 32 bits, or float32. Needs the feature `audio`.
    ///
    /// ```
    /// # fn main() -> smelt::Result<()> {
    /// # if cfg!(not(feature = "audio")) { return Ok(()); }
    /// let sound = smelt::Sound::open("tests/golden/media/speech.wav")?;
    /// assert_eq!((sound.rate(), sound.samples().len()), (16_000, 12_000));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Io` when it cannot be read; `Limit` when it has more than [`MAX_SAMPLES`](Self::MAX_SAMPLES); `Unsupported` for several
    /// channels and for compressed sounds, and without the feature; `Input` when it is broken.
    pub fn open(path: impl AsRef<Path>) -> Result<Sound> {
        #[cfg(feature = "audio")]
        return super::wav::open(path.as_ref());
        #[cfg(not(feature = "audio"))]
        Err(super::not_built_in("sounds", "audio", &format!("`{}`", path.as_ref().display())))
    }

    /// Decodes a WAV file that is in memory; otherwise as [`open`](Self::open). Needs the feature `audio`.
    ///
    /// # Errors
    /// `Limit` when it has more than [`MAX_SAMPLES`](Self::MAX_SAMPLES); `Unsupported` for several channels and for other samples, and
    /// without the feature; `Input` when it is broken, or no WAV file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Sound> {
        #[cfg(feature = "audio")]
        return Ok(super::wav::decode(bytes)?);
        #[cfg(not(feature = "audio"))]
        Err(super::not_built_in("sounds", "audio", &format!("a sound of {} bytes", bytes.len())))
    }

    /// Samples a second.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// The samples, from -1 to 1.
    pub fn samples(&self) -> &[f32] {
        &self.samples
    }
}

impl std::fmt::Debug for Sound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sound({} samples, {} a second)", self.samples.len(), self.rate)
    }
}

/// What sounds go through before a network hears them, as `preprocessor_config.json` says: spectra on the mel scale, of their
/// logarithms, of a window of fixed length. Computed in float64.
#[derive(Clone, Debug, PartialEq)]
pub struct SoundProcessor {
    pub(super) bins: usize,
    pub(super) rate: usize,
    pub(super) hop: usize,
    /// Samples of a frame.
    pub(super) frame: usize,
    /// Samples of the window.
    pub(super) window: usize,
    pub(super) padding: f32,
    pub(super) highest: f64,
}

impl SoundProcessor {
    /// The processor of a model directory.
    ///
    /// # Errors
    /// `Config` when the directory has no `preprocessor_config.json`, or a wrong one; `Unsupported` when it asks for what is not
    /// implemented.
    pub fn open(repository: &Repository, config: &Config) -> Result<SoundProcessor> {
        let settings = Settings::open(repository, config, Kind::Sounds)?;
        let rate = settings.count("sampling_rate", 1 << 20)?;
        let seconds = settings.count("chunk_length", Sound::MAX_SAMPLES)?;
        let Some(window) = seconds.checked_mul(rate).filter(|n| *n <= Sound::MAX_SAMPLES) else {
            let most = Sound::MAX_SAMPLES / rate;
            return Err(settings.unexpected("chunk_length", &format!("at most {most} seconds")));
        };
        let frame = settings.count("n_fft", 1 << 16)?;
        let hop = settings.count("hop_length", window)?;
        let bins = settings.count("feature_size", 1 << 10)?;
        if frame / 2 >= window {
            return Err(
                settings.unexpected("n_fft", &format!("less than twice the {window} samples of a sound"))
            );
        }
        let frames = window / hop;
        let fits = |n: usize, most: usize| frames.checked_mul(n).is_some_and(|n| n <= most);
        if !fits(bins, 1 << 24) || !fits(frame, 1 << 27) {
            return Err(settings.unexpected("hop_length", "fewer frames than these"));
        }
        let padding = settings.number("padding_value")? as f32;
        let highest = settings.number("highest_frequency")?;
        settings.only("padding_side", &[Tree::Text("right".into())])?;
        settings.only("dither", &[Tree::Int(0), Tree::Float(0.0)])?;
        settings.only("do_normalize", &[Tree::Bool(false)])?;
        settings.finish()?;
        if !padding.is_finite() {
            return Err(settings.unexpected("padding_value", "a smaller number"));
        }
        Ok(SoundProcessor { bins, rate, hop, frame, window, padding, highest })
    }

    /// Frames of a window.
    #[cfg(feature = "audio")]
    pub(super) fn frames(&self) -> usize {
        (self.window - self.frame % 2) / self.hop
    }

    /// Seconds that a sound may last.
    pub fn seconds(&self) -> f64 {
        self.window as f64 / self.rate as f64
    }

    /// Sounds as a network takes them: `[sounds, bins, frames]`. Needs the feature `audio`.
    ///
    /// # Errors
    /// `Input` when there are no sounds, one has another rate, or one is too long; `Unsupported` without the feature.
    pub fn input_features(&self, sounds: &[Sound]) -> Result<Array> {
        if sounds.is_empty() {
            return Err(Error::new(ErrorKind::Input, "expected at least one sound, found none"));
        }
        let convert =
            format!("convert it, for example with `ffmpeg -i FILE -ac 1 -ar {} out.wav`", self.rate);
        for sound in sounds {
            if sound.rate as usize != self.rate {
                let message =
                    format!("expected a sound of {} samples a second, found {}", self.rate, sound.rate);
                return Err(Error::new(ErrorKind::Input, message).help(convert));
            }
            if sound.samples.len() > self.window {
                let message = format!(
                    "expected a sound of at most {} seconds, found {:.1}",
                    self.seconds(),
                    sound.samples.len() as f64 / self.rate as f64
                );
                return Err(
                    Error::new(ErrorKind::Input, message).help("cut it into shorter ones, between words")
                );
            }
        }
        #[cfg(feature = "audio")]
        return super::spectrum::input_features(self, sounds);
        #[cfg(not(feature = "audio"))]
        Err(super::not_built_in("sounds", "audio", "this model"))
    }
}
