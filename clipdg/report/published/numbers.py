"""Published results as data: one number a row, with where it is from and how sure it is.

``published/results.csv`` holds four repositories' tables (made by experiments/published/tidy.py from their own files),
``published/papers.csv`` what papers and their readers report, ``published/sources.csv`` the provenance of both. A model
is its exact weights: ``timm:resnet50.tv_in1k`` at 224, never "ResNet-50", since the recipes of one architecture differ
by ten points under shift.

    status   verified       read in the source
             quoted         read in somebody's quotation of it
             user-reported  a user's own run
             disputed       another source has another number for the same thing
             unverified     from memory; nothing may rest on it
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from clipdg.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("source", "model", "weights", "resolution", "method", "dataset", "metric", "value")
MORE = ("spread", "spread_kind", "status", "note")  # of papers.csv
_FOLDER = Path(__file__).parent
RESULTS, PAPERS, SOURCES = (_FOLDER / f"{name}.csv" for name in ("results", "papers", "sources"))


@cache
def table() -> pd.DataFrame:
    """Every published number: ``COLUMNS`` and ``MORE``; value and spread are fractions, resolution is <NA> if unsaid.

    Raises DataError if a number is no fraction, stands there twice, or has a source that is not listed.
    """
    import pandas as pd

    kinds = dict.fromkeys((*COLUMNS, *MORE), "str") | {"value": "float64", "spread": "float64", "resolution": "Int64"}
    parts = [
        pd.read_csv(path, dtype=kinds, na_values={"spread": [""], "resolution": [""]}, keep_default_na=False)
        for path in (RESULTS, PAPERS)
    ]
    parts[0] = parts[0].assign(spread=float("nan"), spread_kind="", status="verified", note="")
    found = pd.concat(parts, ignore_index=True)
    wrong = found[~found["value"].between(0, 1)]
    twice = found[found.duplicated(list(COLUMNS[:-1]))]
    unknown = sorted(set(found["source"]) - set(sources()["source"]))
    if len(wrong) or len(twice) or unknown:
        raise DataError(f"published results: {len(wrong)} no fractions, {len(twice)} twice, without source {unknown}")
    return found


def sources() -> pd.DataFrame:
    """Where the numbers are from: source, repository, commit, licence, citation, about."""
    import pandas as pd

    return pd.read_csv(SOURCES, dtype="str", keep_default_na=False)


def wide(source: str, method: str | None = None) -> pd.DataFrame:
    """One source's top-1 accuracies: a row per (model, weights, resolution), a column per data set; NaN if unsaid."""
    found = table()
    chosen = found[(found["source"] == source) & (found["metric"] == "top1")]
    if method is not None:
        chosen = chosen[chosen["method"] == method]
    index = ["model", "weights", "resolution", "method"]
    # Without a resolution the column is a missing value, by which pandas does not group.
    chosen = chosen.assign(resolution=chosen["resolution"].fillna(0).astype(int))
    spread: pd.DataFrame = chosen.pivot(index=index, columns="dataset", values="value")
    return spread
