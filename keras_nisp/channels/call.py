"""One call of one layer, as the trace sees it: what rules work with."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_nisp.channels.channel_map import Binding
from keras_nisp.channels.named_tensor import Traced, rows
from keras_nisp.channels.registry import rule_for
from keras_nisp.channels.rule import Barrier, Rule, spread
from keras_nisp.errors import RuleError, warn
from keras_nisp.keras_graph import calling, keras_layers

if TYPE_CHECKING:
    from keras_nisp.channels.tracer import Tracer


@dataclasses.dataclass(eq=False)
class Call:
    """One call of one layer: what the methods of a `Rule` are given, to read and to say things.

    A rule's `trace` says through it what happens to channels (`along`, `create`, `spread`, `join`,
    `fix`, `fix_all`, `hide`, `bind`, `bind_constant`), and what costs no kernel shows (`multiply`,
    `cache`); its other methods read what was said.
    Names are integers: equal ones are the same channel.

    Attributes:
        layer: the layer or operation that is called.
        path: its name, after the names of the models that hold it: `"backbone/conv1"`.
        rule: the rule that knows its family.
        inputs: a `Traced` for each tensor among the arguments, flat.
        output_shapes: shapes of the outputs without their batch axis, flat.
        batch_axes: where the batch axis of each output lies, flat.
        outputs: a `Traced` for each output, flat; empty while `trace` runs.
        batch: how many entries of the batch axis one sample takes in the outputs: that of the
            inputs, unless `trace` assigns another.
        reads: whether a kernel reads the inputs, so that NISP reads the scores of their channels
            here. `bind` sets it where there is a `read`; a product of two tensors sets it itself.
        mixes_channels, sums_channels: whether this call does; see `Rule`. `trace` may assign.
        softmax: whether its layer ends with a softmax over channels that it gives: it is these that
            the call mixes, not those that enter.
        hidden: names that no tensor shows, by the label that `hide` was given.
        constants: bindings of constant arrays among the arguments, by the position of the
            argument; see `bind_constant`.
        sources: which of the inputs kernels read as it comes in, by `id`; see `bind`.
        multiplied: what is multiplied without a kernel; see `multiply`.
        cached: keys and values that are kept for each position; see `cache`.
        points_at: of a call that follows indices of channels the `Traced.points_at` of each output;
            if it is not set, channels that an input points at are fixed.
        letters: of a product of tensors, those of the axes of each of `inputs`, and of the result.

    For the library alone, and free to change: `tracer`, which collects what `trace` says, `node`,
    which identifies the call in the graph, `whole_groups`, whether a grouped convolution loses
    whole groups, `samples`, how many samples go through a layer at once where it is tried out,
    `on_infer` and `on_tap`, which `infer` and `tap` call where they are given, and the methods
    `ask`, `error`, `inside`, `fresh` and `single`.

    Example: see `Rule`, and docs/custom_layers.md.
    """

    layer: keras.Operation
    path: str
    rule: Rule
    inputs: list[Traced]
    output_shapes: list[tuple[int, ...]]
    tracer: "Tracer" = dataclasses.field(repr=False)
    batch_axes: list[int] = dataclasses.field(default_factory=list)
    outputs: list[Traced] = dataclasses.field(default_factory=list)
    reads: bool = False
    softmax: bool = False
    constants: dict[int, Binding] = dataclasses.field(default_factory=dict)
    hidden: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sources: dict[int, int] = dataclasses.field(default_factory=dict)
    multiplied: list[tuple[int, list[np.ndarray]]] = dataclasses.field(default_factory=list)
    cached: list[tuple[int, list[np.ndarray], str]] = dataclasses.field(default_factory=list)
    points_at: list[np.ndarray | None] | None = None
    letters: tuple[list[str], str] | None = None
    node: int | None = None
    whole_groups: bool = False
    samples: int = 1
    on_infer: Callable | None = None
    on_tap: Callable | None = None

    def __post_init__(self) -> None:
        self.mixes_channels = self.rule.mixes_channels
        self.sums_channels = self.rule.sums_channels
        self.batch = max((tensor.batch for tensor in self.inputs), default=1)
        self.batch_axes = self.batch_axes or [0] * len(self.output_shapes)

    @property
    def weights(self) -> list[keras.Variable]:
        """The weights of the layer; an operation has none."""
        return getattr(self.layer, "weights", [])

    @property
    def mixed(self) -> list[Traced]:
        """Where the channels lie that the call mixes or adds up, if it does."""
        return self.outputs if self.softmax else self.inputs

    @property
    def compute_dtype(self) -> str:
        """The dtype in which the layer computes; for an operation that of Keras."""
        return getattr(self.layer, "compute_dtype", None) or keras.backend.floatx()

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Runs a method of the rule for this call: `call.ask("absolute", x)`.

        Raises:
            RuleError: whatever goes wrong there, with the names of the layer and of the rule.
        """
        try:
            return getattr(self.rule, method)(self, *args, **kwargs)
        except RuleError:
            raise
        except Exception as error:
            raise self.error(method, f"raised {type(error).__name__}: {error}") from error

    def error(self, method: str, what: str) -> RuleError:
        """What to raise where a method of the rule does what it must not."""
        rule = f"{type(self.rule).__module__}.{type(self.rule).__qualname__}"
        return RuleError(
            f"`{method}` of {rule}, the rule for layer '{self.path}' "
            f"({type(self.layer).__name__}), {what}"
        )

    # What a rule's `trace` may say. ------------------------------------------------

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the first output, without its batch axis."""
        return self.output_shapes[0]

    def create(self, count: int, label: str = "") -> np.ndarray:
        """Makes names for channels that this layer creates, as a kernel's outputs are.

        A layer that is called again creates the same channels again.

        Args:
            count: how many.
            label: tells the channels of several axes apart, where a layer creates on several.

        Returns:
            1-D array of names.
        """
        return self.tracer.create(self, count, label)

    def spread(self, names: np.ndarray, axis: int = -1, output: int = 0) -> np.ndarray:
        """Lays names along one axis of an output: what `trace` returns.

        Args:
            names: 1-D array, from `create` or `along`.
            axis: the batch axis not counted; -1 is the last.
            output: which of several.

        Returns:
            The names, in a shape that broadcasts to that of the output.
        """
        return spread(names, axis, len(self.output_shapes[output]))

    def grid(self, lines: dict[int, np.ndarray], output: int = 0) -> np.ndarray:
        """Lays names along several axes of an output: what `trace` returns.

        Args:
            lines: axis -> 1-D names, the batch axis not counted. An element of the output is there
                as long as its name along each axis is.
            output: which of several.

        Returns:
            The names, in a shape that broadcasts to that of the output.
        """
        rank = len(self.output_shapes[output])
        parts = [spread(names, axis % rank, rank) for axis, names in sorted(lines.items())]
        return parts[0] if len(parts) == 1 else self.tracer.grids.product(parts)

    def put_units(self, units: np.ndarray) -> None:
        """Puts units in the place of names, once the trace has found them."""
        self.hidden = {label: units[names] for label, names in self.hidden.items()}
        self.multiplied = [(n, [units[x] for x in lines]) for n, lines in self.multiplied]
        self.cached = [(n, [units[x] for x in lines], dtype) for n, lines, dtype in self.cached]

    def fix_all(self, reason: str, unknown: bool = False) -> list[np.ndarray]:
        """Says that the rule does not reach this call: nothing it touches may be removed.

        Args:
            reason: for `plan.explain`, after the name of the layer: "which sorts channels".
            unknown: whether users are to be told that channels stay for want of a rule.

        Returns:
            The names of the outputs, for `trace` to return.
        """
        self.rule = barrier = Barrier(reason, unknown)
        self.mixes_channels = self.sums_channels = self.reads = self.softmax = False
        self.constants, self.hidden, self.multiplied, self.points_at = {}, {}, [], None
        return barrier.trace(self)

    def block(self, reason: str, unknown: bool = False) -> list[np.ndarray]:
        """The old name of `fix_all`."""
        warn("`call.block(reason)` is now called `call.fix_all(reason)`.", DeprecationWarning)
        return self.fix_all(reason, unknown)

    def fresh(self, shape: tuple[int, ...], reason: str) -> np.ndarray:
        """Names along the last axis of a tensor for values that may not be removed."""
        return self.fix(self.tracer.fresh_last(shape), reason)

    def inside(self, layer: keras.Operation, inputs: list[Traced], shapes: list) -> "Call":
        """The call of a layer that this one holds.

        Args:
            layer: the layer inside.
            inputs: what enters it.
            shapes: of what leaves it.
        """
        rule = rule_for(layer, tuple(inputs))
        return Call(layer, self.path, rule, inputs, shapes, self.tracer)

    def single(self, reason: str) -> np.ndarray:
        """One name for an output whose axes hold no channels."""
        names = np.full((1,) * len(self.output_shape), self.tracer.fresh(1)[0])
        return self.fix(names, reason)

    def hide(self, count: int, label: str) -> np.ndarray:
        """Makes names for channels that the layer creates and no tensor shows: heads, say.

        `call.hidden[label]` has them from then on. In `absolute`, `call.tap(label, tensor, axis)`
        says where their scores are read.

        Args:
            count: how many.
            label: what they are called; `plan.explain("attention:heads")` finds them by it.

        Returns:
            1-D array of names.
        """
        self.hidden[label] = self.create(count, f":{label}")
        return self.hidden[label]

    def fix(self, names: np.ndarray, reason: str, unknown: str | None = None) -> np.ndarray:
        """Says that these channels may not be removed, and why.

        Args:
            names: of the channels.
            reason: for `plan.explain`.
            unknown: where it is only that nothing is known of what happens to them: what it is
                that nothing is known of, for a warning.

        Returns:
            The names, as they came.
        """
        self.tracer.fixed.append((np.unique(names), reason))
        if unknown:
            self.tracer.unknown[reason] = unknown
        return names

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Says that names are, position by position, those of the same channels.

        They are then removed together, or not at all.

        Args:
            first, second: arrays of names that broadcast to each other.
        """
        self.tracer.join(first, second)

    def along(self, tensor: Traced, axis: int) -> np.ndarray:
        """The names along one axis of a tensor.

        Positions that differ in other axes become one channel. If the names vary only
        along other axes, this one carries no channels, and all are fixed.

        Args:
            tensor: what `trace` was given.
            axis: of it, the batch axis not counted; -1 is the last.

        Returns:
            1-D array, one name for each position along the axis.
        """
        for other, line in tensor.lines.items():
            if other != axis % tensor.rank:
                self.fix(line, f"'{self.path}' works along another axis")
        if axis % tensor.rank in tensor.lines:
            return tensor.line(axis)
        names = np.moveaxis(tensor.names, axis, -1)
        size = tensor.shape[axis]
        if names.shape[-1] == 1 and names.size > 1:
            self.fix(names, f"'{self.path}' works along an axis that holds no channels")
            return np.full(size, names.flat[0])
        lines = rows(names)
        if len(lines) > 1:
            self.join(lines[:1], lines[1:])
        return np.broadcast_to(lines[0], (size,))

    def bind(
        self,
        variable: Any,
        own: dict[int, np.ndarray] | None = None,
        read: dict[int, np.ndarray] | None = None,
        create: dict[int, np.ndarray] | None = None,
        positions: int = 0,
        source: Traced | None = None,
        passed: Iterable[np.ndarray] = (),
    ) -> None:
        """Says which names lie along the axes of a variable.

        `None` is passed over. Whatever else is no variable (a kernel that a layer computes from
        other weights, or holds as a constant) fixes its channels.

        Args:
            variable: the layer's variable.
            own: axis -> names of the channels that this axis holds: one entry each.
            read: axis -> names of the channels that this axis takes in.
            create: axis -> names from `create`: a kernel's output axis.
            positions: for kernels, at how many positions each element is applied.
            source: for kernels of a layer with several inputs: which one is multiplied by it.
            passed: names along axes of the input, among those of the positions, that the output
                has as well: the kernel is applied to each of these channels alone.
        """
        if source is not None:
            self.sources[id(variable)] = self.inputs.index(source)
        if isinstance(variable, keras.Variable):
            applied = positions * self.batch
            self.tracer.bind(self, variable, own or {}, read or {}, create or {}, applied)
            if applied and (lines := list(passed)):
                self.tracer.bindings[id(variable)].passed.append((applied, lines))
        elif (factors := keras_layers.low_rank_kernel(self.layer, variable)) is not None:
            self._bind_low_rank(factors, own or {}, read or {}, create or {}, positions)
        elif variable is not None:
            reason = f"'{self.path}' computes with a kernel that is no variable"
            for names in ((own or {}) | (read or {}) | (create or {})).values():
                kind = f"{type(self.layer).__name__}, whose kernel is no variable"
                self.fix(names, reason, unknown=f"'{self.path}' ({kind})")
        if read:
            self.reads = True

    def _bind_low_rank(self, factors, own, read, create, positions) -> None:
        """Binds a kernel with LoRA: its last axis is that of the second factor, the others are
        those of the first."""
        kernel, first, second, scale = factors
        self.bind(kernel, own, read, create, positions)
        self.tracer.bindings[id(kernel)].low_rank = (first, second, scale)
        last = len(kernel.shape) - 1
        parts = [{k % (last + 1): n for k, n in axes.items()} for axes in ({**own, **create}, read)]
        held, taken = ({k: n for k, n in axes.items() if k != last} for axes in parts)
        self.bind(first, own=held, read=taken)
        held, taken = ({1: axes[last]} if last in axes else {} for axes in parts)
        self.bind(second, own=held, read=taken)

    def multiply(self, shape: Iterable[int], lines: Iterable[np.ndarray] = ()) -> None:
        """Says that tensors are multiplied with each other, for FLOPs.

        Args:
            shape: the product of these sizes is the number of multiply-adds for one sample.
            lines: names along those of these axes that hold channels.
        """
        self.multiplied.append((math.prod(shape) * self.batch, list(lines)))

    def cache(
        self, shape: Iterable[int], lines: Iterable[np.ndarray] = (), dtype: str | None = None
    ) -> None:
        """Says that attention keeps keys or values for every position, while a decoder generates.

        Args:
            shape: the product of these sizes is how many numbers it keeps for one position.
            lines: names along those of these axes that hold channels.
            dtype: of the numbers; by default the one in which the layer computes.
        """
        self.cached.append((math.prod(shape), list(lines), dtype or self.compute_dtype))

    def bind_constant(self, position: int, array: Any, axes: dict[int, np.ndarray]) -> None:
        """Says which names lie along the axes of a constant array among the arguments.

        Args:
            position: of the argument.
            array: the constant.
            axes: axis -> names.
        """
        array = np.asarray(array)
        axes = {axis % array.ndim: names for axis, names in axes.items()}
        self.constants[position] = Binding(array, self.path, axes)

    def infer(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer itself, in inference mode, on tensors of its own size.

        For `absolute`, where the layer is linear and has no weights, and for `masked`.
        """
        if self.on_infer is not None:
            return self.on_infer(*args, **kwargs)
        return calling.infer(self.layer, *args, **kwargs)

    # What a rule's `absolute` may say. ---------------------------------------------

    def tap(self, label: str, tensor: Any, axis: int) -> Any:
        """Reads the scores of hidden channels here: those along one axis of a tensor.

        Args:
            label: that of `hide`.
            tensor: where the channels are, in the absolute network.
            axis: along which they lie in it, the batch axis counted.

        Returns:
            The tensor, to be used in the place of the one that came.
        """
        return tensor if self.on_tap is None else self.on_tap(label, tensor, axis)
