"""What random graphs are made of: tensors, and a graph that grows line by line."""

import dataclasses

LARGEST_WIDTH = 16
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
        for i in range(1 + (choose(4) == 1)):
            self.input(sources[kind % len(sources)], i, choose(8))

    def input(self, source, index: int, variant: int) -> None:
        """An input, and a layer that makes channels of it which may be removed."""
        name, size = "ab"[index], (7, 5, 8, 9)[variant % 4]
        self.inputs.append(name)
        if source == TOKENS:
            self.lines.append(f'{name} = keras.Input(({size},), dtype="int32")')
            self.add(f"layers.Embedding(5, 6)({name})", (size,), 6)
            return
        x = Tensor(name, (size,) * source, 3)
        shape = (3, *x.space) if self.first else (*x.space, 3)
        self.lines.append(f"{name} = keras.Input({shape})")
        if variant >= 6:  # also the input itself is used
            self.tensors.insert(0, x)
        self.add(f"{same_layer(self, x, 6, 3)}({x})", x.space, 6)

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
        name = (f"GlobalAveragePooling{rank}D", "Flatten", f"GlobalMaxPooling{rank}D")[how]
        return f"layers.{name}({data_format.removeprefix(', ')})({x})"


def same_layer(graph, x, width: int, kernel: int) -> str:
    """A layer that creates channels and keeps positions."""
    if not x.space:
        return f"layers.Dense({width})"
    arguments = f'{width}, {kernel}, padding="same"{graph.format(x, bias=True)}'
    return f"layers.Conv{len(x.space)}D({arguments})"
