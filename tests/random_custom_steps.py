"""Steps of random graphs as other people write them: `keras.ops` by hand, keyword calls, layers
and activations of their own, adapted state, layers shared between tensors of other shapes."""

import keras
from random_parts import WIDTHS, Unfit, same_layer
from random_steps import has_positions, is_sequence, keeping, one_of


def over_channels(graph, choose):
    """`keras.ops` that reduce channels: norms, attention over positions, a layer by hand."""
    x = graph.operand(choose)
    axis = graph.axis(x)
    mean, largest = (f"ops.{name}({x}, axis={axis}, keepdims=True)" for name in ("mean", "max"))
    square = f"ops.sum(ops.square({x}), axis={axis}, keepdims=True)"
    form = choose(5)
    if form == 0:
        return graph.keep(f"{x} * ops.rsqrt(ops.mean(ops.square({x}), {axis}, True) + 1e-3)", x)
    if form == 1:
        return graph.keep(f"{x} / ops.sqrt({square} + 1e-3)", x)
    if form == 2:
        return graph.keep(f"{x} * ops.sigmoid({mean})", x)
    if form == 3 and has_positions(x):
        graph.lines.append(f"pooled = ops.concatenate([{mean}, {largest}], axis={axis})")
        spatial = f"layers.Conv{len(x.space)}D(1, 3, padding='same'{graph.format(x, True)})"
        return graph.keep(f"{x} * ops.sigmoid({spatial}(pooled))", x)
    return graph.keep(f"{x} - {mean}", x)


def distance(graph, choose):
    """Two tensors, compared channel by channel and added up."""
    x = graph.operand(choose, lambda x: graph.axis(x) == -1)
    y = graph.partner(choose, x)
    form = one_of(
        choose,
        "ops.sqrt(ops.sum(ops.square({x} - {y}), axis=-1, keepdims=True) + 1e-3)",
        "ops.sum({x} * {y}, axis=-1, keepdims=True)",
        "ops.mean(ops.abs({x} - {y}), axis=-1, keepdims=True)",
        "layers.Dot(axes=-1, normalize=True)([{x}, {y}])" if not x.space else "{x} - {y}",
    )
    width = x.channels if form == "{x} - {y}" else 1
    graph.add(form.format(x=x, y=y), x.space, width, x, y)


def expectation(graph, choose):
    """A softmax over bins, and the mean that it gives: the DFL head of detectors."""
    x = graph.operand(choose, lambda x: x.channels % 2 == 0 and graph.axis(x) == -1)
    bins = x.channels // 2
    shape = (-1, *x.space, 2, bins)
    ramp = f'np.arange({bins}, dtype="float32")'
    graph.lines.append(f"bins = ops.softmax(ops.reshape({x}, {shape}), axis=-1)")
    form = one_of(choose, f"ops.sum(bins * {ramp}, axis=-1)", f"ops.matmul(bins, {ramp})")
    if "matmul" in form and keras.__version__.startswith("3.12."):
        raise Unfit  # it takes the result of a product with a vector for a matrix
    graph.add(form, x.space, 2, x)


keyword_call = keeping(
    "layers.ReLU()(inputs={x})",
    "layers.BatchNormalization(axis={axis})(inputs={x})",
    "layers.Dropout(0.3)(inputs={x})",
    "ops.add(x1={x}, x2={ramp})",
    "ops.multiply(x1=2.0, x2={x})",
    "ops.relu(x={x})",
    "layers.LayerNormalization(axis={axis})(inputs={x})",
)
powers = keeping(
    "ops.square({x})", "{x} ** 2", "ops.clip({x}, -1.0, 1.0)", "ops.where({x} > 0, {x}, 0.1 * {x})"
)
own_layer = keeping(
    "random_layers.Narrow(0.5)({x})",
    "layers.Activation(random_layers.bump)({x})",
    "random_layers.bump({x})",
    "layers.Lambda(lambda t: t * 0.5)({x})",
)


def keyword_layer(graph, choose):
    """A layer that creates channels, called by keyword."""
    x, width = graph.operand(choose), one_of(choose, *WIDTHS)
    graph.add(f"{same_layer(graph, x, width, 3)}(inputs={x})", x.space, width, x)


def own_activation(graph, choose):
    """Dense and convolutions with activations that Keras does not know by name."""
    x, width = graph.operand(choose, lambda x: graph.axis(x) == -1), one_of(choose, *WIDTHS)
    activation = one_of(
        choose,
        "layers.LeakyReLU()",
        "random_layers.bump",
        "random_layers.shares",
        "layers.ReLU(max_value=2.0)",
        "ops.tanh",
    )
    layer = one_of(choose, f"layers.Dense({width}", f"random_layers.Flavoured({width}, 'sweet'")
    if has_positions(x) and choose(2):
        layer = f'layers.Conv{len(x.space)}D({width}, 3, padding="same"'
    graph.add(f"{layer}, activation={activation})({x})", x.space, width, x)


