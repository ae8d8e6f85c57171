//! Images and sounds to the tensors that networks take, as `preprocessor_config.json` says.
//!
//! [`ImageProcessor`] turns an [`Image`] into `pixel_values`, [`SoundProcessor`] a [`Sound`] into `input_features`. What a processor
//! does by default stands in `processors.yaml`; settings that are not implemented are refused. Reading files needs the features
//! `image` and `audio`.

#![forbid(unsafe_code)]

#[cfg(feature = "image")]
mod decode;
#[cfg(feature = "image")]
mod exif;
#[cfg(any(feature = "image", feature = "audio"))]
mod file;
mod image;
mod resize;
mod settings;
mod sound;
#[cfg(feature = "audio")]
mod spectrum;
#[cfg(feature = "audio")]
mod wav;

pub use image::{Image, ImageProcessor};
pub use resize::{Filter, resize};
pub use sound::{Sound, SoundProcessor};

/// The error where a feature was left out when the program was built.
#[cfg(not(all(feature = "image", feature = "audio")))]
fn not_built_in(what: &str, feature: &str, needed_by: &str) -> crate::Error {
    let message = format!(
        "{needed_by} needs the feature `{feature}`, which reads {what}; this program is built without it"
    );
    crate::Error::new(crate::ErrorKind::Unsupported, message)
        .help("build it with `cargo install --path . --features image,audio`")
}
