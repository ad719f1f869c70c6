"""Plans as text: what `print(plan)`, `plan.summary()` and `plan.explain(layer)` say."""

import fnmatch
from typing import TYPE_CHECKING

from keras_nisp.damage.table import Sensitivity
from keras_nisp.errors import several
from keras_nisp.io.tables import Column, change, folded, percent, render_table
from keras_nisp.plans.recipe import EarlierRecipe

if TYPE_CHECKING:
    from keras_nisp.plans.plan import Plan
    from keras_nisp.plans.plan_rows import CreatorPlan

MOST_WIDTHS = 4  # that are listed
COSTS = ("parameters", "flops")
MOST_NAMED = 8  # layers in a line


def overview(plan: "Plan") -> str:
    """How the plan was made, and its coupled groups."""
    word = "merged" if plan.merges else "pruned"
    changed = sum(group.removed > 0 for group in plan.groups)
    lines = [
        f"Plan for '{plan.model}' by {plan.importance}, {budget_text(plan)}: {changed} of "
        f"{len(plan.groups)} coupled groups {word}, parameters "
        f"{percent(plan.before.parameters, plan.after.parameters)}, FLOPs "
        f"{percent(plan.before.flops, plan.after.flops)}."
    ]
    for index, group in enumerate(plan.groups):
        lines.append(f"group {index}: {group.units} -> {group.units - group.removed} channels")
        for word in ("creators", "followers", "readers"):
            if names := getattr(group, word):
                lines.append(f"  {word + ':':<11}{several(names, MOST_NAMED)}")
    return "\n".join([*lines, *plan.notes])


def budget_text(plan: "Plan") -> str:
    """The budget, with what its table said and the multiple that widths were rounded to."""
    if isinstance(plan.recipe, EarlierRecipe):
        return plan.recipe.budget
    budget = plan.recipe.budget
    amount = getattr(budget, budget.kind)
    if budget.kind == "widths" and len(amount) > MOST_WIDTHS:
        amount = f"those of {len(amount)} layers"
    by_table = isinstance(budget.allocation, Sensitivity)
    allocation = "a table of damages" if by_table else budget.allocation
    limits = [f"{budget.kind}={amount}", f"allocation={allocation}"]
    if plan.latency is not None:
        limits[0] += f" (table: {plan.latency})"
    if budget.target is not None:
        limits.append(f"target={budget.target}")
    if plan.block > 1:
        limits.append(f"round_to={plan.block}")
    if budget.min_channels != 1:
        limits.append(f"min_channels={budget.min_channels}")
    return ", ".join(limits)


def summary(plan: "Plan", wide: bool = False) -> str:
    """A table of channels, parameters and FLOPs of each layer, before and after."""
    columns = [Column("layer"), Column("type", optional=True)]
    columns += [Column(title, True) for title in ("channels", "parameters", "FLOPs")]
    rows = [row for row in plan.layers if row.before.parameters]
    others: dict[str, list] = {}
    if not wide:
        created = {creator.layer.partition(":")[0] for creator in plan.creators}
        rows, others = folded(
            rows,
            main=lambda row: row.before.flops or row.layer in created,
            unchanged=lambda row: row.before == row.after and len(set(row.channels)) == 1,
        )
    lines = [(row.layer, row.kind, change(*row.channels), *_costs([row], wide)) for row in rows]
    lines += [(name, "", "", *_costs(found, wide)) for name, found in others.items()]
    shapes = ", ".join(map(str, plan.input_shapes))
    shares = (percent(getattr(plan.before, word), getattr(plan.after, word)) for word in COSTS)
    totals = [("total", "", "", *_costs([plan], wide)), ("", "", "", *shares)]
    title = f"{plan.model}, FLOPs for input {shapes}"
    table = render_table(title, columns, lines, totals, wide)
    return "\n".join([table, exactness(plan), *plan.notes])


def _costs(rows, exact: bool) -> list[str]:
    """Sums of parameters and of FLOPs, before and after."""
    sums = [
        [sum(getattr(getattr(row, when), word) for row in rows) for when in ("before", "after")]
        for word in COSTS
    ]
    return [change(before, after, exact) for before, after in sums]


def costs(plan: "Plan") -> str:
    """Parameters and FLOPs before and after."""
    return f"parameters {_total(plan, 'parameters')}, FLOPs {_total(plan, 'flops')}"


def exactness(plan: "Plan") -> str:
    """Whether the rebuilt model gives what the plan's model gives without the channels."""
    if plan.merges:
        return (
            "Exact once the channels of each cluster are identical: train with "
            "CentripetalSGD, then rebuild."
        )
    if not plan.inexact:
        return (
            "Exact: the rebuilt model gives what this model gives with the removed channels "
            "at zero."
        )
    return (
        "Not exact: these layers take statistics over channels, which are fewer afterwards: "
        f"{several(plan.inexact, MOST_NAMED)}. Fine-tune, and compare accuracies."
    )


def explanation(plan: "Plan", layer: str) -> str:
    """Why a layer has the channels that it has.

    Raises:
        TypeError: that is no name.
        ValueError: the plan knows no layer of this name.
    """
    if not isinstance(layer, str):
        raise TypeError(f"Expected `layer` to be the name of a layer. Received: {layer!r}")
    lines = [_of_creator(plan, row) for row in plan.creators if _is_named(row.layer, layer)]
    for index, group in enumerate(plan.groups):
        for verb, names in (("passes on", group.followers), ("reads", group.readers)):
            if found := [name for name in names if _is_named(name, layer)]:
                lines.append(
                    f"'{found[0]}' {verb} the channels of group {index} "
                    f"({group.units} -> {group.units - group.removed}), created by "
                    f"{several(group.creators, MOST_NAMED)}."
                )
    if not lines:
        if any(_is_named(row.layer, layer) for row in plan.layers):
            return f"'{layer}' touches no channels that may be removed."
        raise ValueError(
            f"Expected the name of a layer. Received: {layer!r}, which is none. Layers that "
            f"create channels: {several([row.layer for row in plan.creators], MOST_NAMED)}."
        )
    return "\n".join(lines)


def _of_creator(plan: "Plan", creator: "CreatorPlan") -> str:
    text = f"'{creator.layer}' keeps {creator.kept} of {creator.channels} channels."
    if creator.clusters:
        text = f"'{creator.layer}' merges {creator.channels} channels into {creator.kept}."
    if creator.group >= 0:
        others = [n for n in plan.groups[creator.group].creators if n != creator.layer]
        if others:
            text += f" Coupled with {several(others, MOST_NAMED)}."
    return text + (f" Kept: {'; '.join(creator.reasons)}." if creator.reasons else "")


def _total(plan: "Plan", word: str) -> str:
    before, after = getattr(plan.before, word), getattr(plan.after, word)
    return f"{change(before, after)} ({percent(before, after)})"


def _is_named(path: str, name: str) -> bool:
    """Whether a path is that of a layer of this name or pattern, or of channels inside of it."""
    own = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(part, name) for part in (path, own, own.split(":")[0]))
