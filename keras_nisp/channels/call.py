"""One call of one layer, as the trace sees it: the object that rules work with."""

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
    """One call of one layer. Each method of a `Rule` gets it, to read from and to declare things.

    A rule's `trace` declares through it what happens to channels (`along`, `create`, `spread`,
    `grid`, `join`, `fix`, `fix_all`, `hide`, `bind`, `bind_constant`), and costs that no kernel
    has (`multiply`, `cache`). The rule's other methods read what was declared.
    Names are integers: equal ones are the same channel.

    Attributes:
        layer: the layer or operation that is called.
        path: name of the layer, after the names of the models that hold it: `"backbone/conv1"`.
        rule: the rule for this layer.
        inputs: a `Traced` for each tensor among the arguments, flat.
        output_shapes: shapes of the outputs without their batch axis, flat.
        batch_axes: positions of the batch axis in the outputs, flat.
        outputs: a `Traced` for each output, flat; empty while `trace` runs.
        batch: number of entries of the batch axis that one sample takes in the outputs: that of
            the inputs, unless `trace` assigns another.
        reads: whether a kernel reads the inputs, so that NISP reads the scores of their channels
            here. `bind` sets it if it is given a `read`; rules for products of two tensors assign
            it.
        mixes_channels, sums_channels: whether this call does so; see `Rule`. `trace` may assign
            them.
        softmax: whether the layer ends with a softmax over its output channels. The call then
            mixes these, not the channels of its inputs.
        hidden: names of channels that appear in no tensor, by the label that `hide` was given.
        constants: bindings of constant arrays among the arguments, by the position of the
            argument; see `bind_constant`.
        sources: index of the input that a kernel reads, by the kernel's `id`; see `bind`.
        multiplied: products without a kernel; see `multiply`.
        cached: keys and values that are kept for each position; see `cache`.
        points_at: for a call that follows indices of channels, the `Traced.points_at` of each
            output. If it is not set, channels that an input points at are fixed.
        letters: for a product of tensors, the letters of the axes of each of `inputs`, and those
            of the result.

    Internal to the library, and free to change: `tracer`, which collects what `trace` declares,
    `node`, which identifies the call in the graph, `whole_groups`, whether a grouped convolution
    loses whole groups, `samples`, the number of samples in trial runs of a layer, `on_infer` and
    `on_tap`, which `infer` and `tap` call if they are set, and the methods `ask`, `error`,
    `inside`, `fresh` and `single`.

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
        """The tensors whose channels the call mixes or adds up, if it does."""
        return self.outputs if self.softmax else self.inputs

    @property
    def compute_dtype(self) -> str:
        """The dtype in which the layer computes; for an operation, Keras' `floatx`."""
        return getattr(self.layer, "compute_dtype", None) or keras.backend.floatx()

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Runs a method of the rule for this call: `call.ask("absolute", x)`.

        Raises:
            RuleError: the method failed. The error names the layer and the rule.
        """
        try:
            return getattr(self.rule, method)(self, *args, **kwargs)
        except RuleError:
            raise
        except Exception as error:
            raise self.error(method, f"raised {type(error).__name__}: {error}") from error

    def error(self, method: str, what: str) -> RuleError:
        """The error for a method of the rule that does something wrong."""
        rule = f"{type(self.rule).__module__}.{type(self.rule).__qualname__}"
        return RuleError(
            f"`{method}` of {rule}, the rule for layer '{self.path}' "
            f"({type(self.layer).__name__}), {what}"
        )

    # What a rule's `trace` may declare. --------------------------------------------

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the first output, without its batch axis."""
        return self.output_shapes[0]

    def create(self, count: int, label: str = "") -> np.ndarray:
        """Makes names for channels that this layer creates, such as the outputs of a kernel.

        Another call of the same layer gets the same names.

        Args:
            count: number of channels.
            label: distinguishes the channels of different axes, if a layer creates several.

        Returns:
            1-D array of names.
        """
        return self.tracer.create(self, count, label)

    def spread(self, names: np.ndarray, axis: int = -1, output: int = 0) -> np.ndarray:
        """Lays names along one axis of an output, for `trace` to return.

        Args:
            names: 1-D array, from `create` or `along`.
            axis: axis of the output, the batch axis not counted; -1 is the last.
            output: index of the output, if there are several.

        Returns:
            The names, in a shape that broadcasts to that of the output.
        """
        return spread(names, axis, len(self.output_shapes[output]))

    def grid(self, lines: dict[int, np.ndarray], output: int = 0) -> np.ndarray:
        """Lays names along several axes of an output, for `trace` to return.

        Args:
            lines: 1-D names by axis, the batch axis not counted. An element of the output stays as
                long as its name along each axis does.
            output: index of the output, if there are several.

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
        """Declares that the rule cannot follow this call: no channel that it touches is removed.

        Args:
            reason: text for `plan.explain`, after the name of the layer: "which sorts channels".
            unknown: whether to warn users that channels stay because a rule is missing.

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
            inputs: the tensors that enter it.
            shapes: shapes of its outputs.
        """
        rule = rule_for(layer, tuple(inputs))
        return Call(layer, self.path, rule, inputs, shapes, self.tracer)

    def single(self, reason: str) -> np.ndarray:
        """One name for an output whose axes hold no channels."""
        names = np.full((1,) * len(self.output_shape), self.tracer.fresh(1)[0])
        return self.fix(names, reason)

    def hide(self, count: int, label: str) -> np.ndarray:
        """Makes names for channels that the layer creates but that appear in no tensor: heads, say.

        `call.hidden[label]` has them from then on. In `absolute`, `call.tap(label, tensor, axis)`
        says where their scores are read.

        Args:
            count: number of channels.
            label: name of these channels; `plan.explain("attention:heads")` finds them by it.

        Returns:
            1-D array of names.
        """
        self.hidden[label] = self.create(count, f":{label}")
        return self.hidden[label]

    def fix(self, names: np.ndarray, reason: str, unknown: str | None = None) -> np.ndarray:
        """Declares that these channels may not be removed, and why.

        Args:
            names: array of names.
            reason: text for `plan.explain`.
            unknown: the layer or function to name in the warning, if the channels stay only
                because a rule is missing.

        Returns:
            The names, unchanged.
        """
        self.tracer.fixed.append((np.unique(names), reason))
        if unknown:
            self.tracer.unknown[reason] = unknown
        return names

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Declares that names stand, position by position, for the same channels.

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
            tensor: one of the tensors that `trace` was given.
            axis: axis of the tensor, the batch axis not counted; -1 is the last.

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
        """Declares which names lie along the axes of a variable.

        `None` is skipped. If `variable` is anything else than a variable (a kernel that a layer
        computes from other weights, or holds as a constant), its channels are fixed.

        Args:
            variable: the layer's variable.
            own: names by axis: channels of which the axis holds one entry each, as in a bias.
            read: names by axis: channels that a kernel sums over.
            create: names by axis, from `create`: the output axis of a kernel.
            positions: for kernels, the number of positions of one sample at which each element is
                applied.
            source: for kernels of a layer with several inputs, the one that the kernel multiplies.
            passed: for kernels, names along other axes of the input that the output has as well:
                the kernel is applied to each of these channels separately. `positions` counts them.
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
        """Declares that tensors are multiplied with each other, for FLOPs.

        Args:
            shape: sizes whose product is the number of multiply-adds for one sample.
            lines: names along those of these axes that hold channels.
        """
        self.multiplied.append((math.prod(shape) * self.batch, list(lines)))

    def cache(
        self, shape: Iterable[int], lines: Iterable[np.ndarray] = (), dtype: str | None = None
    ) -> None:
        """Declares that attention keeps keys or values for each position while a decoder generates.

        Args:
            shape: sizes whose product is how many numbers it keeps for one position.
            lines: names along those of these axes that hold channels.
            dtype: dtype of the numbers; by default the one in which the layer computes.
        """
        self.cached.append((math.prod(shape), list(lines), dtype or self.compute_dtype))

    def bind_constant(self, position: int, array: Any, axes: dict[int, np.ndarray]) -> None:
        """Declares which names lie along the axes of a constant array among the arguments.

        Args:
            position: position of the argument.
            array: the constant.
            axes: names by axis.
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

    # What a rule's `absolute` may declare. -----------------------------------------

    def tap(self, label: str, tensor: Any, axis: int) -> Any:
        """Marks where the scores of hidden channels are read: along one axis of a tensor.

        Args:
            label: the label that `hide` was given.
            tensor: a tensor of the absolute network that holds the channels.
            axis: axis along which they lie, the batch axis counted.

        Returns:
            A tensor to use instead of the given one.
        """
        return tensor if self.on_tap is None else self.on_tap(label, tensor, axis)
