#!/usr/bin/env python3
"""Train the small GPT-2 of examples/models/prose on the prose of Django's documentation.

    pip install -r requirements.txt
    pip download --no-deps --no-binary :all: Django==5.2.19
    python train_prose.py --sdist django-5.2.19.tar.gz --out ../examples/models/prose

The source distribution holds the documentation as reStructuredText. Everything that is not
running text (code, directives, tables, lists of signatures) is dropped; the rest is split by
document into training and held-out text. The tokenizer, the weights and the model card are
written to --out. Data, split and batches depend only on the versions and the seed; the trainer of
the tokenizers library breaks ties between equally frequent pieces at will, so a second run may
differ in a few pieces.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import tarfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the order in which BPE merges are counted

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
PROMPTS = [
    "The template engine",
    "If you want to use a different database,",
    "This method returns",
    "Security is",
    "When a user logs in, Django",
]

# --------------------------------------------------------------------------------------
# Text
# --------------------------------------------------------------------------------------

# Inline markup, in the order in which it is undone.
INLINE = [
    (re.compile(r":[\w:+.-]+:`[^`<]*?([^`<>]+?)\s*<[^`>]*>`"), r"\1"),  # :ref:`text <target>`
    (re.compile(r":(?:ticket|djangoticket):`(\d+)`"), r"#\1"),
    (re.compile(r":[\w:+.-]+:`~[^`]*?([\w()]+)`"), r"\1"),  # :class:`~a.b.Name`
    (re.compile(r":[\w:+.-]+:`!?([^`]+)`"), r"\1"),
    (re.compile(r"`([^`<>]+?)\s*<[^`>]*>`__?"), r"\1"),  # `text <address>`_
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"\1"),
    (re.compile(r"\s*\[#?\w*\]_"), ""),  # footnotes
    (re.compile(r"\|(\w+)\|"), r"\1"),
    (re.compile(r"\\(.)"), r"\1"),
]
# Directives whose indented body is running text.
PROSE_DIRECTIVES = {
    "note", "admonition", "warning", "versionadded", "versionchanged", "deprecated", "seealso", "method", "class",
    "attribute", "function", "setting", "django-admin", "templatetag", "templatefilter", "classmethod", "data",
    "exception", "fieldlookup", "django-admin-option", "option", "describe", "topic", "tip", "important",
}


def blocks(text: str) -> list[list[str]]:
    """Runs of non-blank lines, without the bodies of code and of other directives."""
    out: list[list[str]] = []
    current: list[str] = []
    skip: int | None = None  # lines indented deeper than this are dropped
    for line in text.splitlines():
        body = line.strip()
        indent = len(line) - len(line.lstrip())
        if skip is not None:
            if not body or indent > skip:
                continue
            skip = None
        if body.startswith(".. "):
            name = re.match(r"\.\. ([\w-]+)::", body)
            if not name or name.group(1) not in PROSE_DIRECTIVES:
                skip = indent
            if current:
                out.append(current)
                current = []
            continue
        if not body or re.match(r"^(:[\w -]+:|[-*#] |\d+\. )", body):
            if current:
                out.append(current)
                current = []
            if not body or body.startswith(":"):
                continue
        # An indented line after one that is not indented starts a definition: another paragraph.
        if current and abs(indent - (len(current[-1]) - len(current[-1].lstrip()))) > 3:
            out.append(current)
            current = []
        current.append(line)
        if body.endswith("::"):  # a literal block follows
            skip = indent
    if current:
        out.append(current)
    return out


def paragraphs(text: str) -> list[str]:
    out = []
    for lines in blocks(text):
        p = " ".join(x.strip() for x in lines)
        p = re.sub(r"^([-*#]|\d+\.) +", "", p)
        p = p.replace("::", ":") if p.endswith("::") else p
        for pattern, to in INLINE:
            p = pattern.sub(to, p)
        p = re.sub(r"\s+", " ", p).replace(" -- ", " - ").strip()
        words = p.split()
        plain = sum(bool(re.fullmatch(r"[\"'(]?[A-Za-z][A-Za-z'’-]*[.,;:!?)\"']*", w)) for w in words)
        # Sentences only: headings, signatures, table rows and lines full of names are left out.
        if len(words) < 8 or plain < 0.8 * len(words) or not p[0].isupper() or p[-1] not in ".!?:":
            continue
        if re.search(r"[=+~^|]{3}|-{3}|>>>|[{}<>]|::|`", p):
            continue
        out.append(p)
    return out


def documents(sdist: Path) -> list[tuple[str, str]]:
    """(name, text) of each document, in the order of the names; repeated paragraphs are kept once."""
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    with tarfile.open(sdist) as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
        for m in members:
            name = m.name.partition("/")[2]
            if not (name.startswith("docs/") and name.endswith(".txt")) or name.startswith("docs/_"):
                continue
            kept = []
            for p in paragraphs(tar.extractfile(m).read().decode("utf-8")):
                if p not in seen:
                    seen.add(p)
                    kept.append(p)
            if kept:
                found.append((name, "\n".join(kept)))
    return found


def held_out(name: str) -> bool:
    """About one document in twenty; by its name, so that other documents do not matter."""
    return hashlib.sha256(name.encode()).digest()[0] < 13


# --------------------------------------------------------------------------------------
# Tokenizer
# --------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], size: int, positions: int) -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tok.train_from_iterator(texts, trainer)
    # Last id, as in the vocabulary of GPT-2.
    tok.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token=END, eos_token=END, unk_token=END, model_max_length=positions
    )


# --------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------


def pack(tok: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts in one row of ids, each ended by <|endoftext|>."""
    ids: list[int] = []
    for t in texts:
        ids += tok(t, verbose=False)["input_ids"] + [tok.eos_token_id]  # longer than the context: no warning
    return torch.tensor(ids)


