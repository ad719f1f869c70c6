"""How a plan was made: the call that made it, as data and as code."""

import contextlib
import dataclasses
import inspect
import math
from typing import Any, Literal

import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.selecting import matching
from keras_nisp.damage.table import Sensitivity
from keras_nisp.keras_graph import keras_models
from keras_nisp.plans.budget import Budget

Scalar = bool | int | float | str | None
Plain = Scalar | tuple[Scalar, ...]
Function = Literal["plan_pruning", "plan_merging", "NISPPruner"]


@dataclasses.dataclass(frozen=True)
class ObjectCall:
    """An object as the call that makes it, as far as files can hold that.

    Attributes:
        name: name of the class, or of the function if the object is one.
        module: module in which it is defined; `"keras_nisp"` for objects of this package.
        arguments: arguments of the constructor that differ from their defaults; `None` for a
            function.
        data: names of the arguments that are data or functions.
    """

    name: str
    module: str
    arguments: dict[str, Plain] | None = None
    data: tuple[str, ...] = ()

    def code(self, otherwise: str) -> str:
        """The call as Python code; `otherwise` names what has no name of its own."""
        if not self.name.isidentifier():
            return otherwise
        called = f"kn.{self.name}" if self.module == "keras_nisp" else self.name
        if self.arguments is None:
            return called
        arguments = [f"{name}={name}" for name in self.data]
        arguments += [f"{name}={value!r}" for name, value in self.arguments.items()]
        return f"{called}({', '.join(arguments)})"


def object_call(part: Any) -> ObjectCall:
    """The call that makes an object: its arguments are its attributes of the same names."""
    module = getattr(part, "__module__", None) or ""
    module = "keras_nisp" if module.startswith("keras_nisp.") else module
    if hasattr(part, "__name__"):
        return ObjectCall(part.__name__, module)
    arguments: dict[str, Plain] = {}
    data: list[str] = []
    with contextlib.suppress(ValueError):  # of builtins without a signature
        for name, parameter in inspect.signature(type(part)).parameters.items():
            value = getattr(part, name, parameter.default)
            if _is_plain(value):
                if not _is_plain(parameter.default) or value != parameter.default:
                    arguments[name] = _plain(value)
            elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            elif value is not parameter.default or value is parameter.empty:
                data.append(name)
    return ObjectCall(type(part).__name__, module, arguments, tuple(data))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(entry) and not isinstance(entry, (tuple, list)) for entry in value)
    if isinstance(value, (float, np.floating)):
        return math.isfinite(value)
    return isinstance(value, (bool, int, str, type(None), np.bool_, np.integer))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The call that made a plan.

    Attributes:
        function: the function that was called.
        importance: the importance that scored the channels; `None` if they are merged.
        clustering, owners, seed: arguments of `plan_merging`.
        calibration: whether the function got calibration data, besides those of the importance.
        budget: the budget, with layers named by their paths. For a `NISPPruner` its amount is the
            one that was reached.
        latency: the table of a latency budget; `None` for the default.
        schedule: the schedule of a `NISPPruner`; `None` for the default.
        whole_groups: paths of grouped convolutions that lose whole groups.
        input_shape: the argument `input_shape`, for models that leave sizes open.
    """

    function: Function
    importance: ObjectCall | None = None
    clustering: str | ObjectCall | None = None
    owners: str = "all"
    seed: int = 0
    calibration: bool = False
    budget: Budget
    latency: ObjectCall | None = None
    schedule: ObjectCall | None = None
    whole_groups: tuple[str, ...] = ()
    input_shape: tuple[tuple[int, ...], ...] | None = None

    @property
    def name(self) -> str:
        """The importance or clustering that chose the channels, in a few words."""
        if self.importance is not None:
            return self.importance.name
        if isinstance(self.clustering, ObjectCall):
            return self.clustering.name
        if self.clustering in ("even", "imbalanced"):
            return f"{self.clustering} clusters"
        what = "activations" if self.clustering == "activations" else "kernels"
        pacesetters = " of pacesetters" if (what, self.owners) == ("kernels", "pacesetter") else ""
        return f"k-means on {what}{pacesetters} (seed {self.seed})"

    @property
    def code(self) -> str:
        """Python code that makes the plan again, given `model` and data of these names."""
        lines = [f"    {name}={text}," for name, text in self._arguments().items()]
        if self.function == "NISPPruner":
            lines = ["pruner = kn.NISPPruner(", *lines, ")"]
            lines += ["model.fit(data, callbacks=[pruner])", "plan = pruner.plan"]
        else:
            lines = [f"plan = kn.{self.function}(", "    model,", *lines, ")"]
        return "\n".join(["import keras_nisp as kn", "", *lines])

    def _arguments(self) -> dict[str, str]:
        """The arguments that differ from their defaults, as code."""
        found: dict[str, str] = {}
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if isinstance(value, Budget):
                found |= {name: repr(argument) for name, argument in value.arguments.items()}
                if value.allocation == "uniform" and not value.kind.endswith("_reduction"):
                    del found["allocation"]  # whatever data there are
                if isinstance(value.allocation, Sensitivity):
                    found["allocation"] = "table"
            elif field.name == "calibration":
                found |= {"calibration": "calibration"} if value else {}
            elif isinstance(value, ObjectCall):
                found[field.name] = value.code(otherwise=field.name)
            elif value != field.default:
                found[field.name] = repr(value)
        return found


@dataclasses.dataclass(frozen=True)
class EarlierRecipe:
    """How a plan of an earlier release was made: only text.

    Attributes:
        name: name of the importance or clustering.
        budget: the budget, as text.
    """

    name: str
    budget: str

    code = None


def recipe(function: Function, channel_map: ChannelMap, budget: Budget, **others: Any) -> Recipe:
    """The recipe of a plan for a traced model.

    Args:
        function: what was called.
        channel_map: the traced model.
        budget: the budget.
        **others: attributes of `Recipe`; objects are turned into the calls that make them.
    """
    for name, value in {**others, "latency": budget.latency}.items():
        plain = value is None or isinstance(value, (str, int))
        others[name] = value if plain else object_call(value)
    paths = [channel_map.calls[index].path for index in channel_map.whole_groups]
    if keras_models.is_open(channel_map.model) and not channel_map.assumed:
        others["input_shape"] = tuple(map(tuple, channel_map.input_shapes))
    return Recipe(
        function=function,
        budget=_by_path(budget, channel_map),
        whole_groups=tuple(dict.fromkeys(paths)),
        **others,
    )


def _by_path(budget: Budget, channel_map: ChannelMap) -> Budget:
    """The budget with paths in the place of layer objects, and without its table."""

    def paths(entry: Any, argument: str) -> list[str]:
        return [entry] if isinstance(entry, str) else matching(channel_map, entry, argument)

    exclude = [path for entry in budget.exclude for path in paths(entry, "exclude")]
    plain: dict[str, Any] = {"latency": None, "exclude": tuple(exclude)}
    if budget.kind in ("ratios", "widths"):
        amounts = getattr(budget, budget.kind).items()
        fixed = {call.path for call in channel_map.calls} - {
            channel_map.creators[i].layer for group in channel_map.groups for i in group.creators
        }
        plain[budget.kind] = {
            path: amount
            for entry, amount in amounts
            for path in paths(entry, budget.kind)
            if isinstance(entry, str) or path not in fixed  # of all that a nested model holds
        }
    return dataclasses.replace(budget, **plain)
