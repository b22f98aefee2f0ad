"""The contract of each kind of plug-in: what a file must hold so that every number it takes part in means something.

For pytest::

    from clipdg.testing import assert_contract

    def test_mine() -> None:
        assert_contract("my_package.my_method")

``check_method``, ``check_benchmark`` and so on give the problems as a list, and ``clipdg check plugin
my_package.my_method`` prints them. All of it takes seconds and needs no network: a tiny backbone with random weights, coloured squares, and
the Classifier and Trainer that runs have.
"""

from __future__ import annotations

from clipdg.testing.backbone import check_backbone
from clipdg.testing.benchmark import check_benchmark
from clipdg.testing.contracts import assert_contract, kinds_of
from clipdg.testing.engine import check_engine
from clipdg.testing.method import check_method
from clipdg.testing.metric import check_metric
from clipdg.testing.objective import check_objective
from clipdg.testing.problem import Check, Problem

__all__ = [
    "Check",
    "Problem",
    "assert_contract",
    "check_backbone",
    "check_benchmark",
    "check_engine",
    "check_method",
    "check_metric",
    "check_objective",
    "kinds_of",
]