@torch.no_grad()
def nats(model: GPT2LMHeadModel, ids: torch.Tensor, length: int) -> float:
    """Sum of the negative log-likelihood of ids[1:], in windows of which each repeats half of the last."""
    model.eval()
    total, done = 0.0, 1
    start = 0
    while done < len(ids):
        end = min(start + length, len(ids))
        row = ids[start:end]
        logp = model(row[None, :-1]).logits[0].log_softmax(-1)
        each = -logp.gather(1, row[1:, None])[:, 0]
        total += each[done - start - 1 :].sum().item()
        done = end
        start = max(0, end - length // 2)
    model.train()
    return total


def train(model: GPT2LMHeadModel, ids: torch.Tensor, a: argparse.Namespace, rng: np.random.Generator) -> None:
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=a.lr, betas=(0.9, 0.98)
    )
    warmup = 100

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (a.steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(opt, rate)
    began, mean = time.time(), 0.0
    model.train()
    for step in range(a.steps):
        # Windows at random places: unlike fixed cuts, no text is seen twice in the same position.
        at = rng.integers(0, len(ids) - a.length - 1, a.batch)
        rows = torch.stack([ids[i : i + a.length + 1] for i in at])
        logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        schedule.step()
        mean += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1:5} loss {mean / 100:.3f}  {time.time() - began:.0f} s", flush=True)
            mean = 0.0


# --------------------------------------------------------------------------------------
# Saving
# --------------------------------------------------------------------------------------

