"""Kill a sweep at random moments, again and again, and compare what it leaves with an undisturbed one.

    python experiments/reliability/kill.py --kills 200 --out results/reliability
    python experiments/reliability/kill.py --processes 8 --out results/reliability      # no kills, all at once

Each round starts `clipdg sweep` in a process group of its own and sends SIGKILL to the whole group after a random time.
Then, as the next start would find it, every record must be whole and one of the undisturbed sweep's, and none that
stood there before may be missing or other. At the end the sweep is completed and compared whole.

The command is forked from this process, which has loaded the libraries: a kill falls into the sweep and not into
imports. `--jobs` above 1 starts workers, which load their own.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from clipdg.records.folder import read_records
from clipdg.records.record import predictions

SWEEP = Path(__file__).with_name("sweep.yaml")
Found = dict[str, tuple[object, object]]


def start(out: Path, cache: Path, jobs: int = 1) -> int:
    """The process of a sweep, which leads a group of its own; what it says goes to ``out`` with the suffix .log."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        out.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["CLIPDG_CACHE"] = str(cache)
        sys.argv = ["clipdg", "sweep", str(SWEEP), "--out", str(out), "--jobs", str(jobs)]
        from clipdg.cli import main

        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def found(out: Path) -> Found:
    """What must be the same: evaluations and per-sample predictions, by run. A record that is not whole is an error."""
    if not out.is_dir():
        return {}
    whole, errors = read_records([out])
    assert not errors, errors
    assert not list(out.glob("*.corrupt"))
    return {r.run_id: (r.evaluations, predictions(r, out)) for r in whole}


def undisturbed(folder: Path) -> tuple[Found, float]:
    """The sweep without a disturbance, and the seconds that it took."""
    started = time.monotonic()
    assert exit_code(start(folder / "undisturbed", folder / "cache-0")) == 0
    return found(folder / "undisturbed"), time.monotonic() - started


def killed(folder: Path, expected: Found, kills: int, longest: float, seed: int, jobs: int) -> int:
    """Sweeps that were finished between ``kills`` kills, each of which fell before its sweep was done."""
    rng = random.Random(seed)
    out, cache = folder / "killed", folder / "cache-1"
    count = finished = 0
    before: Found = {}
    while count < kills:
        process = start(out, cache, jobs)
        time.sleep(rng.uniform(0.0, longest))
        os.killpg(process, signal.SIGKILL)
        code = exit_code(process)
        assert code in (0, -signal.SIGKILL), f"the sweep ended with {code}"
        now = found(out)
        lost = before.keys() - now.keys()
        different = [run for run in now if now[run] != expected.get(run)]
        assert (lost, different) == (set(), []), f"after {count} kills: lost {lost}, different {different}"
        before = now
        if code == 0:
            assert now == expected
            finished += 1
            shutil.rmtree(out)
            shutil.rmtree(cache, ignore_errors=True)
            before = {}
        else:
            count += 1
    assert exit_code(start(out, cache, jobs)) == 0
    assert found(out) == expected
    return finished + 1


def together(folder: Path, expected: Found, processes: int) -> None:
    """Several processes at once on one sweep and one store: all end well, with the records of one alone."""
    out, cache = folder / "together", folder / "cache-2"
    started = [start(out, cache) for _ in range(processes)]
    assert [exit_code(p) for p in started] == [0] * processes
    assert found(out) == expected
    left = [f.name for f in (*out.rglob(".*.*"), *out.rglob("*.lease"))]
    assert not left, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--longest", type=float, default=5.0, help="seconds from a start to its kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    import torch

    import clipdg.runs.run
    import clipdg.runs.sweep  # noqa: F401

    torch.set_num_threads(1)
    expected, seconds = undisturbed(given.out)
    print(f"undisturbed: {len(expected)} records in {seconds:.1f} s", flush=True)
    if given.kills:
        finished = killed(given.out, expected, given.kills, given.longest, given.seed, given.jobs)
        print(f"{given.kills} kills, {finished} sweeps finished between them: 0 lost, 0 duplicated, 0 different")
    if given.processes:
        together(given.out, expected, given.processes)
        print(f"{given.processes} processes at once: 0 lost, 0 duplicated, 0 different")


if __name__ == "__main__":
    main()
