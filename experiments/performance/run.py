"""python experiments/performance/run.py [CASE …]: measure them (all if none is named) and write the machine's table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import harness

RESULTS = harness.HERE.parents[1] / "results" / "performance"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", help="names of cases; a prefix that ends in * means all that begin so")
    parser.add_argument("--list", action="store_true", help="say what there is and measure nothing")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--small", action="store_true", help="tiny towers, to see that a case works; nothing is written"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=("time", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    setting = harness.Setting(given.device, given.small, given.seed)
    known = harness.cases()
    if given.list:
        for case in known.values():
            print(f"{case.name:32} {case.question}")
        return
    chosen = list(known) if not given.case else [n for asked in given.case for n in matching(asked, list(known))]
    if given.part:
        import torch

        torch.set_num_threads(given.threads)
        case = known[chosen[0]]
        time = given.part == "time"
        part = harness.run_turns(case, setting, given.turns) if time else harness.run_memory(case, given.side, setting)
        print(json.dumps(part))
        return
    missed = []
    for name in chosen:
        why = known[name].available(setting)
        if why:
            print(f"{name}: left out, {why}", flush=True)
            continue
        row = harness.measure(known[name], setting, given.turns, given.threads)
        print(harness.markdown([row]), flush=True)
        if not given.small:
            harness.publish(row, given.out)
            missed += [] if row["holds"] else [name]
    if missed:
        sys.exit(f"not what it should be: {', '.join(missed)}")


def matching(asked: str, names: list[str]) -> list[str]:
    found = [n for n in names if n == asked or (asked.endswith("*") and n.startswith(asked[:-1]))]
    if not found:
        sys.exit(f"no case '{asked}'; there are: {', '.join(names)}")
    return found


if __name__ == "__main__":
    main()
