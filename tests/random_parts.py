"""What random graphs are made of: tensors, and a graph that grows line by line."""

import dataclasses

LARGEST_WIDTH = 16
OPEN = 7  # what an axis has whose size a model leaves open
VECTOR, SEQUENCE, MAP, TOKENS = 0, 1, 2, 3  # sources of inputs: the first three are ranks
WIDTHS = (4, 6, 2, 8, 3, 5, 7)


class Unfit(Exception):  # noqa: N818
    """A step finds no tensor that it could be applied to."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A variable of the code: spatial sizes and channels."""

    name: str
    space: tuple[int, ...]
    channels: int

    def __str__(self) -> str:
        return self.name


class Graph:
    """Code so far, and the tensors that later steps may use."""

    def __init__(self, choose):
        self.lines, self.tensors, self.used, self.inputs, self.count = [], [], set(), [], 0
        kind = choose(12)  # channels_first twice in twelve, sequences three times
        self.first = kind in (6, 7)
        sources = [SEQUENCE, TOKENS, SEQUENCE] if kind >= 9 else [VECTOR if kind == 8 else MAP]
        several, variants = choose(4) == 1, [choose(8), choose(8)]
        self.batch = 2 if choose(10) == 9 else None  # most models take any number of samples
        self.open = self.batch is None and choose(8) == 7  # sizes that the model leaves open
        self.masked = False
        for i in range(1 + several):
            self.input(sources[kind % len(sources)], i, variants[i], choose(8))

    def input(self, source, index: int, variant: int, start: int) -> None:
        """An input, and a layer that makes channels of it which may be removed."""
        name, size = "ab"[index], OPEN if self.open else (7, 5, 8, 9)[variant % 4]
        self.inputs.append(name)
        if source == TOKENS:
            return self.tokens(name, size, start)
        x = Tensor(name, (size,) * source, 3)
        space = (None,) * source if self.open else x.space
        self.lines.append(f"{name} = {self.declared((3, *space) if self.first else (*space, 3))}")
        if start == 7:
            self.lines.append(f"{name}_scaled = layers.Rescaling(0.5, offset=-0.1)({name})")
        elif start == 6:
            self.lines.append(f"normal = layers.Normalization(axis={self.axis(x)})")
            shape = (8, 3, *x.space) if self.first else (8, *x.space, 3)
            self.lines.append(f"normal.adapt(np.random.default_rng(0).normal(1, 2, {shape}))")
            self.lines.append(f"{name}_scaled = normal({name})")
        y = f"{name}_scaled" if start in (6, 7) else name
        if variant >= 6:  # also the input itself is used
            self.tensors.insert(0, x)
        self.add(f"{same_layer(self, x, 6, 3)}({y})", x.space, 6)

    def tokens(self, name: str, size: int, start: int) -> None:
        """A sequence of indices, numbers or words, and their embedding."""
        text, shape = start == 7, (None if self.open else size,)
        self.lines.append(f"{name} = {self.declared(shape, 'string' if text else 'int32')}")
        index = name
        if text:
            self.lines.append('lookup = layers.StringLookup(vocabulary=["a", "c"])')
        elif start == 6:
            self.lines.append("lookup = layers.IntegerLookup()")
            self.lines.append("lookup.adapt(np.array([1, 1, 0, 3]))")
        if start >= 6:
            self.lines.append(f"{name}_index = lookup({name})")
            index = f"{name}_index"
        masked = ", mask_zero=True" * (start == 5)
        self.add(f"layers.Embedding(5, 6{masked})({index})", (size,), 6)

    def declared(self, shape: tuple, dtype: str = "") -> str:
        """Code of an input."""
        settings = f", batch_size={self.batch}" * (self.batch is not None)
        settings += f', dtype="{dtype}"' * bool(dtype)
        return f"keras.Input({shape}{settings})"

    def add(self, expression: str, space: tuple, channels: int, *used: Tensor) -> Tensor:
        """A line that makes a new tensor of others."""
        return self.unpack(expression, 1, space, channels, *used)[0]

    def keep(self, expression: str, x: Tensor, *used: Tensor) -> Tensor:
        """A line that makes a tensor of the same shape as `x`."""
        return self.add(expression, x.space, x.channels, x, *used)

    def unpack(self, expression, count, space, channels, *used) -> list[Tensor]:
        """A line that makes several."""
        if channels > LARGEST_WIDTH or len(space) > 2 or min(space, default=1) < 1:
            raise Unfit
        self.used.update(tensor.name for tensor in used)
        made = [Tensor(f"x{self.count + i}", space, channels) for i in range(count)]
        self.count += count
        self.lines.append(f"{', '.join(map(str, made))} = {expression}")
        self.tensors += made
        return made

    def operand(self, choose, fits=lambda x: True) -> Tensor:
        """An earlier tensor, as often as not the latest that fits."""
        found = [x for x in reversed(self.tensors) if fits(x)]
        chosen = choose(2) * choose(max(len(found), 1))
        if not found:
            raise Unfit
        return found[chosen]

    def partner(self, choose, x: Tensor, any_width: bool = False) -> Tensor:
        """Another tensor of the same shape, or of the same positions."""
        return self.operand(
            choose,
            lambda y: y != x and y.space == x.space and (any_width or y.channels == x.channels),
        )

    def format(self, x: Tensor, bias: bool = False) -> str:
        """Arguments of a layer for the data format.

        Keras adds a bias wrongly in channels_first where a map is as wide as it has channels.
        """
        if not self.first or len(x.space) < 2:
            return ""
        return ', data_format="channels_first"' + ", use_bias=False" * bias

    def axis(self, x: Tensor) -> int:
        return 1 if self.first and len(x.space) == 2 else -1

    def shape(self, x: Tensor, *channels: int) -> tuple:
        """A target shape with these sizes in the place of the channels."""
        return (-1, *channels, *x.space) if self.axis(x) == 1 else (-1, *x.space, *channels)

    def finish(self, choose) -> None:
        """One to three outputs, among which all tensors are shared out that nothing has used."""
        loose = [x for x in self.tensors if x.name not in self.used and x.name[0] == "x"]
        count = min(len(loose), (1, 1, 2, 3)[choose(4)])
        outputs = []
        for i in range(count):
            mine = loose[i::count]
            if choose(4) == 3 and len(mine) == 1:
                outputs.append(mine[0].name)  # as it is: its channels must stay
                continue
            flat = [self.pooled(x, choose(3)) for x in mine]
            joined = flat[0] if len(flat) == 1 else f"layers.Concatenate()([{', '.join(flat)}])"
            self.lines.append(f"y{i} = layers.Dense(3)({joined})")
            outputs.append(f"y{i}")
        names = [f"[{', '.join(n)}]" if len(n) > 1 else n[0] for n in (self.inputs, outputs)]
        self.lines.append(f"model = keras.Model({', '.join(names)})")

    def pooled(self, x: Tensor, how: int) -> str:
        if not x.space:
            return x.name
        rank, data_format = len(x.space), self.format(x)
        if self.open and how == 1:  # how many features that would be is not known
            how = 0
        name = (f"GlobalAveragePooling{rank}D", "Flatten", f"GlobalMaxPooling{rank}D")[how]
        return f"layers.{name}({data_format.removeprefix(', ')})({x})"


def same_layer(graph, x, width: int, kernel: int) -> str:
    """A layer that creates channels and keeps positions."""
    if not x.space:
        return f"layers.Dense({width})"
    arguments = f'{width}, {kernel}, padding="same"{graph.format(x, bias=True)}'
    return f"layers.Conv{len(x.space)}D({arguments})"
