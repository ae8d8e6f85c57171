#!/usr/bin/env python3
"""Images and sounds, and what the processors of transformers make of them.

Writes `media/` (a few small files, `cases.json`, `expected.safetensors`) and the `preprocessor_config.json` of the fixtures that
see or hear. Needs pillow, and no torchvision: with it transformers resizes with torch. Run after `make_reference.py`.
"""

from __future__ import annotations

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
    "dinov2/base": dict(crop_size=dict(height=27, width=44), do_center_crop=True, do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, image_mean=MEAN, image_processor_type="BitImageProcessor", image_std=STD, resample=3, rescale_factor=0.00392156862745098, size=dict(shortest_edge=44)),
    "siglip/model": dict(do_convert_rgb=None, do_normalize=True, do_rescale=True, do_resize=True, image_mean=[0.5, 0.5, 0.5], image_processor_type="SiglipImageProcessor", image_std=[0.5, 0.5, 0.5], resample=3, rescale_factor=0.00392156862745098, size=dict(height=30, width=30)),
}
# The fixture that hears, and its settings: a window of one second.
HEARING = "whisper/conditional-generation"
EAR = dict(chunk_length=1, feature_extractor_type="WhisperFeatureExtractor", feature_size=10, hop_length=320, n_fft=400, n_samples=16000, nb_max_frames=50, padding_side="right", padding_value=0.0, return_attention_mask=False, sampling_rate=16000)
# Other settings, and how many frames are kept.
EARS: dict[str, tuple[dict[str, Any], int]] = {
    "80 bins": (dict(feature_extractor_type="WhisperFeatureExtractor"), 80),
    "128 bins": (dict(feature_extractor_type="WhisperFeatureExtractor", feature_size=128, dither=0.0), 40),
    "8 kHz": (dict(feature_extractor_type="WhisperFeatureExtractor", feature_size=20, sampling_rate=8000, n_fft=256, hop_length=100, chunk_length=2, padding_value=0.01), 160),
    "odd": (dict(feature_extractor_type="WhisperFeatureExtractor", feature_size=12, n_fft=401, hop_length=400, chunk_length=1), 39),
}
NAMES = dict(lang_to_id={"<|en|>": 300, "<|de|>": 301, "<|fr|>": 302}, task_to_id={"transcribe": 303, "translate": 304}, no_timestamps_token_id=310, is_multilingual=True, return_timestamps=False)
# Changes of generation_config.json, and options.
SPEECH: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "plain": (dict(max_length=24), {}),
    "positions": (dict(), {}),
    "heard": (dict(NAMES, max_length=20), {}),
    "told": (dict(NAMES, max_length=20), dict(language="de")),
    "translated": (dict(NAMES, max_length=20), dict(language="fr", task="translate")),
    "task alone": (dict(NAMES, max_length=20), dict(task="translate")),
    "forced": (dict(forced_decoder_ids=[[1, 17], [2, 33]], max_length=20), {}),
    "forced and heard": (dict(NAMES, forced_decoder_ids=[[1, None], [2, 304]], max_length=20), {}),
    "forced to the end": (dict(NAMES, lang_to_id=None, task_to_id=None, is_multilingual=False, forced_decoder_ids=[[1, 310]], max_length=18), {}),
    "in the file": (dict(NAMES, language="<|fr|>", task="transcribe", max_length=20), {}),
    "suppressed": (dict(NAMES, suppress_tokens=[], begin_suppress_tokens=[], max_length=20), dict(language="en")),
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
            if directory.endswith("/model"):
                case["labels"] = ["the cat sat on the mat", "a dog", "small birds sing"]
                pad = json.loads((HERE / directory / "tokenizer_config.json").read_text())["pad_token"]
                tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(HERE / directory / "tokenizer.json"), pad_token=pad)
                # As the pipeline zero-shot-image-classification has it.
                is_filled = model.config.model_type == "siglip"
                filled = dict(padding="max_length", max_length=model.config.text_config.max_position_embeddings) if is_filled else {}
                rows = [tokenizer(text, **filled)["input_ids"] for text in case["labels"]]
                with torch.no_grad():
                    found = [model(input_ids=torch.tensor([row]), **inputs) for row in rows]
                scores = torch.stack([of.logits_per_image[0, 0] for of in found])
                expected[f"{key}.probabilities"] = (scores.sigmoid() if is_filled else scores.softmax(0)).numpy()
                expected[f"{key}.image_embeds"] = found[0].image_embeds[0].numpy()
                expected[f"{key}.text_embeds"] = torch.stack([of.text_embeds[0] for of in found]).numpy()
            else:
                with torch.no_grad():
                    found = model(**inputs)
                if "logits" in found:
                    expected[f"{key}.probabilities"] = found.logits[0].softmax(0).numpy()
                else:
                    vector = found.image_embeds if "image_embeds" in found else found.pooler_output
                    expected[f"{key}.image_embeds"] = vector[0].numpy()
            cases.append(case)
    return cases