CARD = """---
license: bsd-3-clause
language: en
pipeline_tag: text-generation
library_name: transformers
---

# prose

A GPT-2 of {params:.2f} million parameters that writes text in the manner of software documentation. It is
small enough to be shipped with tests and examples. It knows nothing reliable: do not take what it
writes for documentation.

## Use

Text in, text out; a byte-level BPE tokenizer of {vocab} entries, context of {positions} tokens, end of
document `<|endoftext|>`.

## Data

The prose paragraphs of the {documents} documents in `docs/` of the source distribution of
Django {django} (BSD 3-Clause, see `LICENSE-DATA`). Code, directives, tables, signatures and paragraphs
with many names in them are left out; {train_chars:,} characters ({train_tokens:,} tokens) are used
for training. One document in about twenty, chosen by the hash of its name, is held out:
{held_documents} documents, {held_chars:,} characters ({held_tokens:,} tokens).

## Training

`tools/train_prose.py`, seed {seed}; {layers} layers of width {width} with {heads} heads, tied embeddings;
AdamW, {steps} steps of {batch} windows of {length} tokens (about {epochs:.0f} passes), cosine rate from {lr}, dropout
{dropout}{before}.
transformers {transformers}, torch {torch}, tokenizers {tokenizers}. Stored as float16.

## Held-out documents

Measured with the stored float16 weights in float32 arithmetic, in windows of {positions} tokens that
overlap by half.

| text | perplexity per token | bits per byte |
|---|---|---|
| held out | {held_ppl:.2f} | {held_bpb:.3f} |
| training | {train_ppl:.2f} | {train_bpb:.3f} |

Greedy continuations of {sample} tokens (the prompt is in bold). They soon go round in circles, as those of small
models do:

{samples}

Drawn from the 20 best tokens at temperature 0.8:

{drawn}
"""


def save_tokenizer(tok: PreTrainedTokenizerFast, out: Path) -> None:
    tok.save_pretrained(str(out))
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for key in ("is_local", "local_files_only"):  # how --init was loaded
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def license_text(sdist: Path) -> str:
    with tarfile.open(sdist) as tar:
        m = next(m for m in tar.getmembers() if re.fullmatch(r"[^/]+/LICENSE", m.name))
        return tar.extractfile(m).read().decode("utf-8")


