#!/usr/bin/env python3
"""Images and sounds, and what the processors of transformers make of them.

Writes `media/` (a few small files, `cases.json`, `expected.safetensors`) and the `preprocessor_config.json` of the fixtures that
see or hear. Needs pillow, and no torchvision: with it transformers resizes with torch. Run after `make_reference.py`.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file
from transformers.image_utils import load_image

HERE = Path(__file__).parent
MEDIA = HERE / "media"
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

# Settings of fixtures, as the class named there is saved or used to be saved.
SEEING: dict[str, dict[str, Any]] = {
    "vit/image-classification": dict(do_normalize=True, do_rescale=True, do_resize=True, image_mean=[0.5, 0.4, 0.3], image_processor_type="ViTImageProcessor", image_std=[0.5, 0.6, 0.7], resample=2, rescale_factor=0.00392156862745098, size=dict(height=30, width=30)),
    "deit/image-classification": dict(crop_size=30, do_center_crop=True, do_normalize=True, do_resize=True, feature_extractor_type="DeiTFeatureExtractor", image_mean=MEAN, image_std=STD, resample=3, size=35),
    "dinov2/image-classification": dict(crop_size=dict(height=30, width=30), do_center_crop=True, do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, image_mean=MEAN, image_processor_type="BitImageProcessor", image_std=STD, resample=3, rescale_factor=0.00392156862745098, size=dict(shortest_edge=34)),
    "clip/model": dict(crop_size=30, do_center_crop=True, do_normalize=True, do_resize=True, feature_extractor_type="CLIPFeatureExtractor", image_mean=MEAN, image_std=STD, resample=3, size=30),
    "clip/vision-projection": dict(crop_size=dict(height=30, width=30), do_center_crop=True, do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, image_mean=MEAN, image_processor_type="CLIPImageProcessorFast", image_std=STD, resample=3, rescale_factor=0.00392156862745098, size=dict(shortest_edge=30), data_format="channels_first", device=None),
}
# Settings without a model.
PLAIN: dict[str, dict[str, Any]] = {
    "defaults": dict(image_processor_type="ViTImageProcessor"),
    "larger": dict(image_processor_type="ViTImageProcessor", size=dict(height=57, width=70), resample=3),
    "lanczos": dict(image_processor_type="ViTImageProcessor", size=dict(height=20, width=97), resample=1, do_rescale=False, do_normalize=False),
    "rescaled": dict(image_processor_type="BitImageProcessor", size=dict(shortest_edge=31), do_center_crop=False, do_normalize=False, rescale_factor=0.0078125),
    "cropped": dict(image_processor_type="BitImageProcessor", do_resize=False, crop_size=dict(height=40, width=33)),
}


def picture(width: int, height: int) -> np.ndarray:
    """Waves, noise and a rectangle: edges and overshoot in all colours."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    colours = [127 + 90 * np.sin(x / 7) + 30 * np.cos(y / 3.1), 127 + 100 * np.sin((x + 2 * y) / 11), x * y % 255]
    pixels = np.stack(colours, -1) + rng.normal(0, 12, (height, width, 3))
    pixels[height // 4 : height // 2, width // 3 : width // 2] = [250, 10, 20]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def smooth(width: int, height: int) -> np.ndarray:
    """More like a photograph: no noise, few sharp edges."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    colours = [130 + 100 * np.sin(x / 19) * np.cos(y / 23), 120 + 90 * np.sin((x + y) / 31), 100 + 1.1 * y]
    return np.clip(np.stack(colours, -1), 0, 255).astype(np.uint8)


def write_images() -> None:
    Image.fromarray(picture(61, 47)).save(MEDIA / "colours.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    Image.fromarray(smooth(96, 64)).save(MEDIA / "photo.jpg", quality=90, exif=exif)
    grey = Image.fromarray(picture(45, 52)[..., 1])
    grey.save(MEDIA / "grey.jpg", quality=90)
    Image.merge("LA", (grey, Image.new("L", grey.size, 255))).save(MEDIA / "opaque.png")
    alpha = Image.fromarray(picture(45, 52)[..., 0])
    Image.merge("LA", (grey, alpha)).save(MEDIA / "transparent.png")
    palette = Image.fromarray(picture(50, 40)).quantize(13)
    palette.save(MEDIA / "palette.png", bits=4)
    exif = Image.Exif()
    exif[0x0112] = 5
    Image.fromarray(picture(44, 42)).save(MEDIA / "turned.png", exif=exif)


def processor(settings: dict[str, Any], model_type: str) -> Any:
    """What `AutoImageProcessor` makes of a file with these settings, on Pillow."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(settings))
        Path(folder, "config.json").write_text(json.dumps({"model_type": model_type}))
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


def see(settings: dict[str, Any], model_type: str, image: str) -> np.ndarray:
    found = processor(settings, model_type)
    assert type(found).__name__.endswith("Pil"), type(found)
    return found(load_image(str(MEDIA / image)), return_tensors="np")["pixel_values"].astype(np.float32)


def model_of(directory: str) -> Any:
    config = json.loads((HERE / directory / "config.json").read_text())
    return getattr(transformers, config["architectures"][0]).from_pretrained(HERE / directory, attn_implementation="eager").eval()


def images(expected: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    cases = []
    every = ["colours.png", "photo.jpg", "grey.jpg", "opaque.png", "palette.png", "turned.png"]
    for name, settings in PLAIN.items():
        for image in every[:1] if name in ("defaults", "larger") else every:
            values = see(settings, "vit", image)
            key = f"{name}/{image}"
            cases.append(dict(name=key, image=image, settings=settings))
            # Of large ones every 28th row will do.
            expected[f"{key}.pixel_values"] = np.ascontiguousarray(values[:, :, :: 28 if name == "defaults" else 1])
    for directory, settings in SEEING.items():
        path = HERE / directory / "preprocessor_config.json"
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        model = model_of(directory)
        for image in every[:2]:
            key = f"{directory}/{image}"
            case = dict(name=key, image=image, directory=directory)
            values = see(settings, model.config.model_type, image)
            expected[f"{key}.pixel_values"] = values
            inputs = {"pixel_values": torch.from_numpy(values)}
            if "clip/model" == directory:
                case["labels"] = ["the cat sat on the mat", "a dog", "small birds sing"]
                tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(HERE / directory / "tokenizer.json"))
                rows = [tokenizer(text)["input_ids"] for text in case["labels"]]
                scores = []
                for row in rows:
                    with torch.no_grad():
                        scores.append(model(input_ids=torch.tensor([row]), **inputs).logits_per_image[0, 0])
                expected[f"{key}.probabilities"] = torch.stack(scores).softmax(0).numpy()
            else:
                with torch.no_grad():
                    found = model(**inputs)
                if "logits" in found:
                    expected[f"{key}.probabilities"] = found.logits[0].softmax(0).numpy()
                else:
                    expected[f"{key}.image_embeds"] = found.image_embeds[0].numpy()
            cases.append(case)
    return cases


def main() -> None:
    MEDIA.mkdir(exist_ok=True)
    write_images()
    expected: dict[str, np.ndarray] = {}
    cases: dict[str, Any] = dict(images=images(expected))
    (MEDIA / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    save_file(expected, MEDIA / "expected.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