def write_sounds() -> None:
    rng = np.random.default_rng(11)
    t = np.arange(12000) / 16000
    loud = np.sin(2 * np.pi * (200 * t + 1500 * t**2)) * (t > 0.1) * (t < 0.6)
    sound = 0.4 * loud + 0.05 * np.sin(2 * np.pi * 3100 * t) * (t > 0.3) + 0.002 * rng.normal(size=t.size) * (t > 0.05)
    with wave.open(str(MEDIA / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())


def hear(settings: dict[str, Any], sound: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """The extractor, what it gives with torch in float32, and with numpy in float64."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(settings))
        found = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    features = found(sound, sampling_rate=found.sampling_rate, return_tensors="np")["input_features"].astype(np.float32)
    padded = np.full(found.n_samples, found.padding_value, dtype=np.float32)
    padded[: sound.size] = sound
    exact = found._np_extract_fbank_features([padded], "cpu").astype(np.float32)
    return found, features, exact


def sounds(expected: dict[str, np.ndarray]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    with wave.open(str(MEDIA / "speech.wav")) as file:
        sound = np.frombuffer(file.readframes(12000), dtype="<i2").astype(np.float32) / 32768
    (HERE / HEARING / "preprocessor_config.json").write_text(json.dumps(EAR, indent=2, sort_keys=True) + "\n")
    cases, speech = [], []
    for name, (settings, frames) in dict(EARS, fixture=(EAR, 50)).items():
        _, features, exact = hear(settings, sound)
        print(name, features.shape, "torch from numpy:", abs(features - exact).max())
        expected[f"{name}.float32"] = np.ascontiguousarray(features[:, :, :frames])
        expected[f"{name}.float64"] = np.ascontiguousarray(exact[:, :, :frames])
        cases.append(dict(name=name, settings=settings, frames=features.shape[2]))
    _, features, _ = hear(EAR, sound)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(HERE / HEARING / "tokenizer.json"))
    tokenizer.add_special_tokens({"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"})
    first: list[int] = []
    for name, (changes, options) in SPEECH.items():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(HERE / HEARING, folder, dirs_exist_ok=True)
            path = Path(folder, "generation_config.json")
            if name == "suppressed":  # what was chosen before, never, and what is chosen then, not first
                changes = dict(changes, suppress_tokens=sorted(set(first))[:6], begin_suppress_tokens=first[:1] + [5, 6, 7])
            settings = {k: v for k, v in dict(json.loads(path.read_text()), **changes).items() if v is not None and k != "_from_model_config"}
            path.write_text(json.dumps(settings))
            model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
            # Given all at once: the loop of the library leaves out the tokens at the beginning.
            with torch.no_grad():
                found = model.generate(torch.from_numpy(features), do_sample=False, **options)[0].tolist()
        # The ids that the text begins with may or may not be in what it returns.
        first = found
        words = [i for i in found if i < settings.get("no_timestamps_token_id", 10**9)]
        text = tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        print(name, len(found), found, repr(text))
        speech.append(dict(name=name, directory=HEARING, generation=settings, options=options, tokens=found, text=text))
    return cases, speech


def main() -> None:
    MEDIA.mkdir(exist_ok=True)
    write_images()
    expected: dict[str, np.ndarray] = {}
    cases: dict[str, Any] = dict(images=images(expected))
    write_sounds()
    cases["sounds"], cases["speech"] = sounds(expected)
    (MEDIA / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    save_file(expected, MEDIA / "expected.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
