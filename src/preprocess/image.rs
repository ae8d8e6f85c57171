use std::path::Path;

use super::resize::{Filter, resize};
use super::settings::{Kind, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Config;
use crate::spec::Tree;
use crate::tensor::Array;
use crate::weights::Repository;

/// An image of 8 bits for red, green and blue.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Image {
    /// Pixels that an image may have; Pillow warns of larger ones.
    pub const MAX_PIXELS: usize = 89_478_485;

    /// An image of its pixels, row by row from the top, each as red, green and blue.
    ///
    /// # Errors
    /// `Input` when there are no pixels, or not three bytes for each.
    pub fn from_rgb(width: usize, height: usize, pixels: Vec<u8>) -> Result<Image> {
        let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(3)).filter(|n| *n > 0);
        if bytes != Some(pixels.len()) {
            let message =
                format!("expected three bytes for each of {width} x {height} pixels, found {}", pixels.len());
            return Err(Error::new(ErrorKind::Input, message));
        }
        Ok(Image { width, height, pixels })
    }

    /// Reads a PNG or JPEG file, turned as its EXIF data say: what `load_image` of transformers gives. Needs the feature `image`.
    ///
    /// PNG files give the same pixels. JPEG leaves roundings to the decoder: values differ from Pillow's by a few of 255 at most, by
    /// 0.4 in the mean where colours are stored at half the resolution (`docs/images-and-sounds.md`).
    ///
    /// ```
    /// # fn main() -> smelt::Result<()> {
    /// # if cfg!(not(feature = "image")) { return Ok(()); }
    /// let image = smelt::Image::open("tests/golden/media/colours.png")?;
    /// assert_eq!((image.width(), image.height()), (61, 47));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Io` when it cannot be read; `Limit` when it is too large; `Unsupported` for formats that transformers may read
    /// otherwise, and without the feature; `Input` when it is broken.
    pub fn open(path: impl AsRef<Path>) -> Result<Image> {
        #[cfg(feature = "image")]
        return super::decode::open(path.as_ref());
        #[cfg(not(feature = "image"))]
        Err(super::not_built_in("images", "image", &format!("`{}`", path.as_ref().display())))
    }

    /// Decodes a PNG or JPEG file that is in memory; otherwise as [`open`](Self::open). Needs the feature `image`.
    ///
    /// # Errors
    /// `Limit` when it is too large; `Unsupported` for other formats and for what transformers may read otherwise, and without the
    /// feature; `Input` when it is broken.
    pub fn from_bytes(bytes: &[u8]) -> Result<Image> {
        #[cfg(feature = "image")]
        return Ok(super::decode::decode(bytes)?);
        #[cfg(not(feature = "image"))]
        Err(super::not_built_in("images", "image", &format!("an image of {} bytes", bytes.len())))
    }

    /// Pixels from left to right.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels from top to bottom.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, row by row from the top, each as red, green and blue.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The middle of it.
    fn centre(&self, width: usize, height: usize) -> Result<Image> {
        if width > self.width || height > self.height {
            // The two backends of transformers put the rest of the margin on different sides.
            let message = format!(
                "expected an image of at least {width} x {height} pixels to cut out its centre, found {} x {}",
                self.width, self.height
            );
            return Err(Error::new(ErrorKind::Input, message));
        }
        let (left, top) = ((self.width - width) / 2, (self.height - height) / 2);
        let rows = self.pixels.chunks_exact(self.width * 3).skip(top).take(height);
        let pixels = rows.flat_map(|row| &row[left * 3..(left + width) * 3]).copied().collect();
        Image::from_rgb(width, height, pixels)
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} x {})", self.width, self.height)
    }
}

/// What images go through before a network sees them, as `preprocessor_config.json` says.
///
/// The arithmetic is that of transformers' processors on Pillow, to the bit: with torchvision installed, transformers rounds
/// otherwise when it resizes.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    resize: Option<(Size, Filter)>,
    /// Height and width.
    crop: Option<(usize, usize)>,
    factor: Option<f64>,
    /// Mean and deviation of each colour.
    normal: Option<([f32; 3], [f32; 3])>,
}

/// The size that images get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// Height and width.
    Exact(usize, usize),
    /// The shorter edge; the other one keeps its proportion.
    ShortestEdge(usize),
}

impl ImageProcessor {
    /// The processor of a model directory.
    ///
    /// # Errors
    /// `Config` when the directory has no `preprocessor_config.json`, or a wrong one; `Unsupported` when it asks for what is not
    /// implemented.
    pub fn open(repository: &Repository, config: &Config) -> Result<ImageProcessor> {
        let settings = Settings::open(repository, config, Kind::Images)?;
        let resize = match settings.flag("do_resize")? {
            true => {
                let square = settings.flag("default_to_square")?;
                Some((size(&settings, "size", square)?, filter(&settings)?))
            }
            false => None,
        };
        let crop = match settings.flag("do_center_crop")? {
            true => match size(&settings, "crop_size", true)? {
                Size::Exact(height, width) => Some((height, width)),
                Size::ShortestEdge(_) => {
                    return Err(settings.unexpected("crop_size", "`height` and `width`"));
                }
            },
            false => None,
        };
        let factor = match settings.flag("do_rescale")? {
            true => Some(settings.number("rescale_factor")?),
            false => None,
        };
        let normal = match settings.flag("do_normalize")? {
            true => {
                let [mean, std] = [colours(&settings, "image_mean")?, colours(&settings, "image_std")?];
                if std.contains(&0.0) {
                    return Err(settings.unexpected("image_std", "numbers other than zero"));
                }
                Some((mean, std))
            }
            false => None,
        };
        // Images have three colours before this: `do_convert_rgb` changes nothing.
        settings.flag("do_convert_rgb")?;
        settings.only("do_pad", &[Tree::Bool(false)])?;
        // With it one class takes another size than `size`.
        settings.only("use_square_size", &[Tree::Bool(false)])?;
        settings.only("data_format", &[Tree::Text("channels_first".into())])?;
        settings.finish()?;
        Ok(ImageProcessor { resize, crop, factor, normal })
    }

