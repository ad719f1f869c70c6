"""The structures of the papers: what our plans remove beside what was published.

    python benchmarks/paper_tables.py [--rows "ResNet-50*" ...]

FLOPs and parameters depend on widths alone, so that nothing is trained, and random scores do.
For NISP the plans are those of `plan_pruning`, for C-SGD those of `plan_merging`. A row that can be
read in several ways is planned in each of them; the one that comes nearest counts, and the others
stand below it. A row that is not within 0.5 points says why.
"""

import argparse
import dataclasses
import fnmatch
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from math import ceil, floor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import models
from results import save_results

import keras_nisp as kn

# What was published -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A row of a paper's table.

    Attributes:
        paper: "NISP" or "C-SGD".
        network: its name in the paper.
        name: of the row.
        model: key of `MODELS`.
        readings: what the row may mean, with the arguments of the planner.
        flops, params: what is removed, in percent; None where nothing is said.
        source: of the figures; see `SOURCES`.
    """

    paper: str
    network: str
    name: str
    model: str
    readings: dict[str, dict]
    flops: float
    params: float | None = None
    source: str = "paper"

    @property
    def title(self) -> str:
        return f"{self.network} {self.name}"


SOURCES = {
    "paper": "the paper's table, as others copied it or as recalled: the papers were not at hand",
    "README": "README of the authors' code, in whole percents",
    "counted": "not published; counted without this library, for the widths in the authors' code",
}

MODELS = {
    "alexnet": models.alexnet,
    "googlenet": models.googlenet,
    "resnet34": lambda: models.resnet(34),
    "resnet50": lambda: models.resnet(50),
    "resnet50_1x1": lambda: models.resnet(50, stride_on="1x1"),
    "resnet56": lambda: models.cifar_resnet(56),
    "resnet110": lambda: models.cifar_resnet(110),
    "resnet164": lambda: models.cifar_resnet(164),
    "densenet40": models.densenet,
}


def halved(*layers: str) -> dict[str, dict]:
    return {", ".join(layers): {"ratios": dict.fromkeys(layers, 0.5)}}


def every_layer(ratio: float, stride: str = "") -> dict[str, dict]:
    return {f"every layer{stride}": {"ratio": ratio}}


def internal(stride: str, share: float, *roundings: Callable[[float], int]) -> dict[str, dict]:
    """Widths of a ResNet-50 that keeps a share of the first two layers of each bottleneck."""
    return {
        f"{rounding.__name__} of widths{stride}": {
            "widths": {f"stage{s}_*_[12]_conv": rounding(share * 32 * 2**s) for s in range(1, 5)}
        }
        for rounding in roundings
    }


def growths(text: str, *layers: int, transitions: tuple[int, ...] = ()) -> dict[str, dict]:
    """Widths of a DenseNet whose layers add so many channels in each stage."""
    widths = {f"stage{s}_*_conv": width for s, width in enumerate(layers, 1)}
    widths |= {f"transition{t}_conv": width for t, width in enumerate(transitions, 1)}
    return {f"transitions {text}": {"widths": widths}}


STRATEGIES = {
    "half: every layer": {"ratio": 0.5},
    "noReduce: reductions in modules stay": {"ratio": 0.5, "exclude": "inception*_reduce"},
    "no1x1: 1x1 branches stay": {"ratio": 0.5, "exclude": "inception*_1x1"},
}
DENSE = growths("stay", 5, 8, 10) | growths("shrink", 5, 8, 10, transitions=(76, 172))
ON_1X1, ON_3X3 = ", stride on 1x1", ", stride on 3x3"  # of bottlenecks: at first; in torchvision
NISP, C_SGD = partial(Row, "NISP"), partial(Row, "C-SGD")

ROWS = [
    NISP("AlexNet", "A", "alexnet", halved("conv[1-5]"), 67.85, 33.77),
    NISP("AlexNet", "B", "alexnet", halved("conv[1-4]"), 62.69, 1.96),
    NISP("AlexNet", "C", "alexnet", halved("conv[1-3]"), 53.70, 2.91),
    NISP("AlexNet", "D", "alexnet", halved("conv2", "conv3", "fc6"), 40.12, 47.09),
    NISP("GoogLeNet", "50 %", "googlenet", STRATEGIES, 58.34, 33.76),
    NISP("ResNet-56", "25 %", "resnet56", every_layer(0.25), 43.61, 42.60),
    NISP("ResNet-110", "25 %", "resnet110", every_layer(0.25), 43.78, 43.25),
    NISP("ResNet-34", "A, 15 %", "resnet34", every_layer(0.15), 27.32, 27.14),
    NISP("ResNet-34", "B, 25 %", "resnet34", every_layer(0.25), 43.76, 43.68),
    NISP("ResNet-50", "A, 15 %", "resnet50_1x1", every_layer(0.15, ON_1X1), 27.31, 27.12),
    NISP("ResNet-50", "B, 25 %", "resnet50_1x1", every_layer(0.25, ON_1X1), 44.01, 43.82),
    C_SGD("ResNet-56", "13/16", "resnet56", every_layer(3 / 16), 33.9, source="counted"),
    C_SGD("ResNet-56", "11/16", "resnet56", every_layer(5 / 16), 52.7, source="counted"),
    C_SGD("ResNet-56", "5/8", "resnet56", every_layer(3 / 8), 60.85),
    C_SGD("ResNet-110", "5/8", "resnet110", every_layer(3 / 8), 60.89),
    C_SGD("ResNet-164", "5/8", "resnet164", every_layer(3 / 8), 60.91),
    C_SGD("DenseNet-40", "5-8-10", "densenet40", DENSE, 60.05),
    C_SGD("DenseNet-40", "3-3-3", "densenet40", growths("stay", 3, 3, 3), 78.7, source="counted"),
    *(
        C_SGD("ResNet-50", name, "resnet50_1x1", internal(ON_1X1, share, floor, ceil), flops)
        for name, share, flops in (
            ("C-SGD-70", 0.7, 36.75),
            ("C-SGD-60", 0.6, 46.24),
            ("C-SGD-50", 0.5, 55.76),
        )
    ),
    *(
        C_SGD("ResNet-50", name, "resnet50", internal(ON_3X3, share, ceil), flops, source=source)
        for name, share, flops, source in (
            ("internal 70 %", 0.7, 36, "README"),
            ("internal 60 %", 0.6, 46, "README"),
            ("internal 50 %", 0.5, 56, "README"),
            ("internal 40 %", 0.4, 63.53, "counted"),
            ("internal 30 %", 0.3, 71.02, "counted"),
        )
    ),
]

# By title of the row, if none of its readings fits.
EXCHANGED = "The parameters of B and C look exchanged: with each other's, both rows fit."
ABOVE = """The published FLOPs are above 43.75 %, the most that a quarter of every layer can take \
(1 - 0.75²): the ratio must have been a little higher."""
WHY = {
    "AlexNet B": EXCHANGED,
    "AlexNet C": EXCHANGED,
    "AlexNet D": """Parameters fit, FLOPs do not. The layers are recalled, not read; no set of \
