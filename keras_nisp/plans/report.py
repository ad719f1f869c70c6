"""A plan as one HTML page: what `Plan.report` writes."""

import dataclasses
import html
import importlib.resources
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from keras_nisp.io.files import check_writable, replacing
from keras_nisp.io.tables import percent
from keras_nisp.plans import report_curves, report_figures

if TYPE_CHECKING:
    from keras_nisp.plans.plan import Plan

LARGEST = 8  # layers that a table of costs names
FIGURES = 24  # groups whose scores are shown unfolded


def write(
    plan: "Plan",
    path: str | os.PathLike,
    command: str | None = None,
    outcome: Mapping[str, object] | None = None,
) -> None:
    """Writes the page; an existing file is replaced as a whole."""
    check_writable(path)
    page = render(plan, command, outcome)
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode())  # the same bytes on every system


def frame(plan: "Plan") -> str:
    """The page inside of a notebook: a frame, so that its styles stay there."""
    page = html.escape(render(plan))
    return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'


def render(
    plan: "Plan", command: str | None = None, outcome: Mapping[str, object] | None = None
) -> str:
    """The page as text. Names of layers are escaped: a plan may come from anywhere."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters = {"number": _number, "size": _size, "score": _score, "breakable": _breakable}
    environment.filters.update(filters)
    source = importlib.resources.files("keras_nisp.plans") / "templates" / "report.html.j2"
    template = environment.from_string(source.read_text(encoding="utf-8"))
    marks = _marks(plan)
    rows = _rows(plan, marks)
    return template.render(
        plan=plan,
        totals=_totals(plan),
        removable=sum(group.units for group in plan.groups),
        gone=sum(group.removed for group in plan.groups),
        changed=sum(group.removed > 0 for group in plan.groups),
        rows=rows,
        widest=max((row.before for row in rows if row.main and row.has_bar), default=1),
        drawing=report_figures.drawing(plan, marks),
        shares=[_shares(plan, "FLOPs", "flops"), _shares(plan, "parameters", "parameters")],
        colours=report_figures.colours(plan),
        figures=report_figures.figures(plan),
        curves=report_curves.curves(plan),
        reasons=_reasons(plan),
        exactness=plan.exactness(),
        command=command,
        outcome=outcome or {},
        unfolded=FIGURES,
    )


def _number(value: int) -> str:
    return f"{value:,}"


def _size(count: float) -> str:
    """Bytes, in units of a thousand."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _score(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}"


def _breakable(name: str):
    """A layer's name that may be broken at its underscores and slashes."""
    import markupsafe

    return markupsafe.Markup(re.sub("([_/])", r"\1<wbr>", str(markupsafe.escape(name))))


def _change(before: float, after: float) -> str:
    return percent(before, after).replace("-", "\N{MINUS SIGN}")


# Totals and costs --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Amount:
    """A cost before and after, of a layer or the model, with its shares of the whole.

    Attributes:
        title: what it is, or whose.
        before, after: the cost.
        change: as a percentage.
        shares: of the whole, before and after, as percentages.
        is_size: whether it is in bytes.
    """

    title: str
    before: int
    after: int
    change: str = ""
    shares: tuple[str, str] = ("", "")
    is_size: bool = False

    @property
    def left(self) -> float:
        """What remains, in per cent."""
        return round(100 * self.after / self.before, 2) if self.before else 100


def _totals(plan: "Plan") -> list[Amount]:
    titles = {"parameters": "parameters", "flops": "FLOPs", "memory": "activation memory"}
    if plan.before.cache:
        titles["cache"] = "keys and values of a token"
    rows = [(t, getattr(plan.before, w), getattr(plan.after, w)) for w, t in titles.items()]
    sizes = [titles.get(word) for word in ("memory", "cache")]
    return [Amount(t, b, a, _change(b, a), is_size=t in sizes) for t, b, a in rows]


def _shares(plan: "Plan", title: str, word: str) -> tuple[str, int, list[Amount]]:
    """The layers that cost most, and all others together; with the scale of their bars."""
    costs = [(r.layer, getattr(r.before, word), getattr(r.after, word)) for r in plan.layers]
    costs = sorted((cost for cost in costs if cost[1]), key=lambda cost: -cost[1])
    named, others = costs[:LARGEST], costs[LARGEST:]
    scale = max((before for _, before, _ in named), default=1)
    if others:
        layers = f"{len(others)} other layer{'s' * (len(others) > 1)}"
        named.append((layers, sum(b for _, b, _ in others), sum(a for _, _, a in others)))
    whole = getattr(plan.before, word), getattr(plan.after, word)
    rows = [
        Amount(name, b, a, _change(b, a), (_share(b, whole[0]), _share(a, whole[1])))
        for name, b, a in named
    ]
    return title, scale, rows


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


# Widths ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """Width of one layer, or of channels that no tensor shows.

    Attributes:
        layer, kind: its path and class.
        before, after: its channels.
        mark: group of its channels, if it is one.
        main: whether it creates channels or has FLOPs; others only pass channels on.
    """

    layer: str
    kind: str
    before: int
    after: int
    mark: int | None
    main: bool

    @property
    def change(self) -> str:
        return _change(self.before, self.after) if self.after != self.before else ""

    @property
    def has_bar(self) -> bool:
        """Whether its width may change: an output of 1,000 classes is no scale for others."""
        return self.mark is not None or self.after != self.before


def _marks(plan: "Plan") -> dict[str, int]:
    """The group of every layer whose channels are of one group alone."""
    groups: dict[str, set[int]] = {}
    for index, group in enumerate(plan.groups):
        for layer in (*group.creators, *group.followers):
            groups.setdefault(layer, set()).add(index)
    return {layer: min(found) for layer, found in groups.items() if len(found) == 1}


def _rows(plan: "Plan", marks: dict[str, int]) -> list[Row]:
    """All layers with channels in the order of the walk, hidden channels behind their layer."""
    created = {creator.layer for creator in plan.creators}
    hidden: dict[str, list[Row]] = {}
    for creator in plan.creators:
        path, colon, label = creator.layer.rpartition(":")
        if colon:
            row = Row(creator.layer, label, creator.channels, creator.kept, None, True)
            row = dataclasses.replace(row, mark=marks.get(creator.layer))
            hidden.setdefault(path, []).append(row)
    rows = []
    for layer in plan.layers:
        if layer.channels[0]:
            main = layer.layer in created or layer.before.flops > 0
            mark = marks.get(layer.layer)
            rows.append(Row(layer.layer, layer.kind, *layer.channels, mark, main))
        rows += hidden.get(layer.layer, ())
    return rows


# Words -------------------------------------------------------------------------------


def _reasons(plan: "Plan") -> dict[str, list[str]]:
    """The layers that each reason holds for."""
    reasons: dict[str, list[str]] = {}
    for creator in plan.creators:
        for reason in creator.reasons:
            reasons.setdefault(reason, []).append(creator.layer)
    return reasons
