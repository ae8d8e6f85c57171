#!/usr/bin/env python3
"""Train the small BERT of examples/models/language-id on message translations.

    pip install -r requirements.txt
    pip download --no-deps --no-binary :all: --dest packages Django==5.2.19 wagtail==8.0.1 \\
        django-allauth==65.21.1 django-cms==5.1.3 django-oscar==4.2.1 django-filer==3.6.0 \\
        chatterbot-corpus==1.3.3
    pip download --no-deps --dest packages sphinx==9.0.4 spacy==3.8.18 mnemonic==0.21
    python train_language_id.py --packages packages --out ../examples/models/language-id

The packages ship gettext catalogues: the same messages in many languages, under licences that
allow this use. English is the untranslated message. A message is held out in all languages at
once, so no held-out sentence has a translation among the training sentences. Against a vocabulary
of nothing but software, chatterbot-corpus adds conversations, spaCy lists of function words and
mnemonic lists of common words. The example sentences of spaCy, which are not about software, are a
second test. The tokenizer, the weights and the model card are written to --out. Data, split and
examples depend only on the versions and the seed; the trainer of the tokenizers library breaks ties
between equally frequent pieces at will, so a second run differs in a few pieces.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import html
import json
import math
import os
import re
import tarfile
import time
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the order in which pieces are counted

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

# --------------------------------------------------------------------------------------
# Languages
# --------------------------------------------------------------------------------------

# Label: (name, locale directories). A language needs about 1100 messages: az, eo, ga, hsb, hy, kk,
# ml, mk, ne, sr, sw, ta, te, ur and uz have fewer. Of pairs that differ too little to tell one
# sentence of the other only one is here: bs and sr_Latn (hr), nn (nb), ms (id), ast and ia (es).
LANGUAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ar": ("Arabic", ("ar",)),
    "be": ("Belarusian", ("be",)),
    "bg": ("Bulgarian", ("bg",)),
    "bn": ("Bengali", ("bn",)),
    "ca": ("Catalan", ("ca",)),
    "cs": ("Czech", ("cs",)),
    "cy": ("Welsh", ("cy",)),
    "da": ("Danish", ("da",)),
    "de": ("German", ("de", "de_DE")),
    "el": ("Greek", ("el",)),
    "en": ("English", ()),
    "es": ("Spanish", ("es", "es_AR", "es_MX", "es_CO", "es_ES")),
    "et": ("Estonian", ("et",)),
    "eu": ("Basque", ("eu",)),
    "fa": ("Persian", ("fa",)),
    "fi": ("Finnish", ("fi",)),
    "fr": ("French", ("fr", "fr_FR")),
    "gl": ("Galician", ("gl",)),
    "he": ("Hebrew", ("he", "he_IL")),
    "hi": ("Hindi", ("hi", "hi_IN")),
    "hr": ("Croatian", ("hr", "hr_HR")),
    "hu": ("Hungarian", ("hu", "hu_HU")),
    "id": ("Indonesian", ("id", "id_ID")),
    "is": ("Icelandic", ("is", "is_IS")),
    "it": ("Italian", ("it",)),
    "ja": ("Japanese", ("ja",)),
    "ka": ("Georgian", ("ka",)),
    "ko": ("Korean", ("ko", "ko_KR")),
    "lt": ("Lithuanian", ("lt", "lt_LT")),
    "lv": ("Latvian", ("lv",)),
    "mn": ("Mongolian", ("mn",)),
    "nb": ("Norwegian Bokmål", ("nb", "nb_NO")),
    "nl": ("Dutch", ("nl", "nl_NL")),
    "pl": ("Polish", ("pl",)),
    "pt": ("Portuguese", ("pt", "pt_BR", "pt_PT")),
    "ro": ("Romanian", ("ro", "ro_RO")),
    "ru": ("Russian", ("ru", "ru_RU")),
    "sk": ("Slovak", ("sk", "sk_SK")),
    "sl": ("Slovenian", ("sl", "sl_SI")),
    "sq": ("Albanian", ("sq",)),
    "sv": ("Swedish", ("sv", "sv_SE")),
    "th": ("Thai", ("th",)),
    "tr": ("Turkish", ("tr", "tr_TR")),
    "uk": ("Ukrainian", ("uk", "uk_UA")),
    "vi": ("Vietnamese", ("vi", "vi_VN")),
    "zh": ("Chinese", ("zh", "zh_CN", "zh_Hans", "zh_TW", "zh_Hant")),
}

# Catalogues: (distribution, licence). The order matters: of equal messages the first is kept.
SOURCES = [
    ("django", "BSD-3-Clause"),
    ("wagtail", "BSD-3-Clause"),
    ("django_allauth", "MIT"),
    ("django_cms", "BSD-3-Clause"),
    ("django_oscar", "BSD-3-Clause"),
    ("django_filer", "BSD-3-Clause"),
    ("sphinx", "BSD-2-Clause"),
]
CHAT = ("chatterbot_corpus", "BSD-3-Clause")
SPACY = ("spacy", "MIT")
WORDS = ("mnemonic", "MIT")
# Folders and files of the two. The Czech word list is without accents.
CHAT_NAMES = {
    "bengali": "bn", "chinese": "zh", "traditionalchinese": "zh", "dutch": "nl", "english": "en", "french": "fr",
    "german": "de", "hebrew": "he", "hindi": "hi", "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko",
    "persian": "fa", "portuguese": "pt", "russian": "ru", "spanish": "es", "swedish": "sv", "thai": "th", "turkish": "tr",
    "ukrainian": "uk",
}
WORDS_NAMES = {
    "english": "en", "french": "fr", "italian": "it", "korean": "ko", "portuguese": "pt", "russian": "ru", "spanish": "es",
    "turkish": "tr",
}

# Everyday sentences for a glance at the result; none is in the training text.
SAMPLES = {
    "This is a test": "en",
    "Good morning, how are you today?": "en",
    "Das ist ein Test": "de",
    "Ich möchte ein Stück Kuchen, bitte.": "de",
    "C'est la vie, mon ami.": "fr",
    "Où est la gare ?": "fr",
    "¿Dónde está la biblioteca?": "es",
    "Me gusta mucho leer por la noche.": "es",
    "Onde fica a praia mais próxima?": "pt",
    "Vorrei un bicchiere d'acqua": "it",
    "Waar is het station?": "nl",
    "Gdzie jest najbliższy sklep?": "pl",
    "Где находится библиотека?": "ru",
    "Як справи?": "uk",
    "Var ligger biblioteket?": "sv",
    "Missä on kirjasto?": "fi",
    "Hvor er toget?": "da",
    "Hol van a könyvtár?": "hu",
    "Kütüphane nerede?": "tr",
    "Kde je knihovna?": "cs",
    "Unde este biblioteca?": "ro",
    "Πού είναι η βιβλιοθήκη;": "el",
    "أين المكتبة؟": "ar",
    "איפה הספרייה?": "he",
    "पुस्तकालय कहाँ है?": "hi",
    "図書館はどこですか": "ja",
    "도서관이 어디에 있습니까?": "ko",
    "图书馆在哪里？": "zh",
    "Thư viện ở đâu?": "vi",
    "Di mana perpustakaan?": "id",
}

# --------------------------------------------------------------------------------------
# Reading packages
# --------------------------------------------------------------------------------------


def archive(packages: Path, name: str) -> Path:
    found = [p for p in packages.iterdir() if p.name.lower().startswith(name + "-") and p.suffix in (".gz", ".whl")]
    if len(found) != 1:
        raise SystemExit(f"{packages} must hold exactly one archive of {name}, it holds {len(found)}")
    return found[0]


def version(path: Path) -> str:
    return re.search(r"-(\d+(?:\.\d+)*)", path.name).group(1)


def members(path: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """(name, text) of the files whose name matches, in the order of the names."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as z:
            for n in sorted(z.namelist()):
                if re.search(pattern, n):
                    yield n, z.read(n).decode("utf-8")
    else:
        with tarfile.open(path) as t:
            for m in sorted(t.getmembers(), key=lambda m: m.name):
                if m.isfile() and re.search(pattern, m.name):
                    yield m.name, t.extractfile(m).read().decode("utf-8")


