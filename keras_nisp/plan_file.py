"""Plans as JSON files."""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from keras_nisp.cost import Cost
from keras_nisp.errors import PlanFileError
from keras_nisp.files import replacing
from keras_nisp.plan_rows import CreatorPlan, GroupPlan, LayerPlan, VariablePlan

if TYPE_CHECKING:
    from keras_nisp.plan import Plan

FORMAT = "keras_nisp plan"
VERSION = 3
READABLE = (1, 2, 3)  # version 1 knew no clusters, version 2 no scores


def to_dict(plan: "Plan") -> dict:
    data = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(plan)}
    for row in data["variables"]:
        row["clusters"] = sorted(row["clusters"].items())  # JSON has no integer keys
    return json.loads(json.dumps(data))


def from_dict(data: dict, source: str) -> "Plan":
    """The plan; `source` says in errors where the data come from."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PlanFileError(f"Expected a plan in {source}. It is another kind of JSON.")
    if (version := data.get("version")) not in READABLE:
        raise PlanFileError(
            f"Expected a plan of version {VERSION} in {source}. Received version {version}: it "
            "was written by another release of keras_nisp."
        )
    try:
        return _from_data({k: v for k, v in data.items() if k not in ("format", "version")})
    except (KeyError, TypeError, ValueError) as error:
        raise PlanFileError(f"Expected a plan in {source}. It is damaged: {error!r}") from error


def save(plan: "Plan", path: str | os.PathLike) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(to_dict(plan)), encoding="utf-8")


def load(path: str | os.PathLike) -> "Plan":
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanFileError(f"Expected a plan in '{path}'. It is not JSON: {error}") from error
    return from_dict(data, f"'{path}'")


def _from_data(data: dict) -> "Plan":
    from keras_nisp.plan import Plan

    def rows(kind, name):
        return tuple(kind(**_tuples({**row, **_costs(row)})) for row in data.get(name, ()))

    creators = rows(CreatorPlan, "creators")
    for row in creators:
        _check_indices(row)
    groups = rows(GroupPlan, "groups")
    for index, group in enumerate(groups):
        _check_scores(index, group)
    variables = tuple(
        VariablePlan(**_tuples({**row, "clusters": {k: tuple(v) for k, v in row["clusters"]}}))
        for row in data.get("variables", ())
    )
    parts = {
        "creators": creators,
        "groups": groups,
        "layers": rows(LayerPlan, "layers"),
        "variables": variables,
    }
    return Plan(**{**_tuples({**data, **_costs(data)}), **parts})


def _check_indices(row) -> None:
    """Raises unless removed channels and clusters are indices of the layer's channels."""
    indices = list(row.removed)
    valid = all(isinstance(i, int) and 0 <= i < row.channels for i in indices)
    if not valid or indices != sorted(set(indices)):
        raise ValueError(f"removed channels of '{row.layer}'")
    members = [index for cluster in row.clusters for index in cluster]
    if row.clusters and sorted(members) != list(range(row.channels)):
        raise ValueError(
            f"clusters of '{row.layer}', which must hold each of its {row.channels} channels once"
        )
    if any(len(set(cluster) - set(indices)) != 1 for cluster in row.clusters):
        raise ValueError(f"removed channels of '{row.layer}' are not those that are merged")


def _check_scores(index: int, group) -> None:
    """Raises unless a group has no scores, or one for each unit and says which are removed."""
    if not group.scores and not group.removed_units:
        return
    indices = set(group.removed_units)
    valid = len(indices) == len(group.removed_units) == group.removed
    if not valid or len(group.scores) != group.units or not indices <= set(range(group.units)):
        raise ValueError(f"scores of group {index}")
    if not all(score is None or isinstance(score, (int, float)) for score in group.scores):
        raise ValueError(f"scores of group {index}")


def _costs(row: dict) -> dict:
    return {word: Cost(**row[word]) for word in ("before", "after") if word in row}


def _tuples(row: dict) -> dict:
    return {key: _tuple(value) for key, value in row.items()}


def _tuple(value):
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
