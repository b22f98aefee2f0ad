"""Ten thousand records: how long a resume scan and the tables of a report take, and how much memory.

    python experiments/reliability/many.py --records 10000 --out results/many

The records are made up (random numbers) in the shape of a leave-one-out study: 4 domains, 5 methods, 100 settings of
each, 5 seeds.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from clipdg.records.record import Record
from clipdg.storage.publish import digest

DOMAINS = ("art", "cartoon", "photo", "sketch")
METHODS = ("zero_shot", "linear_probe", "coop", "cocoop", "erm")


def record(number: int, rng: random.Random) -> Record:
    """The record of a made-up run: shift, seed, method and setting count up like the digits of ``number``."""
    rest, shift = divmod(number, 4)
    rest, seed = divmod(rest, 5)
    setting, method = divmod(rest, 5)
    target = DOMAINS[shift]
    sizes = dict(zip(DOMAINS, (2048, 2344, 1670, 3929), strict=True))
    splits = {d: {"in": n - n // 5, "out": n // 5} for d, n in sizes.items()}

    def metrics() -> dict[str, float | None]:
        names = ("top1", "top5", "mean_per_class", "worst_class", "ece", "nll")
        return {name: rng.random() for name in names}

    evaluations = [
        {"domain": d, "split": s, "step": 100, "num_images": n, "metrics": metrics()}
        for d in DOMAINS
        for s, n in (*splits[d].items(), *([("all", sizes[d])] if d == target else []))
    ]
    config: dict[str, Any] = {
        "benchmark": {"name": "pacs"},
        "backbone": {"name": "tiny", "weights": "openai", "precision": "fp32", "compile": False},
        "method": {"name": METHODS[method], "lr": 0.001 * (setting + 1), "epochs": 50, "batch_size": 32},
        "shift": target,
        "shots": 16,
        "holdout": 0.2,
        "seed": seed,
        "label": None,
    }
    content = {
        "schema": 1,
        "run_id": digest(["made up", number])[:16],
        "status": "done",
        "config": config,
        "seeded": ["seed"],
        "shift": {"name": target, "sources": [d for d in DOMAINS if d != target], "targets": [target]},
        "evaluations": evaluations,
        "weights": {"backbone": "tiny", "tag": "openai", "fingerprint": "f" * 64, "random": False, "provenance": {}},
        "data": {
            "benchmark": "pacs",
            "fingerprint": "d" * 64,
            "classes": ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"],
            "num_fit": 336,
            "num_images": splits,
            "fitted_on": None,
            "templates": ["a photo of a {}."],
            "notes": [],
            "citation": "",
        },
        "versions": {"clipdg": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.0"},
        "timing": {"seconds": 1.5},
        "predictions": None,
    }
    return Record(content)


def write(out: Path, count: int) -> None:
    """Written without the syncs of publish, which would take most of the time."""
    rng = random.Random(0)
    out.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        made = record(number, rng)
        (out / f"{made.run_id}.json").write_bytes(made.bytes())


SCAN = "from clipdg.records.folder import read_records; found, errors = read_records([Path(sys.argv[1])])"
TABLES = f"{SCAN}; from clipdg.report import tables; made = [tables.table(s) for s in tables.studies(found)]"


def measure(code: str, out: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds (on a machine that others use, the better measure) and peak MB of a fresh process."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", f"import sys; from pathlib import Path; {code}", str(out)])
    _, status, used = _wait(process)
    assert status == 0
    return time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int, resource.struct_rusage]:
    import os

    return os.wait4(process.pid, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if not given.out.exists():
        write(given.out, given.records)
    for name, code in (("scan, first", SCAN), ("scan, again", SCAN), ("scan and tables", TABLES)):
        seconds, cpu, megabytes = measure(code, given.out)
        print(f"{name}: {seconds:.2f} s, of which {cpu:.2f} s on a CPU, {megabytes:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
