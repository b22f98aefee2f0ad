"""Paired timings: the same work done in several ways, by turns, in one process on one machine.

A case is a file's worth of ways ("sides") to the same answer, the first of them what the others are compared with. All
sides run by turns in one process (A B A B …), so that a slow minute of a shared machine slows all of them; ratios are
medians of the turns' ratios. On a CPU they are of CPU seconds, children included; on a GPU of wall seconds, since there
the CPU only waits. Peak memory is each side's own process's, above what it had when everything was loaded.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSIONS = ("torch", "open_clip_torch", "transformers", "scikit-learn", "lightning", "numpy")
MIB = 2**20

Step = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """Where a case runs. ``small``: towers and counts that show in seconds whether a case works at all."""

    device: str = "cpu"
    small: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Side:
    """One way to the answer: ``prepare`` loads all that is not timed and returns what is.

    ``scale``: what was run is this part of the whole; its seconds are divided by it, and the table says so.
    ``memory_scale``: the same for its memory, where that grows with the work. ``turns``: at most so many, for a side
    that takes minutes. ``memory``: False to leave its process out.
    """

    name: str
    prepare: Callable[[Setting], Step]
    scale: float = 1.0
    memory_scale: float = 1.0
    turns: int | None = None
    memory: bool = True


@dataclass(frozen=True)
class Case:
    """``facts``: what the sides' outcomes, in order, say about each other ("largest difference"), by name.

    ``limits``: the largest value that a fact may have. ``at_least``: the ratio of the first side to the last that the
    case is there to show, and ``memory_at_least`` that of their peak memories.
    """

    name: str
    question: str
    sides: tuple[Side, ...]
    facts: Callable[[Sequence[Any]], Mapping[str, float]] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    at_least: float | None = None
    memory_at_least: float | None = None
    available: Callable[[Setting], str | None] = lambda setting: None  # why it cannot run here


def cases() -> dict[str, Case]:
    """Every case of every file in cases/."""
    found: dict[str, Case] = {}
    for path in sorted((HERE / "cases").glob("[!_]*.py")):
        for case in import_module(f"cases.{path.stem}").CASES:
            assert case.name not in found, case.name
            found[case.name] = case
    return found


def measure(case: Case, setting: Setting, turns: int, threads: int) -> dict[str, Any]:
    """The case's row, each part of it from processes of its own."""
    common = ["--device", setting.device, "--seed", str(setting.seed), "--threads", str(threads)]
    common += ["--small"] if setting.small else []
    row = _child(["--part", "time", "--turns", str(turns), *common, case.name], threads)
    for side in case.sides:
        if side.memory:
            peak = _child(["--part", "memory", "--side", side.name, *common, case.name], threads)
            row["sides"][side.name] |= peak
    first, last = (row["sides"][case.sides[i].name] for i in (0, -1))
    if first.get("peak_mib") is not None and last.get("peak_mib"):
        row["memory_ratio"] = first["peak_mib"] / last["peak_mib"]
    row["holds"] = _holds(case, row)
    return row | {
        "case": case.name,
        "question": case.question,
        "at_least": case.at_least,
        "memory_at_least": case.memory_at_least,
        "limits": dict(case.limits),
        "setting": asdict(setting) | {"threads": threads},
        "machine": machine(setting.device),
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
    }


def _holds(case: Case, row: Mapping[str, Any]) -> bool:
    facts = all(row["facts"][name] <= limit for name, limit in case.limits.items())
    memory = case.memory_at_least is None or row.get("memory_ratio", 0.0) >= case.memory_at_least
    return facts and memory and (case.at_least is None or row["ratio"] >= case.at_least)


def _child(arguments: list[str], threads: int) -> dict[str, Any]:
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{arguments[-1]}: its process ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


# in a case's own process