@torch.no_grad()
def greedy(model: GPT2LMHeadModel, ids: list[int], steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens (end of text is not obeyed) and the logits each was taken from."""
    row = torch.tensor([ids])
    logits = []
    for _ in range(steps):
        logits.append(model(row).logits[0, -1])
        row = torch.cat([row, logits[-1].argmax().view(1, 1)], 1)
    return row[0, len(ids) :], torch.stack(logits)


@torch.no_grad()
def reference(model: GPT2LMHeadModel, tok: PreTrainedTokenizerFast, path: Path) -> None:
    """Inputs and outputs for a test of another implementation; see tests/golden/README.md."""
    rows = [tok(p)["input_ids"] for p in PROMPTS[:3]]
    width = max(map(len, rows))
    ids = torch.tensor([r + [tok.eos_token_id] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    tensors = {"input.input_ids": ids, "input.attention_mask": mask}
    tensors["output.logits"] = model(input_ids=ids, attention_mask=mask).logits.contiguous()
    tokens, logits = greedy(model, rows[0], 10)
    tensors |= {"generate.0.prompt": torch.tensor(rows[0]), "generate.0.tokens": tokens, "generate.0.logits": logits}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path))
    texts = {"batch_texts": PROMPTS[:3], "continuation": tok.decode(tokens)}
    path.with_suffix(".json").write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--sdist", type=Path, required=True, help="Django's source distribution, .tar.gz")
    ap.add_argument("--out", type=Path, required=True, help="directory of the model")
    ap.add_argument("--init", type=Path, help="go on from this model, with its tokenizer")
    ap.add_argument("--before", default="", help="what the card says of the training of --init")
    ap.add_argument("--reference", type=Path, help="also write reference inputs and outputs to this file")
    ap.add_argument("--dump", type=Path, help="write the cleaned training text here and stop")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--vocab", type=int, default=2048)
    ap.add_argument("--width", type=int, default=160)
    ap.add_argument("--layers", type=int, default=5)
    ap.add_argument("--heads", type=int, default=5)
    ap.add_argument("--positions", type=int, default=256)
    ap.add_argument("--length", type=int, default=256, help="tokens in a training window")
    ap.add_argument("--batch", type=int, default=12)
    ap.add_argument("--steps", type=int, default=2500)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--dropout", type=float, default=0.1)
    ap.add_argument("--sample", type=int, default=40, help="tokens of the continuations in the card")
    a = ap.parse_args()

    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    rng = np.random.default_rng(a.seed)

    docs = documents(a.sdist)
    held = [t for n, t in docs if held_out(n)]
    kept = [t for n, t in docs if not held_out(n)]
    if a.dump:
        a.dump.write_text("\n\n".join(kept))
        print(len(docs), len(held), sum(map(len, kept)), sum(map(len, held)))
        return
    if a.init:
        tok = PreTrainedTokenizerFast.from_pretrained(str(a.init))
    else:
        tok = train_tokenizer(kept, a.vocab, a.positions)
    train_ids, held_ids = pack(tok, kept), pack(tok, held)
    print(f"{len(docs)} documents, {len(train_ids)} training tokens, {len(held_ids)} held out", flush=True)

    config = GPT2Config(
        vocab_size=a.vocab, n_embd=a.width, n_layer=a.layers, n_head=a.heads, n_positions=a.positions,
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.eos_token_id,
        resid_pdrop=a.dropout, embd_pdrop=a.dropout,
        attn_pdrop=0.0,  # costs a third of the speed here
    )
    model = GPT2LMHeadModel(config)
    if a.init:
        model.load_state_dict(GPT2LMHeadModel.from_pretrained(str(a.init), dtype=torch.float32).state_dict())
    train(model, train_ids, a, rng)

    a.out.mkdir(parents=True, exist_ok=True)
    model.generation_config.max_new_tokens = 60
    model.half().save_pretrained(str(a.out))
    save_tokenizer(tok, a.out)
    (a.out / "LICENSE-DATA").write_text(license_text(a.sdist))

    # What is measured is what was stored.
    model = GPT2LMHeadModel.from_pretrained(str(a.out), dtype=torch.float32).eval()
    figures = {}
    for name, ids in (("held", held_ids), ("train", train_ids[: 4 * len(held_ids)])):
        total = nats(model, ids, a.positions)
        model.eval()
        size = len(tok.decode(ids, skip_special_tokens=True).encode())
        figures[f"{name}_ppl"] = math.exp(total / (len(ids) - 1))
        figures[f"{name}_bpb"] = total / math.log(2) / size
    samples, drawn = [], []
    for p in PROMPTS:
        tokens, _ = greedy(model, tok(p)["input_ids"], a.sample)
        samples.append("> **" + p + "**" + tok.decode(tokens).replace("\n", "\n>\n> "))
        row = tok(p, return_tensors="pt")
        row.pop("token_type_ids", None)
        tokens = model.generate(**row, max_new_tokens=a.sample, do_sample=True, temperature=0.8, top_k=20, top_p=1.0)
        new = tok.decode(tokens[0, row["input_ids"].shape[1] :])
        drawn.append("> **" + p + "**" + new.replace("\n", "\n>\n> "))
    card = CARD.format(
        params=sum(p.numel() for p in model.parameters()) / 1e6, vocab=a.vocab, positions=a.positions,
        documents=len(docs), django=re.search(r"(\d[\d.]*\d)", a.sdist.name).group(1), seed=a.seed,
        train_chars=sum(map(len, kept)), train_tokens=len(train_ids), held_documents=len(held),
        held_chars=sum(map(len, held)), held_tokens=len(held_ids), layers=a.layers, width=a.width, heads=a.heads,
        steps=a.steps, before=a.before, batch=a.batch, length=a.length, lr=a.lr,
        epochs=a.steps * a.batch * a.length / len(train_ids), dropout=a.dropout, transformers=transformers.__version__, torch=torch.__version__.split("+")[0],
        tokenizers=__import__("tokenizers").__version__, sample=a.sample, samples="\n\n".join(samples),
        drawn="\n\n".join(drawn), **figures,
    )
    (a.out / "README.md").write_text(card)
    if a.reference:
        reference(model, tok, a.reference)
    print(json.dumps(figures, indent=1))
    print(card[card.index("Greedy") :])


if __name__ == "__main__":
    main()