def adapted(graph, choose):
    """Layers that keep something beside their weights."""
    x = graph.operand(choose)
    # Keras 3.12 cannot build a Normalization by a vector for an axis before the last.
    if choose(2) or (graph.axis(x) > 0 and keras.__version__.startswith("3.12.")):
        graph.lines.append("adapted = random_layers.Offset()")
        y = graph.keep(f"adapted({x})", x)
        graph.lines.append("adapted.adapt(0.7)")
        return y
    scale = f'np.linspace(0.5, 2, {x.channels}, dtype="float32")'
    graph.lines.append(f"adapted = layers.Normalization(axis={graph.axis(x)}, mean={scale},")
    graph.lines.append(f"                               variance={scale})")
    return graph.keep(f"adapted({x})", x)


def shared_elsewhere(graph, choose):
    """One layer called on tensors whose positions, or their number, differ."""
    x = graph.operand(choose)
    y = graph.operand(choose, lambda y: y.space != x.space and y.channels == x.channels)
    width = one_of(choose, *WIDTHS)
    if graph.axis(x) == graph.axis(y) == -1:
        forms = [(f"layers.Dense({width})", width), ("layers.LayerNormalization()", x.channels)]
        if len(x.space) == len(y.space):
            forms.append((same_layer(graph, x, width, 3), width))
    elif len(x.space) == len(y.space):
        forms = [(same_layer(graph, x, width, 3), width)]
        forms.append(("layers.BatchNormalization(axis=1)", x.channels))
    else:
        forms = [("layers.ReLU()", x.channels)]
    layer, width = one_of(choose, *forms)
    graph.lines.append(f"shared = {layer}")
    graph.add(f"shared({x})", x.space, width, x)
    graph.add(f"shared({y})", y.space, width, y)


def free_einsum(graph, choose):
    """An `EinsumDense` that leaves the length of a sequence open; attention by einsum."""
    x, width = graph.operand(choose, is_sequence), one_of(choose, *WIDTHS)
    if choose(2):
        layer = f'layers.EinsumDense("abc,cd->abd", (None, {width}), bias_axes="d")'
        graph.open = True  # from here on Keras does not know the length either
        return graph.add(f"{layer}({x})", x.space, width, x)
    graph.lines.append(f"q, k = layers.Dense({width})({x}), layers.Dense({width})({x})")
    graph.lines.append('weights = ops.softmax(ops.einsum("btc,bsc->bts", q, k) * 0.5)')
    return graph.keep(f'ops.einsum("bts,bsc->btc", weights, {x})', x)


def masked(graph, choose):
    """A mask that Keras carries along with a sequence."""
    x, width = graph.operand(choose, is_sequence), one_of(choose, *WIDTHS)
    graph.masked = True
    graph.lines.append(f"present = layers.Masking(0.0)(ops.relu({x}))")
    form, space = one_of(
        choose,
        (f"layers.GRU({width})(present)", ()),
        (f"layers.LSTM({width}, return_sequences=True)(present)", x.space),
        (f"layers.Dense({width})(layers.BatchNormalization()(present))", x.space),
        (f"layers.Dense({width})(layers.GlobalAveragePooling1D()(present))", ()),
    )
    graph.add(form, space, width, x)


def array_arguments(graph, choose):
    """Operations whose arguments are arrays, as NumPy users write them."""
    x = graph.operand(choose, lambda x: x.channels > 2)
    axis, count = graph.axis(x), 1 + choose(x.channels - 1)
    form = choose(3)
    if form == 0:
        cut = f"np.array([{count}])"
        graph.lines.append(f"left, right = ops.split({x}, {cut}, axis={axis})")
        return graph.keep(f"ops.concatenate([right, left], axis={axis})", x)
    if form == 1:
        places = [(i * 2 + 1) % x.channels for i in range(count)]
        return graph.add(f"ops.take({x}, np.array({places}), axis={axis})", x.space, count, x)
    graph.lines.append(f"_, part = ops.split({x}, [{count}], axis={axis})")
    return graph.add("part", x.space, x.channels - count, x)


CUSTOM_STEPS = [over_channels, distance, expectation, keyword_call, keyword_layer, powers]
CUSTOM_STEPS += [own_layer, own_activation, adapted, shared_elsewhere, free_einsum, masked]
CUSTOM_STEPS += [array_arguments]