def run_turns(case: Case, setting: Setting, turns: int) -> dict[str, Any]:
    """Seconds of every side by turns, after one turn that is not counted, and the facts of the last outcomes."""
    steps = [side.prepare(setting) for side in case.sides]
    outcomes: list[Any] = [None] * len(steps)
    spent: list[list[tuple[float, float]]] = [[] for _ in steps]
    for turn in range(-1, turns):
        for i, (side, step) in enumerate(zip(case.sides, steps, strict=True)):
            if side.turns is not None and (turn < 0 or turn >= side.turns):
                continue  # what takes minutes needs no warming up
            gc.collect()
            outcomes[i], cpu, wall = _timed(step, setting)
            if turn >= 0:
                spent[i].append((cpu / side.scale, wall / side.scale))
    which = 0 if setting.device == "cpu" else 1
    sides = {}
    for side, seconds in zip(case.sides, spent, strict=True):
        ratios = [a[which] / b[which] for a, b in zip(spent[0], seconds, strict=False)]
        if side.turns is not None or case.sides[0].turns is not None:  # unequal numbers of turns: medians
            ratios = [_median(spent[0], which) / _median(seconds, which)]
        sides[side.name] = {
            "cpu_seconds": statistics.median(s[0] for s in seconds),
            "wall_seconds": statistics.median(s[1] for s in seconds),
            "all_cpu_seconds": [s[0] for s in seconds],
            "all_wall_seconds": [s[1] for s in seconds],
            "part_run": side.scale,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    facts = dict(case.facts(outcomes)) if case.facts else {}
    return {"sides": sides, "ratio": sides[case.sides[-1].name]["ratio"], "facts": facts}


def run_memory(case: Case, side: str, setting: Setting) -> dict[str, Any]:
    """Peak memory of one run of a side, above the memory when all of it was prepared."""
    chosen = next(s for s in case.sides if s.name == side)
    step = chosen.prepare(setting)
    gc.collect()
    if setting.device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        return {"peak_mib": peak / MIB / chosen.memory_scale, "loaded_mib": before / MIB}
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    step()
    peak = _status("VmHWM") - before
    return {"peak_mib": peak / MIB / chosen.memory_scale, "loaded_mib": before / MIB}


def _timed(step: Step, setting: Setting) -> tuple[Any, float, float]:
    _wait(setting)
    cpu, wall = _cpu_seconds(), time.perf_counter()
    outcome = step()
    _wait(setting)
    return outcome, _cpu_seconds() - cpu, time.perf_counter() - wall


def _wait(setting: Setting) -> None:
    if setting.device != "cpu":
        import torch

        torch.cuda.synchronize()


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _median(seconds: Sequence[tuple[float, float]], which: int) -> float:
    return statistics.median(s[which] for s in seconds)


def _status(name: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# the table


def machine(device: str) -> str:
    """What a number is of: the CPU's or the GPU's name."""
    from clipdg.weights.precision import cpu_name

    if device == "cpu":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def slug(name: str) -> str:
    """A machine's name as a folder's: ``AMD EPYC 9654`` -> ``amd-epyc-9654``."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def publish(row: Mapping[str, Any], folder: Path) -> None:
    """``CASE.json`` in the machine's folder, and the tables there made anew from all of its cases."""
    from clipdg.storage import publish as publish_

    place = folder / slug(row["machine"])
    publish_.publish(place / f"{row['case']}.json", json.dumps(row, indent=1, allow_nan=False).encode() + b"\n")
    rows = [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))]
    publish_.publish(place / "table.md", markdown(rows).encode())
    publish_.publish(place / "table.csv", csv(rows).encode())


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table with its machine, versions and what each column is."""
    settings = sorted({f"{r['setting']['device']}, {r['setting']['threads']} thread(s)" for r in rows})
    versions = ", ".join(f"{k} {v}" for k, v in rows[-1]["versions"].items())
    lines = [
        f"# {rows[0]['machine']}",
        "",
        f"{'; '.join(settings)}; {versions}. Seconds are medians of n turns; ×: the first side's seconds over this "
        "side's; peak: memory above the loaded model. ~: the side ran on a part, and its seconds are scaled up.",
        "",
        "| case | side | CPU s | wall s | n | × | at least | peak MiB | facts |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for number, (name, side) in enumerate(row["sides"].items()):
            last = number == len(row["sides"]) - 1
            part = "" if side["part_run"] == 1 else "~"
            target = f"{row['at_least']:g}{'' if row['holds'] else ' (missed)'}" if last and row["at_least"] else ""
            facts = "; ".join(f"{k} {v:.3g}" for k, v in row["facts"].items()) if last else ""
            peak = f"{side['peak_mib']:.0f}" if "peak_mib" in side else ""
            seconds = f"{part}{side['cpu_seconds']:.3g} | {part}{side['wall_seconds']:.3g}"
            case = row["case"] if number == 0 else ""
            count = len(side["all_cpu_seconds"])
            lines.append(
                f"| {case} | {name} | {seconds} | {count} | {side['ratio']:.3g} | {target} | {peak} | {facts} |"
            )
    return "\n".join(lines) + "\n"


def csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a side, numbers unrounded."""
    lines = ["case,side,cpu_seconds,wall_seconds,turns,part_run,ratio,peak_mib,at_least,holds"]
    for row in rows:
        for name, side in row["sides"].items():
            values = (row["case"], f'"{name}"', side["cpu_seconds"], side["wall_seconds"],
                      len(side["all_cpu_seconds"]), side["part_run"], side["ratio"], side.get("peak_mib", ""),
                      row["at_least"] or "", row["holds"])  # fmt: skip
            lines.append(",".join(map(str, values)))
    return "\n".join(lines) + "\n"
