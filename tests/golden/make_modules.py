#!/usr/bin/env python3
"""Write modules/FAMILY.safetensors: what each torch module takes and gives in the first case of an architecture.

    python make_modules.py                 # every file of architectures/
    python make_modules.py bert gpt2       # these

`tests/mutants.rs` needs one for every file of architectures/.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import reference  # noqa: E402


def model_types(text: str) -> list[str]:
    """The value of `model_type` under `match`."""
    found = re.search(r"^match:.*?model_type: *(\[.*?\]|[\w-]+)", text, re.M | re.S)
    if not found:
        raise SystemExit("a file of architectures/ matches no `model_type`")
    return re.findall(r"[\w-]+", found[1])


def main(only: list[str]) -> None:
    golden = ROOT / "tests/golden"
    cases = sorted(p.parent for p in golden.glob("*/*/reference.safetensors") if p.parts[-3] != "variants")
    types = {case: json.loads((case / "config.json").read_text())["model_type"] for case in cases}
    files = sorted((ROOT / "architectures").glob("*.yaml"))
    if unknown := set(only) - {file.stem for file in files}:
        raise SystemExit(f"not in architectures/: {', '.join(sorted(unknown))}")
    for file in files:
        if only and file.stem not in only:
            continue
        text = file.read_text()
        case = next(case for case in cases if types[case] in model_types(text))
        inputs = ["--ids", "5 9 40 7 33 12", "--ids", "17 3 8"]
        if "patches:" in text or "frames:" in text:
            inputs = ["--inputs", str(case / "reference.safetensors")]
        attention = json.loads((case / "reference.json").read_text())["attention"]
        out = golden / "modules" / f"{file.stem}.safetensors"
        sys.argv = ["reference.py", "--attention", attention, "--model", str(case), "--out", str(out), *inputs]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            reference.main()
        print(printed.getvalue().strip())


if __name__ == "__main__":
    main(sys.argv[1:])