layers, each halved, comes within a point of both figures.""",
    "GoogLeNet 50 %": """Which strategy was reported is not known. noReduce has nearly these \
FLOPs, none has these parameters; no set of kinds of layers, halved, comes within five points of \
both.""",
    "ResNet-56 25 %": """FLOPs fit. A quarter of every layer takes the same share of the \
parameters; the paper has a point less of them, and we do not know why.""",
    "ResNet-34 B, 25 %": ABOVE,
    "ResNet-50 B, 25 %": ABOVE,
    "DenseNet-40 5-8-10": """How wide the transitions become is not known. The figure lies between \
the two ways of the authors' code: they stay, or shrink to as many channels as enter them.""",
    "ResNet-50 internal 50 %": """What rounds to this whole percent is the same widths with the \
stride on the 1x1, as in row C-SGD-50.""",
}

# What our plans give ----------------------------------------------------------------

TOLERANCE = 0.5  # points
PLANNERS = {
    "NISP": lambda model, arguments: kn.plan_pruning(model, kn.Random(0), **arguments),
    "C-SGD": lambda model, arguments: kn.plan_merging(model, clustering="even", **arguments),
}


def chosen(patterns: Iterable[str]) -> list[Row]:
    """Rows whose titles match one of the patterns."""
    return [row for row in ROWS if any(fnmatch.fnmatch(row.title, p) for p in patterns)]


