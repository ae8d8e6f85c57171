"""The tables of docs/performance.md: smelt and its peers in the same runs, taking turns.

    python tables.py run --models DIR --smelt target/release/smelt --rust-peers PEER >> ../../docs/performance.jsonl
    python tables.py render ../../docs/performance.jsonl ../../docs/performance.md
    python tables.py render ../../docs/performance-avx2.jsonl ../../docs/performance.md --of avx2

`run` appends one JSON line for each program, type, number of threads and shape; DIR holds what make_models.py made,
PEER is the program of rust-peers/ (rten and candle, left out without it).
`render` replaces what stands between the markers of a table by the medians, smelt's in bold; `--of NAME` in the tables of that name.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# What is compared at which precision: types of smelt, and of its peers.
COLUMNS = {"float32": (("f32",), ("f32", "float32")), "16 bits": (("bf16",), ("bf16", "f16")),
           "products of bfloat16": (("bf16c",), ("bf16",)), "8 bits": (("q8",), ("int8", "q8_0")), "4 bits": (("q4",), ("q4_0",))}
PEERS = "torch-f32,torch-bf16,onnxruntime-f32,onnxruntime-int8,ctranslate2-float32,ctranslate2-int8,"
PEERS += "llamacpp-f32,llamacpp-bf16,llamacpp-q8_0"
RUNS = [("minilm", "encode", s) for s in ("1x8", "1x16", "1x128", "1x512", "8x128", "mixed32")]
RUNS += [("bert", "encode", s) for s in ("1x8", "1x16", "1x128", "1x512", "8x128")]
RUNS += [("gpt2", "decode", s) for s in ("decode:16:32", "prefill:512", "batch:8:16:16")]
RUNS += [("smollm", "decode", s) for s in ("decode:16:32", "decode:1024:32", "prefill:512", "batch:8:16:16")]
NAMES = {"smelt": "**smelt**", "smelt+packed": "**smelt** with `--packed`", "onnxruntime": "ONNX Runtime",
         "ctranslate2": "CTranslate2", "llamacpp": "llama.cpp", "torch": "PyTorch", "rten": "rten", "candle": "candle"}
PEERS_SHOWN = [name for name in NAMES if not name.startswith("smelt")]


def run(args):
    for model, kind, shape in RUNS:
        if args.only and args.only not in f"{model} {shape}":
            continue
        packed = os.path.join(args.models, f"{model}.packed")
        # Its first start, which writes the file, is not one of those that count.
        small = "decode:4:2" if kind == "decode" else "1x8"
        first = [args.smelt, "bench", "--model", os.path.join(args.models, model), "--dtype", "f32", "--packed", packed, small]
        subprocess.run(first, stdout=subprocess.DEVNULL, check=True)
        for threads in (1, 2):
            peers = PEERS + (",llamacpp-q4_0" if kind == "decode" else "")
            command = [sys.executable, os.path.join(HERE, f"bench_{kind}.py"), os.path.join(args.models, model),
                       "--threads", str(threads), "--shape", shape, "--runs", str(args.runs), "--contenders", peers]
            for dtype in ("f32", "bf16", "bf16c", "q8") + (("q4",) if kind == "decode" else ()):
                how = "bf16 --compute bf16" if dtype == "bf16c" else dtype
                worker = f"{args.smelt} bench --worker --model {{model}} --threads {{threads}} --dtype {how} {{shape}}"
                command += ["--extra", f"smelt-{dtype}={worker}"]
                if dtype == "f32":
                    command += ["--extra", f"smelt+packed-f32={worker} --packed {packed}"]
            if args.rust_peers and kind == "encode":
                for engine, dtype in (("rten", "f32"), ("rten", "int8"), ("candle", "f32")):
                    worker = f"{args.rust_peers} {engine} {{model}} {{threads}} {{shape}} {dtype}"
                    command += ["--extra", f"{engine}-{dtype}={worker}"]
            for line in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines():
                print(json.dumps({"model": model} | json.loads(line)), flush=True)


def shown(ms):
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def cell(lines, contender, types):
    """The fastest of a program at one precision."""
    found = [(l["ms_median"], l["dtype"]) for l in lines if l["contender"] == contender and l["dtype"] in types and "ms_median" in l]
    return min(found) if found else None


def by_work(lines):
    """Lines of the same model, shape and number of threads, in the order of RUNS."""
    order = [(model, shape) for model, _, shape in RUNS]
    found = {}
    for l in sorted(lines, key=lambda l: order.index((l["model"], l["shape"]))):
        found.setdefault((l["model"], l["shape"], l["threads"]), []).append(l)
    return found


def compared(lines):
    """At each precision smelt's milliseconds, and those of its peers with their names, the fastest first."""
    for own, types in COLUMNS.values():
        ours = cell(lines, "smelt", own)
        yield ours and ours[0], sorted((c[0], NAMES[p]) for p in PEERS_SHOWN if (c := cell(lines, p, types)))


