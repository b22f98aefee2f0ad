"""Loaders over every kind of place: worker processes do the work, and memory stays where it is pass after pass."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
import torch

from clipdg.core.model import Preprocessing
from clipdg.data import datasets, loaders
from clipdg.data.rows import TableRows, open_table

SPEC = Preprocessing(224, (0.5,) * 3, (0.5,) * 3)
PLACES: dict[str, Callable[[Path, list[layouts.Sample]], Path]] = {
    "folder": layouts.domain_folders, "parquet": layouts.hub_parquet, "shards": layouts.wds,
}  # fmt: skip
TICKS = os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes that are the process's own: neither shared with its parent nor mapped from a file."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_two_workers_do_the_work_in_memory_that_stays_flat(tmp_path: Path, place: str) -> None:
    photos = [layouts.picture(i, size=(250, 190)) for i in range(20)]
    given = [layouts.Sample("photo", "dog", f"{i:04d}.jpg", photos[i % 20]) for i in range(512)]
    table = open_table(PLACES[place](tmp_path / "data", given))
    rows = TableRows(table, range(len(table)), [0] * len(table), [str(i) for i in range(len(table))])
    loader = loaders.loader(
        datasets.ImageDataset(rows, range(len(rows)), SPEC, 0), 64, generator=torch.Generator(), workers=2
    )
    used: list[int] = []
    started = time.perf_counter()
    own = time.process_time()
    for _ in range(12):
        assert sum(len(batch.labels) for batch in loader) == len(given)
        workers = [child.pid for child in multiprocessing.active_children() if child.pid]
        assert len(workers) == 2
        used.append(sum(map(resident, [os.getpid(), *workers])))
    wall, own = time.perf_counter() - started, time.process_time() - own
    theirs = [seconds(pid) for pid in workers]
    print(f"{place}: {12 * len(given) / wall:.0f} images/s, workers {sum(theirs) / wall:.2f} of 2 cores, "
          f"main {own / wall:.2f}, memory {[round(u / 2**20) for u in used]} MiB")  # fmt: skip
    # A worker's heap grows with its first two dozen batches (9 MiB each) and then stays.
    assert used[-1] - used[7] < 16 * 2**20
    assert own < 0.3 * sum(theirs)  # so that two cores are kept busy by the two of them
    assert min(theirs) > 0.6 * max(theirs)


@pytest.mark.slow
def test_a_hundred_thousand_files_open_in_seconds_and_are_known_the_second_time(tmp_path: Path) -> None:
    content = layouts.picture(0)
    for domain in "abcd":
        for label in range(25):
            folder = tmp_path / domain / f"{label:02d}"
            folder.mkdir(parents=True)
            for number in range(1000):
                (folder / f"{number:04d}.jpg").write_bytes(content + f"{domain} {label} {number}".encode())
    time.sleep(2.5)  # what was written a moment ago is not remembered
    took = []
    for _ in range(2):
        started = time.process_time()
        table = open_table(tmp_path)
        opened = time.process_time() - started
        assert len(set(table.digests())) == len(table) == 100_000
        took.append((opened, time.process_time() - started))
    print(f"opened in {took[0][0]:.1f} s of CPU time, with digests {took[0][1]:.1f} s and {took[1][1]:.1f} s")
    assert took[0][0] < 10  # 0.8 to 2 s measured
    assert took[1][1] < took[0][1]