def messages(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(key, [(message, translation)]) of each entry of a .po file; fuzzy and obsolete ones left out."""
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        field = None
        fuzzy = False
        for line in block.splitlines():
            line = line.strip()
            if line.startswith("#"):
                fuzzy |= line.startswith("#,") and "fuzzy" in line
                continue
            m = re.match(r'(msg\w+(?:\[\d+\])?)\s+(".*")$', line)
            if m:
                field, line = m.group(1), m.group(2)
                fields[field] = ""
            if field and len(line) > 1 and line[0] == line[-1] == '"':
                fields[field] += re.sub(r"\\(.)", lambda e: {"n": " ", "t": " ", "r": ""}.get(e[1], e[1]), line[1:-1])
        key = fields.get("msgid")
        if not key or fuzzy:
            continue
        pairs = [(key, fields.get("msgstr") or fields.get("msgstr[0]", ""))]
        if "msgid_plural" in fields:
            last = max((k for k in fields if k.startswith("msgstr[")), default="msgstr")
            pairs.append((fields["msgid_plural"], fields.get(last, "")))
        yield key, pairs


# --------------------------------------------------------------------------------------
# Sentences
# --------------------------------------------------------------------------------------

PLACEHOLDERS = re.compile(
    r"%\(\w+\)[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]|%[-#0 +]*\d*(?:\.\d+)?[sdirfx%]|\{\{.*?\}\}|\{%.*?%\}|\{[^{}]*\}"
    r"|\$\w+\$?|</?[a-zA-Z][^<>]*>|https?://\S+|\S+@\S+\.\S+|:[\w:-]+:`[^`]*`|``[^`]*``|`[^`]*`"
    r"|(?<!\w)--?\w[\w-]*|\b\w+[_./\\]\w[\w./\\]*|#\w+"
)


def clean(text: str) -> str:
    """Running text only: without placeholders, markup, addresses and file names."""
    text = PLACEHOLDERS.sub(" ", html.unescape(text))
    text = re.sub(r"[*_=~^|<>\[\]{}\\%&#@]+", " ", text)
    text = re.sub(r"\(\s*\)|\"\s*\"|'\s*'|«\s*»|“\s*”|„\s*[“”]", " ", text)
    text = re.sub(r"\s+([.,;:!?])", r"\1", text)
    return re.sub(r"\s+", " ", text).strip(" -–—:;,./'\"")


def letters(text: str) -> int:
    return sum(c.isalpha() for c in text)


# Marks that a translation really is in the language's script (an untranslated one is not).
SCRIPTS = {
    "Cyrillic": (r"[\u0400-\u04ff]", "be bg mn ru uk"),
    "Arabic": (r"[\u0600-\u06ff]", "ar fa"),
    "Devanagari": (r"[\u0900-\u097f]", "hi"),
    "Bengali": (r"[\u0980-\u09ff]", "bn"),
    "Thai": (r"[\u0e00-\u0e7f]", "th"),
    "Georgian": (r"[\u10a0-\u10ff]", "ka"),
    "Greek": (r"[\u0370-\u03ff]", "el"),
    "Hebrew": (r"[\u0590-\u05ff]", "he"),
    "Hangul": (r"[\uac00-\ud7af]", "ko"),
    "Han": (r"[\u4e00-\u9fff]", "zh"),
    "Kana": (r"[\u3040-\u30ff\u4e00-\u9fff]", "ja"),
}
SCRIPT_OF = {lang: re.compile(p) for p, langs in SCRIPTS.values() for lang in langs.split()}


def plausible(lang: str, text: str) -> bool:
    n = letters(text)
    if n < 2:
        return False
    own = SCRIPT_OF.get(lang)
    if own:
        inside = len(own.findall(text))
    else:
        inside = sum(c.isalpha() and ord(c) < 0x370 or "\u1e00" <= c <= "\u1eff" for c in text)
    return inside >= 0.6 * n


def skeleton(key: str) -> str:
    """What near copies of a message have in common; the split goes by it."""
    return re.sub(r"[^a-z]", "", clean(key).lower())


def is_held_out(key: str) -> bool:
    return hashlib.sha256(skeleton(key).encode()).digest()[0] < 26  # one in ten


Texts = dict[str, list[str]]  # by language


def load(packages: Path) -> tuple[Texts, Texts, Texts, Texts, list[str]]:
    """Training and held-out sentences, the sentences of spaCy, function and common words; the sources used."""
    label = {d: code for code, (_, dirs) in LANGUAGES.items() for d in dirs}
    split = {False: defaultdict(dict), True: defaultdict(dict)}
    english: dict[str, None] = {}
    sources = []
    for name, licence in SOURCES:
        path = archive(packages, name)
        sources.append(f"{name.replace('_', '-')} {version(path)} ({licence})")
        for file, text in members(path, r"locale/\w+/LC_MESSAGES/\w+\.po$|locales/\w+/LC_MESSAGES/\w+\.po$"):
            directory = re.search(r"locales?/(\w+)/LC_MESSAGES", file).group(1)
            lang = label.get(directory)
            for key, pairs in messages(text):
                held = is_held_out(key)
                for source, translation in pairs:
                    src = clean(source)
                    # Some catalogues use short names for messages; English ones are sentences.
                    if re.search(r"[a-z] [a-z]", src) or src.istitle():
                        split[held]["en"].setdefault(src)
                    if lang is None:
                        continue
                    t = clean(translation)
                    if t.lower() != src.lower() and plausible(lang, t):
                        split[held][lang].setdefault(t)
    tests = {skeleton(t) or t for t in SAMPLES}
    for lang, t in conversations(packages, sources):
        if plausible(lang, t) and (skeleton(t) or t) not in tests:
            split[False][lang].setdefault(t)
    # The same words in two languages teach and test nothing.
    owners: dict[str, set[str]] = defaultdict(set)
    for part in split.values():
        for lang, texts in part.items():
            for t in texts:
                owners[t.lower()].add(lang)
    train = {c: [t for t in split[False][c] if len(owners[t.lower()]) == 1] for c in LANGUAGES}
    seen = {c: {skeleton(t) if t.isascii() else t.lower() for t in train[c]} for c in LANGUAGES}
    held = {c: [t for t in split[True][c] if len(owners[t.lower()]) == 1
                and (skeleton(t) if t.isascii() else t.lower()) not in seen[c]] for c in LANGUAGES}
    examples, words = spacy(packages, sources)
    path = archive(packages, WORDS[0])
    sources.append(f"{WORDS[0]} {version(path)} ({WORDS[1]}; word lists)")
    for file, text in members(path, r"wordlist/\w+\.txt$"):
        lang = WORDS_NAMES.get(Path(file).stem)
        if lang:
            words[lang] = words.get(lang, []) + unicodedata.normalize("NFC", text).split()
    return train, held, examples, words, sources


def conversations(packages: Path, sources: list[str]) -> Iterator[tuple[str, str]]:
    path = archive(packages, CHAT[0])
    sources.append(f"{CHAT[0].replace('_', '-')} {version(path)} ({CHAT[1]}; for training only)")
    for file, text in members(path, r"/data/\w+/\w+\.yml$"):
        lang = CHAT_NAMES.get(Path(file).parent.name)
        body = text.partition("conversations:")[2]
        for line in body.splitlines() if lang else ():
            m = re.match(r"\s*-\s+(?:-\s+)?(.*)$", line)
            if m:
                yield lang, clean(m.group(1))


def spacy(packages: Path, sources: list[str]) -> tuple[Texts, Texts]:
    """Example sentences and function words by language."""
    path = archive(packages, SPACY[0])
    sources.append(f"{SPACY[0]} {version(path)} ({SPACY[1]}; lists of function words)")
    examples: dict[str, list[str]] = {}
    words: dict[str, list[str]] = {}
    for file, text in members(path, r"spacy/lang/\w+/(examples|stop_words)\.py$"):
        lang = file.split("/")[2]
        if lang not in LANGUAGES:
            continue
        for node in ast.parse(text).body:
            if not isinstance(node, ast.Assign):
                continue
            name = node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""
            if name == "sentences":
                examples[lang] = [e.value for e in node.value.elts]
            elif name == "STOP_WORDS":
                # Written as set("""...""".split()) or as a set of strings.
                found = [e.value for e in ast.walk(node) if isinstance(e, ast.Constant) and isinstance(e.value, str)]
                split = {w for t in found for w in t.split()}
                words[lang] = sorted(w for w in split if plausible(lang, w) or len(w) == 1 and w.isalpha())
    return examples, words


# --------------------------------------------------------------------------------------
# Tokenizer
# --------------------------------------------------------------------------------------

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
POSITIONS = 128


def train_tokenizer(train: dict[str, list[str]], size: int, rng: np.random.Generator) -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    # Accents tell languages apart, so they stay.
    tok.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True
    )
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The same amount of text of each language, else the larger ones would take all pieces.
    sample = []
    for texts in train.values():
        taken = 0
        for i in rng.permutation(len(texts)):
            if taken > 45_000:
                break
            sample.append(texts[i])
            taken += len(texts[i])
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, limit_alphabet=2000, special_tokens=SPECIALS, continuing_subword_prefix="##",
        show_progress=False,
    )
    tok.train_from_iterator(sample, trainer)
    cls, sep = tok.token_to_id("[CLS]"), tok.token_to_id("[SEP]")
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    tok.decoder = decoders.WordPiece(prefix="##")
    tok.enable_truncation(POSITIONS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=POSITIONS,
    )


# --------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------

SPACELESS = {"zh", "ja", "th"}


class Sampler:
    """Endless training examples: windows of messages, runs of messages, bags of single words."""

    def __init__(self, train: Texts, words: Texts, rng: np.random.Generator):
        self.train, self.words, self.rng = train, words, rng
        self.codes = list(train)
        # Between one share for each language and one for each message.
        share = np.array([len(train[c]) ** 0.3 for c in self.codes])
        self.share = share / share.sum()
        self.weight = []  # longer messages hold more windows
        for c in self.codes:
            w = np.array([len(t) ** 0.5 for t in train[c]])
            self.weight.append(np.cumsum(w / w.sum()))

    def message(self, label: int) -> str:
        at = np.searchsorted(self.weight[label], self.rng.random())
        texts = self.train[self.codes[label]]
        return texts[min(int(at), len(texts) - 1)]

    def window(self, code: str, text: str) -> str:
        parts = list(text) if code in SPACELESS else text.split(" ")
        longest = 24 if code in SPACELESS else 12
        n = int(self.rng.integers(2 if code in SPACELESS else 1, longest + 1))
        if n >= len(parts):
            return text
        at = int(self.rng.integers(0, len(parts) - n + 1))
        return ("" if code in SPACELESS else " ").join(parts[at : at + n])

    def one(self) -> tuple[str, int]:
        rng = self.rng
        label = int(rng.choice(len(self.codes), p=self.share))
        code = self.codes[label]
        kind = rng.random()
        if kind < 0.2 and code in self.words:
            n = int(rng.integers(1, 8))
            picked = [self.words[code][i] for i in rng.integers(0, len(self.words[code]), n)]
            text = ("" if code in SPACELESS else " ").join(picked)
        elif kind < 0.27:  # several sentences, so that late positions are trained too
            text = ". ".join(self.message(label) for _ in range(int(rng.integers(2, 6))))
        elif kind < 0.67:
            text = self.window(code, self.message(label))
        else:
            text = self.message(label)
        if rng.random() < 0.5:  # closing marks were removed by clean()
            marks = "。！？" if code in ("zh", "ja") else ".!?"
            text += marks[int(rng.integers(0, 3))]
            if code == "es" and text[-1] in "!?":
                text = {"!": "¡", "?": "¿"}[text[-1]] + text
        if "'" in text and rng.random() < 0.5:
            text = text.replace("'", "’")
        return text, label


def padded(tok: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tok(texts, padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt"))


def train_model(
    model: BertForSequenceClassification, tok: PreTrainedTokenizerFast, sampler: Sampler, a: argparse.Namespace
) -> None:
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=a.lr, betas=(0.9, 0.98)
    )
    warmup = 200

    def rate(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / a.steps)))
        return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(opt, rate)
    began, mean, right, step, group = time.time(), 0.0, 0.0, 0, 8
    model.train()
    while step < a.steps:
        # Batches of similar length waste little on padding.
        rows = sorted((sampler.one() for _ in range(group * a.batch)), key=lambda x: len(x[0]))
        for i in sampler.rng.permutation(group):
            part = rows[i * a.batch : (i + 1) * a.batch]
            labels = torch.tensor([y for _, y in part])
            logits = model(**padded(tok, [t for t, _ in part])).logits
            loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.05)
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            schedule.step()
            mean += loss.item()
            right += (logits.argmax(-1) == labels).float().mean().item()
            step += 1
            if step % 200 == 0:
                took = time.time() - began
                print(f"step {step:5} loss {mean / 200:.3f} right {right / 200:.3f}  {took:.0f} s", flush=True)
                mean = right = 0.0


@torch.no_grad()
def predict(model: BertForSequenceClassification, tok: PreTrainedTokenizerFast, texts: list[str]) -> list[int]:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [0] * len(texts)
    for at in range(0, len(order), 128):
        part = order[at : at + 128]
        best = model(**padded(tok, [texts[i] for i in part])).logits.argmax(-1).tolist()
        for i, b in zip(part, best):
            out[i] = b
    return out


# --------------------------------------------------------------------------------------
# Saving
# --------------------------------------------------------------------------------------

CARD = """---
license: bsd-3-clause
language: [{codes}]
pipeline_tag: text-classification
library_name: transformers
---

# language-id

A BERT of {params:.2f} million parameters that tells which of {count} languages a text is written in. It is
small enough to be shipped with tests and examples.

## Use

Sequence classification; `id2label` holds language codes. Input is lower-cased, at most {positions} tokens.
The model always names one of its languages, so text in another language gets a wrong answer.
It was trained on user-interface messages: single words, names and slang are unreliable, and so
are close relatives (Danish and Norwegian, Czech and Slovak, Galician and Portuguese) in a few words.

## Data

Message translations from the gettext catalogues of these packages, fuzzy and untranslated entries left out,
and where said so other texts:

{sources}

The licences that ask for it are quoted in `LICENSE-DATA`. Placeholders, markup, addresses and file names were
removed, and texts that occur in two languages. {train_count:,} training texts, {held_count:,} held out.
One message in ten, by the hash of the English message, is held out in all languages at once.
Chinese is simplified and traditional together, Portuguese and Spanish are those of all countries.

Left out for lack of text: az, eo, ga, hsb, hy, kk, mk, ml, ne, sr, sw, ta, te, ur, uz. Left out because too
like another: bs and Serbian in Latin script (hr), nn (nb), ms (id), ast and ia (es).

## Training

`tools/train_language_id.py`, seed {seed}: WordPiece vocabulary of {vocab}, {layers} layers of width {width} with
{heads} heads; AdamW, {steps} steps of {batch} texts, cosine rate from {lr}{before}. Texts are whole messages, windows of words, runs of
messages and bags of single words. transformers {transformers}, torch {torch}, tokenizers {tokenizers}.
Stored as float16.

## Accuracy

Measured with the stored float16 weights in float32 arithmetic, on held-out messages by length in characters.

| text | texts | right |
|---|---|---|
{summary}

The example sentences of spaCy are not about software and no part of the training data.

{table}

Everyday sentences: {everyday}.
"""


def save_tokenizer(tok: PreTrainedTokenizerFast, out: Path) -> None:
    tok.save_pretrained(str(out))
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for key in ("is_local", "local_files_only"):  # how --init was loaded
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def license_texts(packages: Path) -> str:
    out = ["The model in this directory was trained on texts from these packages.\n"]
    for name, licence in [*SOURCES, CHAT, SPACY, WORDS]:
        path = archive(packages, name)
        found = list(members(path, r"(?i)^[^/]+/license(\.\w+)?$|\.dist-info/(licenses/)?license(\.\w+)?$"))
        title = f"{name.replace('_', '-')} {version(path)} ({licence})"
        out.append(f"{'=' * 78}\n{title}\n{'=' * 78}\n\n{found[0][1].strip()}\n")
    return "\n".join(out)


def percent(pairs: list[tuple[int, int]]) -> str:
    return f"{100 * sum(a == b for a, b in pairs) / len(pairs):.1f} %" if pairs else "-"


def report(
    model: BertForSequenceClassification, tok: PreTrainedTokenizerFast, held: Texts, examples: Texts
) -> dict[str, str]:
    codes = list(LANGUAGES)
    results: dict[str, list[tuple[int, int, int]]] = {}  # by language: (length, label, answer)
    for label, c in enumerate(codes):
        results[c] = [(len(t), label, p) for t, p in zip(held[c], predict(model, tok, held[c]))]
    own = {c: [(codes.index(c), p) for p in predict(model, tok, examples[c])] for c in codes if c in examples}
    rows, everything = [], [x for r in results.values() for x in r]
    for name, low, high in (("under 20", 0, 20), ("20 to 39", 20, 40), ("40 or more", 40, 10**9)):
        part = [(y, p) for n, y, p in everything if low <= n < high]
        rows.append(f"| held-out messages, {name} | {len(part)} | {percent(part)} |")
    part = [x for r in own.values() for x in r]
    rows.append(f"| spaCy example sentences | {len(part)} | {percent(part)} |")
    table = [
        "| code | language | held out | all | 40 or more characters | confused with | spaCy examples |",
        "|---|---|---|---|---|---|---|",
    ]
    for c, r in results.items():
        wrong: dict[str, int] = defaultdict(int)
        for _, y, p in r:
            if y != p:
                wrong[codes[p]] += 1
        worst = ", ".join(f"{w} {n}" for w, n in sorted(wrong.items(), key=lambda x: (-x[1], x[0]))[:3])
        long = [(y, p) for n, y, p in r if n >= 40]
        mine = f"{sum(a == b for a, b in own[c])} of {len(own[c])}" if c in own else ""
        table.append(
            f"| {c} | {LANGUAGES[c][0]} | {len(r)} | {percent([x[1:] for x in r])} "
            f"| {percent(long)} of {len(long)} | {worst} | {mine} |"
        )
    answers = predict(model, tok, list(SAMPLES))
    wrong = [f"“{t}” is taken for {codes[p]}" for (t, c), p in zip(SAMPLES.items(), answers) if codes[p] != c]
    right = len(SAMPLES) - len(wrong)
    everyday = f"{right} of {len(SAMPLES)} (`SAMPLES` in the script) right" + "".join("; " + w for w in wrong)
    return {"summary": "\n".join(rows), "table": "\n".join(table), "everyday": everyday}


@torch.no_grad()
def reference(model: BertForSequenceClassification, tok: PreTrainedTokenizerFast, path: Path) -> None:
    """Inputs and outputs for a test of another implementation; see tests/golden/README.md."""
    inputs = padded(tok, list(SAMPLES))
    tensors = {f"input.{k}": v for k, v in inputs.items()}
    tensors["output.logits"] = model(**inputs).logits
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path))
    texts = [{"text": t, "label": c} for t, c in SAMPLES.items()]
    path.with_suffix(".json").write_text(json.dumps({"batch_texts": texts}, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--packages", type=Path, required=True, help="directory of the downloaded packages")
    ap.add_argument("--out", type=Path, required=True, help="directory of the model")
    ap.add_argument("--init", type=Path, help="go on from this model, with its tokenizer")
    ap.add_argument("--before", default="", help="what the card says of the training of --init")
    ap.add_argument("--reference", type=Path, help="also write reference inputs and outputs to this file")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--vocab", type=int, default=12000)
    ap.add_argument("--width", type=int, default=96)
    ap.add_argument("--layers", type=int, default=3)
    ap.add_argument("--heads", type=int, default=3)
    ap.add_argument("--batch", type=int, default=96)
    ap.add_argument("--steps", type=int, default=3200)
    ap.add_argument("--lr", type=float, default=1.5e-3)
    a = ap.parse_args()

    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    rng = np.random.default_rng(a.seed)
    transformers.logging.set_verbosity_error()

    train, held, examples, words, sources = load(a.packages)
    if a.init:
        tok = PreTrainedTokenizerFast.from_pretrained(str(a.init))
    else:
        tok = train_tokenizer(train, a.vocab, rng)
    print(f"{sum(map(len, train.values()))} texts, {sum(map(len, held.values()))} held out, {len(tok)} pieces", flush=True)
    config = BertConfig(
        vocab_size=len(tok), hidden_size=a.width, num_hidden_layers=a.layers, num_attention_heads=a.heads,
        intermediate_size=4 * a.width, max_position_embeddings=POSITIONS, type_vocab_size=2, pad_token_id=0,
        id2label=dict(enumerate(LANGUAGES)), label2id={c: i for i, c in enumerate(LANGUAGES)},
        problem_type="single_label_classification",
    )
    model = BertForSequenceClassification(config)
    if a.init:
        start = BertForSequenceClassification.from_pretrained(str(a.init), dtype=torch.float32)
        model.load_state_dict(start.state_dict())
    train_model(model, tok, Sampler(train, words, rng), a)

    a.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(str(a.out))
    save_tokenizer(tok, a.out)
    (a.out / "LICENSE-DATA").write_text(license_texts(a.packages))

    # What is measured is what was stored.
    model = BertForSequenceClassification.from_pretrained(str(a.out), dtype=torch.float32).eval()
    card = CARD.format(
        codes=", ".join(LANGUAGES), count=len(LANGUAGES),
        params=sum(p.numel() for p in model.parameters()) / 1e6, positions=POSITIONS,
        sources="\n".join(f"- {s}" for s in sources), train_count=sum(map(len, train.values())),
        held_count=sum(map(len, held.values())), seed=a.seed, vocab=len(tok), layers=a.layers, width=a.width,
        heads=a.heads, steps=a.steps, before=a.before, batch=a.batch, lr=a.lr, transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0], tokenizers=tokenizers.__version__,
        **report(model, tok, held, examples),
    )
    (a.out / "README.md").write_text(card)
    if a.reference:
        reference(model, tok, a.reference)
    print(card[card.index("## Accuracy") :])


if __name__ == "__main__":
    main()