    /// Images as a network takes them: `[images, 3, height, width]`.
    ///
    /// # Errors
    /// `Input` when there are no images, one is smaller than what is cut out of it, or they end up with different sizes; `Limit` when one
    /// becomes too large.
    pub fn pixel_values(&self, images: &[Image]) -> Result<Array> {
        let mut shape = Vec::new();
        let mut values = Vec::new();
        for image in images {
            let image = self.sized(image)?;
            let found = vec![3, image.height, image.width];
            if !shape.is_empty() && shape != found {
                let message = format!("expected images of one size {shape:?}, found one of {found:?}");
                return Err(Error::new(ErrorKind::Input, message).help("give them one at a time"));
            }
            shape = found;
            for colour in 0..3 {
                let table = self.table(colour);
                values.extend(image.pixels.iter().skip(colour).step_by(3).map(|x| table[usize::from(*x)]));
            }
        }
        if images.is_empty() {
            return Err(Error::new(ErrorKind::Input, "expected at least one image, found none"));
        }
        shape.insert(0, images.len());
        Ok(Array::from_f32(shape, &values))
    }

    fn sized(&self, image: &Image) -> Result<Image> {
        let resized = match self.resize {
            Some((Size::Exact(height, width), filter)) => resize(image, width, height, filter)?,
            Some((Size::ShortestEdge(edge), filter)) => {
                let (short, long) = (image.width.min(image.height), image.width.max(image.height));
                let long = (edge as u128 * long as u128 / short as u128).try_into().unwrap_or(usize::MAX);
                let (width, height) = if image.width <= image.height { (edge, long) } else { (long, edge) };
                resize(image, width, height, filter)?
            }
            None => image.clone(),
        };
        match self.crop {
            Some((height, width)) => resized.centre(width, height),
            None => Ok(resized),
        }
    }

    /// What the network sees for each of the 256 values of a colour.
    fn table(&self, colour: usize) -> [f32; 256] {
        std::array::from_fn(|x| {
            let x = self.factor.map_or(x as f32, |factor| (x as f64 * factor) as f32);
            self.normal.map_or(x, |(mean, std)| (x - mean[colour]) / std[colour])
        })
    }
}

fn filter(settings: &Settings) -> Result<Filter> {
    let found = settings.get("resample");
    let number = if let Some(Tree::Int(number)) = found { Filter::from_number(*number) } else { None };
    number.ok_or_else(|| settings.unexpected("resample", "1 (Lanczos), 2 (bilinear) or 3 (bicubic)"))
}

fn size(settings: &Settings, key: &str, square: bool) -> Result<Size> {
    let wrong = || settings.unexpected(key, "`height` and `width`, `shortest_edge`, or a number");
    let tree = settings.get(key).ok_or_else(wrong)?;
    let edge = |tree: &Tree| match tree {
        Tree::Int(n) if (1..=Image::MAX_PIXELS as i64).contains(n) => Ok(*n as usize),
        _ => Err(wrong()),
    };
    let names: Vec<&str> = tree.entries().iter().map(|(name, _)| name.as_str()).collect();
    match (tree, &names[..]) {
        (Tree::Int(_), _) if square => Ok(Size::Exact(edge(tree)?, edge(tree)?)),
        (Tree::Int(_), _) => Ok(Size::ShortestEdge(edge(tree)?)),
        (Tree::Map(entries), ["shortest_edge"]) => Ok(Size::ShortestEdge(edge(&entries[0].1)?)),
        (Tree::Map(entries), ["height", "width"]) => {
            Ok(Size::Exact(edge(&entries[0].1)?, edge(&entries[1].1)?))
        }
        (Tree::Map(entries), ["width", "height"]) => {
            Ok(Size::Exact(edge(&entries[1].1)?, edge(&entries[0].1)?))
        }
        _ => Err(wrong()),
    }
}

fn colours(settings: &Settings, key: &str) -> Result<[f32; 3]> {
    let wrong = || settings.unexpected(key, "a list of three numbers");
    let Some(Tree::List(items)) = settings.get(key) else { return Err(wrong()) };
    let number = |item: &Tree| match item {
        Tree::Int(x) => Ok(*x as f32),
        Tree::Float(x) if (*x as f32).is_finite() => Ok(*x as f32),
        _ => Err(wrong()),
    };
    let numbers: Vec<f32> = items.iter().map(number).collect::<Result<_>>()?;
    numbers.try_into().map_err(|_| wrong())
}
