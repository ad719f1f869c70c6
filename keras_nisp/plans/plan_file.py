"""Plans as JSON files."""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from keras_nisp.errors import PlanFileError
from keras_nisp.io import schema
from keras_nisp.io.files import replacing
from keras_nisp.plans.budget import RANKINGS
from keras_nisp.plans.plan_checks import LARGEST_COUNT, check_parts

if TYPE_CHECKING:
    from keras_nisp.plans.plan import Plan

FORMAT = "keras_nisp plan"
VERSION = 6
# 1 knew no clusters, 2 no scores, 3 said in words how a plan was made, 4 knew no allocation, 5 no
# cached keys and values.
READABLE = (1, 2, 3, 4, 5, 6)


def to_dict(plan: "Plan") -> dict:
    data = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(plan)}
    for row in data["variables"]:
        row["clusters"] = sorted(row["clusters"].items())  # JSON has no integer keys
    return json.loads(json.dumps(data))


def from_dict(kind: type["Plan"], data: dict, source: str) -> "Plan":
    """The plan, of a class; `source` says in errors where the data come from."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PlanFileError(f"Expected a plan in {source}. It is another kind of JSON.")
    version = data.get("version")
    if type(version) is not int or version not in READABLE:  # True is 1, too
        known = isinstance(version, int) and abs(version) < LARGEST_COUNT
        raise PlanFileError(
            f"Expected a plan of version {VERSION} in {source}. Received version "
            f"{version if known else '?'}: it was written by another release of keras_nisp."
        )
    try:
        parts = {key: part for key, part in data.items() if key not in ("format", "version")}
        if version < 4:
            words = {"name": parts.pop("importance", None), "budget": parts.pop("budget", None)}
            parts["recipe"] = words
        elif version == 4:
            _allocated(parts)
        plan = schema.read(kind, parts)
        check_parts(plan)
    except ValueError as error:
        raise PlanFileError(f"Expected a plan in {source}. It is damaged: {error}") from error
    return plan


def _allocated(parts: dict) -> None:
    """Gives the recipe of version 4, whose budget had a `ranking`, what it meant by that."""
    recipe = parts.get("recipe")
    if not isinstance(recipe, dict):
        return
    recipe = parts["recipe"] = {"calibration": recipe.get("clustering") == "activations", **recipe}
    budget = recipe.get("budget")
    if isinstance(budget, dict) and "ranking" in budget:
        ranking = budget["ranking"]
        rest = {name: value for name, value in budget.items() if name != "ranking"}
        allocation = RANKINGS.get(ranking, "") if isinstance(ranking, str) else ""
        recipe["budget"] = {**rest, "allocation": allocation}


def save(plan: "Plan", path: str | os.PathLike) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(to_dict(plan)), encoding="utf-8")


def load(kind: type["Plan"], path: str | os.PathLike) -> "Plan":
    try:
        data = schema.parse(Path(path).read_bytes())
    except ValueError as error:  # of UnicodeDecodeError, JSONDecodeError, too many digits
        raise PlanFileError(f"Expected a plan in '{path}'. It is not JSON: {error}") from error
    return from_dict(kind, data, f"'{path}'")
