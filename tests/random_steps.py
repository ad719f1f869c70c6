"""The steps of random graphs: each adds lines of Keras code to a graph, or does not fit."""

from collections.abc import Callable

from random_parts import WIDTHS, Unfit, same_layer


def one_of(choose, *options):
    return options[choose(len(options))]


def slid(space, kernel, stride, padding, dilation=1) -> tuple[int, ...]:
    """Sizes after a window has slid over positions."""
    reach = (kernel - 1) * dilation if padding == "valid" else 0
    return tuple((size - reach - 1) // stride + 1 for size in space)


def has_positions(x) -> bool:
    return len(x.space) > 0


def is_sequence(x) -> bool:
    return len(x.space) == 1


# Steps ---------------------------------------------------------------------------------


def nothing(graph, choose):
    """Lets Hypothesis remove a step by a zero."""


def keeping(*forms: str) -> Callable:
    """A step by one of these expressions, none of which changes a shape."""

    def step(graph, choose):
        x = graph.operand(choose)
        form, axis = one_of(choose, *forms), graph.axis(x)
        if graph.masked and "Softmax" in form:
            raise Unfit  # Keras' layer takes no mask of time steps
        ramp = f'np.linspace(0.5, 2, {x.channels}, dtype="float32")'
        ramp += "[:, None, None]" * (axis == 1)
        positions = range(2, 4) if axis == 1 else range(1, 1 + len(x.space))
        shared = f"shared_axes={list(positions)}" if graph.open and x.space else ""
        graph.keep(form.format(x=x, axis=axis, ramp=ramp, shared=shared), x)

    return step


activation = keeping(
    "layers.ReLU()({x})",
    "layers.LeakyReLU()({x})",
    "keras.activations.gelu({x})",
    "ops.sigmoid({x})",
    'layers.Activation("tanh")({x})',
    "ops.relu({x})",
    "layers.PReLU({shared})({x})",
    "layers.Softmax(axis={axis})({x})",
    "layers.Dropout(0.3)({x})",
    "layers.GaussianNoise(0.3)({x})",
)
batch_norm = keeping(
    "layers.BatchNormalization(axis={axis})({x})",
    "layers.BatchNormalization(axis={axis}, scale=False)({x})",
)
constant = keeping(
    "{x} * 2.0", "{x} + 1.0", "{x} * {ramp}", "0.5 - {x}", "-{x}", "{x} / 2.0", "{x} - {ramp}"
)


def layer_norm(graph, choose):
    """RMSNormalization scales along the last axis, which must not be open."""
    x = graph.operand(choose)
    forms = [f"layers.LayerNormalization(axis={graph.axis(x)})({x})"]
    if graph.axis(x) == -1 or not graph.open:
        forms.append(f"layers.RMSNormalization()({x})")
    graph.keep(one_of(choose, *forms), x)


def convolution(graph, choose):
    """Also Dense, for vectors."""
    x, width = graph.operand(choose), one_of(choose, *WIDTHS)
    activation = one_of(choose, "", "", ', activation="relu"', ', activation="tanh"')
    if not x.space or (choose(6) == 5 and graph.axis(x) == -1):
        return graph.add(f"layers.Dense({width}{activation})({x})", x.space, width, x)
    kernel, padding = one_of(choose, 1, 3), one_of(choose, "same", "valid")
    stride, dilation = one_of(choose, (1, 1), (2, 1), (1, 2))
    groups = one_of(choose, 1, 1, 1, 2, x.channels)
    if x.channels % groups:
        groups = 1
    width = -(-width // groups) * groups
    arguments = f'{width}, {kernel}, strides={stride}, padding="{padding}"'
    arguments += f", dilation_rate={dilation}" * (dilation > 1)
    arguments += f", groups={groups}" * (groups > 1) + activation + graph.format(x, bias=True)
    space = slid(x.space, kernel, stride, padding, dilation)
    graph.add(f"layers.Conv{len(x.space)}D({arguments})({x})", space, width, x)


def depthwise(graph, choose):
    """Also separable."""
    x, multiplier = graph.operand(choose, has_positions), one_of(choose, 1, 2)
    kernel, padding = one_of(choose, 3, 2), one_of(choose, "same", "valid")
    stride, dilation = one_of(choose, (1, 1), (2, 1), (1, 2))
    width, prefix = x.channels * multiplier, "layers.DepthwiseConv"
    arguments = f'{kernel}, strides={stride}, padding="{padding}", depth_multiplier={multiplier}'
    if choose(2):
        width = one_of(choose, *WIDTHS)
        prefix, arguments = "layers.SeparableConv", f"{width}, {arguments}"
    arguments += f", dilation_rate={dilation}" * (dilation > 1) + graph.format(x, bias=True)
    space = slid(x.space, kernel, stride, padding, dilation)
    graph.add(f"{prefix}{len(x.space)}D({arguments})({x})", space, width, x)


def transposed(graph, choose):
    x = graph.operand(choose, lambda x: 0 < max(x.space, default=0) < 6)
    width, stride = one_of(choose, *WIDTHS), one_of(choose, 1, 2)
    arguments = f'{width}, 3, strides={stride}, padding="same"{graph.format(x, bias=True)}'
    space = tuple(size * stride for size in x.space)
    graph.add(f"layers.Conv{len(x.space)}DTranspose({arguments})({x})", space, width, x)


def join(graph, choose):
    """Two tensors of one shape, element by element."""
    x = graph.operand(choose)
    y = graph.partner(choose, x)
    names = ("Add", "Maximum", "Subtract", "Average", "Multiply", "Minimum")
    forms = [f"layers.{name}()([{x}, {y}])" for name in names]
    forms += [f"{x} + {y}", f"{x} * {y}", f"{x} - {y}", f"ops.maximum({x}, {y})"]
    graph.keep(one_of(choose, *forms), x, y)


def residual(graph, choose):
    x = graph.operand(choose)
    y = graph.keep(f"{same_layer(graph, x, x.channels, one_of(choose, 1, 3))}({x})", x)
    graph.keep(one_of(choose, f"{x} + {y}", f"layers.Add()([{x}, {y}])"), x, y)


def concatenate(graph, choose):
    x = graph.operand(choose)
    y, axis = graph.partner(choose, x, any_width=True), graph.axis(x)
    parts = one_of(choose, (x, y), (y, x, y))
    name = one_of(choose, "layers.Concatenate(axis={1})({0})", "ops.concatenate({0}, axis={1})")
    expression = name.format(f"[{', '.join(map(str, parts))}]", axis)
    graph.add(expression, x.space, sum(part.channels for part in parts), *parts)


def split(graph, choose):
    x = graph.operand(choose, lambda x: x.channels % 2 == 0)
    axis, half = graph.axis(x), x.channels // 2
    parts = graph.unpack(f"ops.split({x}, 2, axis={axis})", 2, x.space, half, x)
    if choose(2) == 0:
        graph.keep(f"ops.concatenate([{parts[1]}, {parts[0]}], axis={axis})", x, *parts)


def slice_channels(graph, choose):
    x = graph.operand(choose, lambda x: x.channels > 2)
    count = 1 + choose(x.channels - 1)
    cut, width = one_of(choose, (f":{count}", count), (f"{count}:", x.channels - count))
    graph.add(f"{x}[{':, ' if graph.axis(x) == 1 else '..., '}{cut}]", x.space, width, x)


def shuffle(graph, choose):
    """Channel shuffle, as in ShuffleNet."""
    x = graph.operand(choose, lambda x: x.channels % 2 == 0)
    first = 1 if graph.axis(x) == 1 else len(x.space) + 1
    order = list(range(len(x.space) + 3))
    order[first : first + 2] = first + 1, first
    expression = f"ops.reshape({x}, {graph.shape(x, 2, x.channels // 2)})"
    expression = f"ops.transpose({expression}, {tuple(order)})"
    graph.keep(f"ops.reshape({expression}, {graph.shape(x, x.channels)})", x)


def pad_channels(graph, choose):
    """Zero channels, for a shortcut to a wider stage."""
    x, before, after = graph.operand(choose), choose(2), 2
    paddings = [(0, 0)] * (len(x.space) + 2)
    paddings[graph.axis(x)] = (before, after)
    graph.add(f"ops.pad({x}, {paddings})", x.space, x.channels + before + after, x)


def pooling(graph, choose):
    x = graph.operand(choose, has_positions)
    name, padding = one_of(choose, "MaxPooling", "AveragePooling"), one_of(choose, "same", "valid")
    size, stride = one_of(choose, (2, 2), (3, 1))
    arguments = f'{size}, {stride}, padding="{padding}"{graph.format(x)}'
    space = slid(x.space, size, stride, padding)
    graph.add(f"layers.{name}{len(x.space)}D({arguments})({x})", space, x.channels, x)


def resizing(graph, choose):
    x = graph.operand(choose, lambda x: 0 < max(x.space, default=0) < 8)
    name, amount, factor, more = one_of(
        choose, ("ZeroPadding", 1, 1, 2), ("Cropping", 1, 1, -2), ("UpSampling", 2, 2, 0)
    )
    space = tuple(size * factor + more for size in x.space)
    arguments = f"{amount}{graph.format(x)}"
    graph.add(f"layers.{name}{len(x.space)}D({arguments})({x})", space, x.channels, x)


def gate(graph, choose):
    """Squeeze and excite, or one factor for each position."""
    x = graph.operand(choose, has_positions)
    if choose(2):
        factor = f"{same_layer(graph, x, 1, 1)}({x})"
    else:
        rank, arguments = len(x.space), f"keepdims=True{graph.format(x)}"
        pooled = f"layers.GlobalAveragePooling{rank}D({arguments})({x})"
        squeezed = f"{same_layer(graph, x, 3, 1)}({pooled})"
        factor = f"{same_layer(graph, x, x.channels, 1)}(layers.ReLU()({squeezed}))"
    graph.lines.append(f'gate = layers.Activation("sigmoid")({factor})')
    graph.keep(one_of(choose, f"layers.Multiply()([{x}, gate])", f"{x} * gate"), x)


def shared(graph, choose):
    """One layer called on two tensors."""
    x = graph.operand(choose)
    y, width = graph.partner(choose, x), one_of(choose, *WIDTHS)
    norm = f"layers.BatchNormalization(axis={graph.axis(x)})"
    layer, width = one_of(choose, (same_layer(graph, x, width, 3), width), (norm, x.channels))
    graph.lines.append(f"shared = {layer}")
    graph.unpack(f"shared({x}), shared({y})", 2, x.space, width, x, y)


def nested(graph, choose):
    """A model in the model, called once or twice."""
    x = graph.operand(choose)
    kind, called = choose(3), [x]
    if choose(2):
        called.append(graph.partner(choose, x))
    width = x.channels if kind == 0 else one_of(choose, *WIDTHS)
    shape, layer = graph.shape(x, x.channels)[1:], same_layer(graph, x, width, 1)
    norm = f"layers.BatchNormalization(axis={graph.axis(x)})"
    if kind == 2:
        steps = f"keras.Input({shape}), {layer}, {norm}, layers.ReLU()"
        graph.lines.append(f"part = keras.Sequential([{steps}])")
    else:
        graph.lines.append(f"i = keras.Input({shape})")
        graph.lines.append(f"part = keras.Model(i, {'i + ' * (kind == 0)}{norm}({layer}(i)))")
    for y in called:
        graph.add(f"part({y})", x.space, width, y)


def to_vector(graph, choose):
    x, how = graph.operand(choose, has_positions), choose(3)
    width, vector = x.channels, graph.pooled(x, how)
    if how == 1:  # flattened, too wide for later steps: a layer that reads it at once
        vector, width = f"layers.Dense(6)({vector})", 6
    graph.add(vector, (), width, x)


def to_map(graph, choose):
    """Dense features reshaped to a map, as in a decoder."""
    x, width = graph.operand(choose, lambda x: not x.space), one_of(choose, *WIDTHS)
    side = one_of(choose, 2, 3)
    shape = (width, side, side) if graph.first else (side, side, width)
    dense = f"layers.Dense({side * side * width})({x})"
    graph.add(f"layers.Reshape({shape})({dense})", (side, side), width, x)


def to_sequence(graph, choose):
    """A map as a sequence of positions, or channels as time."""
    x = graph.operand(choose, lambda x: has_positions(x) and graph.axis(x) == -1)
    if graph.open:
        raise Unfit  # how many channels or steps there would be is not known
    if is_sequence(x):
        return graph.add(f"layers.Permute((2, 1))({x})", (x.channels,), x.space[0], x)
    length = x.space[0] * x.space[1]
    graph.add(f"layers.Reshape({(length, x.channels)})({x})", (length,), x.channels, x)


def recurrent(graph, choose):
    x, width = graph.operand(choose, is_sequence), one_of(choose, *WIDTHS)
    space, arguments = one_of(choose, (x.space, f"{width}, return_sequences=True"), ((), width))
    layer = f"layers.{one_of(choose, 'LSTM', 'GRU', 'SimpleRNN')}({arguments})"
    if choose(3) == 2:
        layer, width = f"layers.Bidirectional({layer})", 2 * width
    graph.add(f"{layer}({x})", space, width, x)


def attention(graph, choose):
    """Of a sequence to itself, by a layer or written by hand."""
    x, width = graph.operand(choose, is_sequence), one_of(choose, *WIDTHS)
    if choose(2) == 0:
        layer = f"layers.MultiHeadAttention({one_of(choose, 2, 1)}, {width})"
        y = graph.keep(f"{layer}({x}, {x})", x)
        graph.keep(f"{x} + {y}", x, y)
        return
    graph.lines.append(f"q, k, v = [layers.Dense({width})({x}) for _ in range(3)]")
    graph.lines.append("weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 2, 1))) * 0.5)")
    graph.add("ops.matmul(weights, v)", x.space, width, x)


def in_time(graph, choose):
    """Other layers of sequences."""
    x, width = graph.operand(choose, is_sequence), one_of(choose, *WIDTHS)
    length = (None,) if graph.open else x.space
    expression, space, channels = one_of(
        choose,
        (f"layers.TimeDistributed(layers.Dense({width}))({x})", x.space, width),
        (f"ops.mean({x}, axis=1)", (), x.channels),
        (f'layers.EinsumDense("btc,cd->btd", {(*length, width)})({x})', x.space, width),
        (f"layers.RepeatVector(5)(layers.GlobalMaxPooling1D()({x}))", (5,), x.channels),
    )
    graph.add(expression, space, channels, x)


# The simple first; what most graphs are made of, several times.
ALL_STEPS = [nothing, convolution, activation, batch_norm, residual, join, concatenate, pooling]
ALL_STEPS += [convolution, depthwise, transposed, gate, shared, nested, constant, layer_norm]
ALL_STEPS += [split, slice_channels, shuffle, pad_channels, resizing, to_vector, to_map, join]
ALL_STEPS += [to_sequence, recurrent, attention, in_time, convolution, activation, batch_norm]
ALL_STEPS += [residual, concatenate, join, recurrent, attention, in_time]
