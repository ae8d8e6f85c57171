//! Images and sounds to the tensors that networks take, as `preprocessor_config.json` says.
//!
//! [`ImageProcessor`] turns an [`Image`] into `pixel_values`. What a processor does by default stands in
//! `processors.yaml`; settings that are not implemented are refused. Reading files needs the feature `image`.

#![forbid(unsafe_code)]

#[cfg(feature = "image")]
mod decode;
#[cfg(feature = "image")]
mod exif;
mod image;
mod resize;
mod settings;

pub use image::{Image, ImageProcessor};
pub use resize::{Filter, resize};

#[cfg(not(feature = "image"))]
fn not_built_in(what: &str, feature: &str, path: &std::path::Path) -> crate::Error {
    let message = format!(
        "`{}`: this smelt is built without the feature `{feature}`, which reads {what}",
        path.display()
    );
    crate::Error::new(crate::ErrorKind::Unsupported, message)
        .help("build it with `cargo install --path . --features image,audio`")
}