def table(lines):
    rows = ["| work | threads | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for (model, shape, threads), here in by_work(lines).items():
        cells = []
        for ours, peers in compared(here):
            text = f"**{shown(ours)}**" if ours else ""
            if ours and peers:
                text += f" ({peers[0][0] / ours:.2f}x) · " + ", ".join(f"{name} {shown(ms)}" for ms, name in peers)
            cells.append(text)
        rows.append(f"| {model} {shape} | {threads} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def ratios(lines):
    """How many times as long the fastest of the others takes, on one and on two threads."""
    rows = ["| work | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    works = {}
    for (model, shape, _), here in by_work(lines).items():
        ratio = [f"{peers[0][0] / ours:.2f}" if ours and peers else "" for ours, peers in compared(here)]
        works.setdefault(f"{model} {shape}", []).append(ratio)
    for work, of_threads in works.items():
        cells = [" / ".join(filter(None, column)) for column in zip(*of_threads)]
        rows.append(f"| {work} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def starts(lines):
    """Cold starts, the median of those for all shapes, and peak memory, float32, two threads."""
    def is_start(l):
        return l["threads"] == 2 and l["dtype"] in COLUMNS["float32"][1] and "ms_median" in l

    rows = ["| model | program | start to first answer, ms | peak memory, MB |", "|---|---|---|---|"]
    for model, shape in (("minilm", "1x8"), ("gpt2", "decode:16:32")):
        for l in lines:
            if (l["model"], l["shape"]) == (model, shape) and is_start(l):
                cold = [o["cold_ms"] for o in lines if is_start(o) and (o["model"], o["contender"]) == (model, l["contender"])]
                rows.append(f"| {model} | {NAMES[l['contender']]} | {statistics.median(cold):.0f} | {l['rss_mb']} |")
    return "\n".join(rows)


def render(args):
    with open(args.results) as f:
        lines = [json.loads(line) for line in f if line.strip()]
    with open(args.page) as f:
        page = f.read()
    kinds = {model: kind for model, kind, _ in RUNS}
    parts = {kind: table([l for l in lines if kinds[l["model"]] == kind]) for kind in ("encode", "decode")}
    parts |= {"ratios": ratios(lines), "starts": starts(lines)}
    for name, text in parts.items():
        marker = f"{name} {args.of}" if args.of else name
        page = re.sub(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", lambda m: m[1] + text + "\n" + m[2], page, flags=re.S)
    with open(args.page, "w") as f:
        f.write(page)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(required=True)
    r = sub.add_parser("run")
    r.add_argument("--models", required=True)
    r.add_argument("--smelt", required=True)
    r.add_argument("--rust-peers", help="the program `peer` of rust-peers/: rten and candle, for encoders")
    r.add_argument("--runs", type=int, default=5)
    r.add_argument("--only", help="only runs whose `model shape` contains this")
    r.set_defaults(go=run)
    r = sub.add_parser("render")
    r.add_argument("results")
    r.add_argument("page")
    r.add_argument("--of", help="the name of another machine behind those of the tables in their markers")
    r.set_defaults(go=render)
    a = ap.parse_args()
    a.go(a)