def measure(rows: list[Row]) -> list[dict]:
    """Records of the rows, in their order; each network is built once, and one at a time."""
    records = {}
    for name in dict.fromkeys(row.model for row in rows):
        records |= _of_network(name, [row for row in rows if row.model == name])
        keras.backend.clear_session()
    return [records[row] for row in rows]


def _of_network(name, rows) -> dict[Row, dict]:
    model = MODELS[name]()
    records = {}
    for row in rows:
        planner = PLANNERS[row.paper]
        records[row] = record(row, {text: planner(model, a) for text, a in row.readings.items()})
    return records


def record(row: Row, plans: dict[str, kn.Plan]) -> dict:
    """The reading that comes nearest beside what was published, and the verdict on it.

    Args:
        row: what was published.
        plans: a plan for each reading.
    """
    published = {"flops": row.flops, "params": row.params}
    readings = [_reading(text, plan, published) for text, plan in plans.items()]
    best, *others = sorted(readings, key=_apart)
    within = _apart(best) <= TOLERANCE
    return {
        "paper": row.paper,
        "network": row.network,
        "row": row.name,
        "source": row.source,
        "published": published,
        **best,
        "within": within,
        "why": "" if within else WHY.get(row.title, ""),
        "others": others,
    }


def _reading(text, plan, published) -> dict:
    ours = {
        "flops": round(100 * plan.flops_reduction, 2),
        "params": round(100 * plan.params_reduction, 2),
    }
    known = {key: value for key, value in published.items() if value is not None}
    differences = {key: round(ours[key] - value, 2) for key, value in known.items()}
    return {"interpretation": text, "ours": ours, "differences": differences}


def _apart(reading) -> float:
    return max(map(abs, reading["differences"].values()))


# Tables -----------------------------------------------------------------------------


def show(records: list[dict]) -> None:
    console = Console(width=140)
    for paper in dict.fromkeys(r["paper"] for r in records):
        console.print(_table(paper, [r for r in records if r["paper"] == paper]))
    for r in records:
        if not r["within"]:
            console.print(f"[bold]{r['network']} {r['row']}[/bold]: {r['why']}", highlight=False)
    for source in dict.fromkeys(r["source"] for r in records):
        console.print(f"{source}: {SOURCES[source]}", style="dim")


def _table(paper, records) -> Table:
    table = Table(title=f"{paper}: removed, in percent")
    for title in ("network", "row", "read as", "from"):
        table.add_column(title)
    for title in ("FLOPs", "ours", "apart", "parameters", "ours", "apart"):
        table.add_column(title, justify="right")
    table.add_column(f"within {TOLERANCE}")
    for r in records:
        first = (r["network"], r["row"], r["interpretation"], r["source"])
        verdict = "yes" if r["within"] else "no"
        table.add_row(*map(escape, first), *_cells(r["published"], r), verdict)
        for other in r["others"]:
            cells = _cells({}, other)
            table.add_row("", "", escape(other["interpretation"]), "", *cells, style="dim")
    return table


def _cells(published, reading) -> list[str]:
    cells = []
    for key in ("flops", "params"):
        figures = (published.get(key), reading["ours"][key])
        cells += ["" if figure is None else f"{figure:.2f}" for figure in figures]
        difference = reading["differences"].get(key)
        cells.append("" if difference is None else f"{difference:+.2f}")
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN")
    args = parser.parse_args()
    rows = chosen(args.rows)
    if not rows:
        titles = ", ".join(row.title for row in ROWS)
        parser.error(f"expected patterns of rows; received {args.rows}; the rows are {titles}")
    records = measure(rows)
    show(records)
    if rows == ROWS:
        results = {"rows": records, "tolerance": TOLERANCE, "sources": SOURCES}
        save_results("paper_tables", results, args)


if __name__ == "__main__":
    main()
