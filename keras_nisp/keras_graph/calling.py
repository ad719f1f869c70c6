"""How layers and models are called, in inference or training, and calls watched."""

import contextlib
import contextvars
import functools
import inspect
import re
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.layers.layer import CallContext
from keras.src.models import functional

from keras_nisp.errors import reason_of
from keras_nisp.keras_graph.keras_layers import (
    operation_class,
    own_weights,
    takes_training,
)
from keras_nisp.keras_graph.keras_models import structured_inputs

# Held while something is replaced that all threads see, or nodes are added to a user's layers.
PATCHING = threading.RLock()

# Operations on numbers one by one, and products: what Keras computes with lists on data alone.
_OF_NUMBERS = (
    *("add", "subtract", "multiply", "divide", "true_divide", "floor_divide", "mod", "power"),
    *("maximum", "minimum", "where", "matmul", "equal", "not_equal", "less", "less_equal"),
    *("greater", "greater_equal", "logical_and", "logical_or"),
)
OF_NUMBERS = tuple(filter(None, map(operation_class, _OF_NUMBERS)))
ADVICE = (
    "If it takes batches of one size alone, let the model say so: `keras.Input(..., batch_size=n)`"
)


def takes(layer: keras.Layer, argument: str) -> bool:
    """Whether a layer's `call` names an argument."""
    return argument in inspect.signature(layer.call).parameters


# Whether a `training` that a graph has noted for a call holds when the model is called with
# another (Keras 3.16).
KEEPS_TRAINING = not hasattr(functional, "operation_fn")


def as_layer_takes_it(layer: keras.Layer, tensor: Any) -> Any:
    """A tensor in the dtype to which a layer casts what it is called with."""
    if not getattr(layer, "_convert_input_args", True):
        return tensor
    return layer.dtype_policy.convert_input(tensor, layer.autocast, layer.input_dtype)


@contextlib.contextmanager
def on_data(layer: keras.Operation):
    """What a layer computes in it on data: names the layer if it does not take their values."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        reason = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", reason_of(error).partition(": ")[2])
        raise ValueError(
            f"Expected values that layer '{layer.name}' ({type(layer).__name__}) can take, as in "
            f"training. Received others: {with_advice(reason)}."
        ) from error


def with_advice(reason: str) -> str:
    """A reason, and what to do if it is that code reshapes to a batch of one size."""
    reshapes = re.search(
        "[Cc]annot reshape|total size of the tensor|requested shape (has|requires)", reason
    )
    if not reshapes or ADVICE.partition(":")[0] in reason:  # it may be cut short
        return reason
    return f"{reason}. {ADVICE}"


@contextlib.contextmanager
def noted_updates():
    """Variables keep their values in it; gives the list of what would have changed, filled at
    the end."""
    noted: list[str] = []
    with keras.StatelessScope(collect_losses=True) as scope:
        yield noted
    noted += ["a variable or random seed"] * bool(scope.state_mapping)
    noted += ["the model's losses"] * bool(scope.losses)


@contextlib.contextmanager
def symbolic_weights(layer: keras.Layer):
    """In it a layer's own weights are symbolic, as far as its attributes hold them; gives one
    tensor for each of them."""
    weights = own_weights(layer)
    tensors = [keras.Input(batch_shape=w.shape, dtype=_seen_dtype(layer, w)) for w in weights]
    places = {id(weight): tensor for weight, tensor in zip(weights, tensors, strict=True)}
    held = {key: value for key, value in vars(layer).items() if id(value) in places}
    vars(layer).update({key: places[id(value)] for key, value in held.items()})
    try:
        yield tensors
    finally:
        vars(layer).update(held)


@contextlib.contextmanager
def noted_reads():
    """Gives the `id` of each variable whose value is read meanwhile, in this thread."""
    found: set[int] = set()
    kind, thread = keras.Variable, threading.get_ident()
    with PATCHING:
        before, own = vars(kind).get("value"), kind.value.fget

        def value(variable):
            if threading.get_ident() == thread:
                found.add(id(variable))
            return own(variable)

        kind.value = property(value)
        try:
            yield found
        finally:
            if before is None:
                del kind.value
            else:
                kind.value = before


@contextlib.contextmanager
def operations_of_tensorflow():
    """In it `tf.gather` takes symbolic tensors, as `keras.ops.take` does; `tf.TensorArray` keeps
    them."""

    def gather(params, indices, *args, axis=None, batch_dims=0, **kwargs):
        if not isinstance(params, keras.KerasTensor) or args or kwargs:
            return own(params, indices, *args, axis=axis, batch_dims=batch_dims, **kwargs)
        axis = batch_dims if axis is None else axis
        if not batch_dims:
            return keras.ops.take(params, indices, axis=axis)
        if len(params.shape) == len(indices.shape) == batch_dims + 1 and axis == batch_dims:
            return keras.ops.take_along_axis(params, indices, axis=axis)
        return own(params, indices, axis=axis, batch_dims=batch_dims)

    with PATCHING:
        own, array = tf.gather, tf.TensorArray
        tf.gather, tf.TensorArray = gather, _TensorArray
        try:
            yield
        finally:
            tf.gather, tf.TensorArray = own, array


class _TensorArray(tf.TensorArray):
    """Keeps symbolic tensors, too, which are stacked by an operation of Keras."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._written: dict[Any, Any] = {}

    def write(self, index, value, name=None):
        if not tf.is_symbolic_tensor(index):
            self._written[int(index)] = value
        return self if isinstance(value, keras.KerasTensor) else super().write(index, value, name)

    def read(self, index, name=None):
        value = None if tf.is_symbolic_tensor(index) else self._written.get(int(index))
        return value if isinstance(value, keras.KerasTensor) else super().read(index, name)

    def stack(self, name=None):
        values = [self._written[index] for index in sorted(self._written)]
        if not any(isinstance(value, keras.KerasTensor) for value in values):
            return super().stack(name)
        return keras.ops.stack(values, axis=0)


@contextlib.contextmanager
def like_arrays():
    """In it symbolic tensors take all indices that arrays take, of which Keras refuses some as
    such (`x[:4]`, `x[None]`), arrays to the left of an operator (`array * x`), and lists of numbers
    on both sides."""
    kind = keras.KerasTensor
    own, known = kind.__getitem__, "__array_priority__" in vars(kind)
    own_call = keras.Operation.symbolic_call

    def item(tensor, key):
        return own(tensor, key if isinstance(key, (tuple, int)) else (key,))

    def call(operation, *args, **kwargs):
        if isinstance(operation, OF_NUMBERS):
            tensors = (x for x in args if isinstance(x, kind) and "float" in x.dtype)
            dtype = next((x.dtype for x in tensors), None)
            args = tuple(_as_array(x, dtype) for x in args)
        return own_call(operation, *args, **kwargs)

    kind.__getitem__, keras.Operation.symbolic_call = item, call
    if not known:
        kind.__array_priority__ = 100  # as tensors of TensorFlow have it
    try:
        yield
    finally:
        kind.__getitem__, keras.Operation.symbolic_call = own, own_call
        if not known:
            del kind.__array_priority__


def _as_array(value: Any, dtype: str | None) -> Any:
    """A list of numbers as the array that it is beside a tensor of this dtype."""
    if not isinstance(value, (list, tuple)):
        return value
    numbers = (bool, int, float, np.generic)
    if not all(isinstance(x, numbers) for x in keras.tree.flatten(value)):
        return value
    array = np.asarray(value)
    return array.astype(dtype) if array.dtype.kind == "f" and dtype else array


@contextlib.contextmanager
def without_losses(layer: keras.Layer):
    """In it a layer adds no losses; gives the list of those that it would have added."""
    losses: list = []
    before = {key: value for key, value in vars(layer).items() if key == "add_loss"}
    vars(layer)["add_loss"] = losses.append
    try:
        yield losses
    finally:
        del vars(layer)["add_loss"]
        vars(layer).update(before)


def _seen_dtype(layer: keras.Layer, weight: keras.Variable) -> str:
    """The dtype in which a layer's code sees a weight."""
    casts = layer.autocast and getattr(weight, "autocast", True) and "float" in weight.dtype
    return layer.compute_dtype if casts else weight.dtype


@contextlib.contextmanager
def without_memory():
    """Weights that are made in it have shapes, and no values."""
    pending = global_state.get_global_attribute("uninitialized_variables") or []
    global_state.set_global_attribute("uninitialized_variables", [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute("uninitialized_variables", pending)


@contextlib.contextmanager
def intercepted_calls(call: Callable):
    """While it lasts, calling a layer runs `call(layer, proceed, args, kwargs)` instead.

    In this thread: layers that others call meanwhile, such as a training run, do what they do. So
    do those that Keras calls on placeholders, to know the shapes of what another one gives.
    """
    token = _interception.set(call)
    _Interceptor.enter()
    try:
        yield
    finally:
        _Interceptor.leave()
        _interception.reset(token)


_interception: contextvars.ContextVar[Callable | None] = contextvars.ContextVar(
    "interception", default=None
)


@contextlib.contextmanager
def apart():
    """In it layers do what they do by themselves, whatever intercepts calls or notes updates around
    it."""
    token = _interception.set(None)
    scope = global_state.get_global_attribute("stateless_scope")
    global_state.set_global_attribute("stateless_scope", None)
    try:
        yield
    finally:
        global_state.set_global_attribute("stateless_scope", scope)
        _interception.reset(token)


class _Interceptor:
    """Replaces `keras.Layer.__call__` while any thread intercepts calls."""

    lock = threading.Lock()
    users = 0
    installed = False
    proceed = keras.Layer.__call__

    @classmethod
    def enter(cls) -> None:
        with cls.lock:
            cls.users += 1
            if not cls.installed:
                cls.proceed, keras.Layer.__call__ = keras.Layer.__call__, _intercepted
                cls.installed = True

    @classmethod
    def leave(cls) -> None:
        with cls.lock:
            cls.users -= 1
            # Who has put something around it meanwhile (a profiler, say) keeps that.
            if not cls.users and keras.Layer.__call__ is _intercepted:
                keras.Layer.__call__ = cls.proceed
                cls.installed = False


@functools.wraps(keras.Layer.__call__)
def _intercepted(layer, /, *args, **kwargs):
    call = _interception.get()
    if call is None or in_symbolic_scope():  # where Keras tries shapes, the call is known
        return _Interceptor.proceed(layer, *args, **kwargs)
    return call(layer, _Interceptor.proceed, args, kwargs)


def infer(layer: keras.Operation, /, *args, **kwargs) -> Any:
    """Calls a layer in inference mode, and so all that it calls."""
    return call_in_mode(layer, False, *args, **kwargs)


def entering(inner: keras.Layer, layer: keras.Layer, /, *args, **kwargs) -> Any:
    """What enters a layer inside another one, when that is called in inference mode."""
    entered = []

    def watch(called, proceed, args, kwargs):
        if called is inner:
            entered.append(args[0])
        return proceed(called, *args, **kwargs)

    with intercepted_calls(watch):
        infer(layer, *args, **kwargs)
    return entered[0]


def call_in_mode(layer: keras.Operation, training: bool, /, *args, **kwargs) -> Any:
    """Calls a layer in training or in inference, and so all that it calls."""
    if takes_training(layer):
        kwargs = {**kwargs, "training": training}  # the graph may have noted a default
    with mode(training), on_data(layer):
        return layer(*args, **kwargs)


@contextlib.contextmanager
def mode(training: bool):
    """What is called in it takes itself to be in training, or in inference."""
    context = CallContext(entry_layer=None)
    context.set_value("training", training)
    before = global_state.get_global_attribute("current_call_ctx")
    global_state.set_global_attribute("current_call_ctx", context)
    try:
        yield
    finally:
        global_state.set_global_attribute("current_call_ctx", before)


def recurrent_states(operation: keras.Operation) -> list[keras.Variable]:
    """What is kept from batch to batch in an operation and what it holds."""
    inside = operation._flatten_layers() if isinstance(operation, keras.Layer) else ()
    return [
        state
        for inner in inside
        if isinstance(inner, keras.layers.RNN) and inner.stateful
        for state in keras.tree.flatten(inner.states)
        if state is not None
    ]


@contextlib.contextmanager
def fresh_states(operation: keras.Operation):
    """While it lasts, what keeps its state from batch to batch starts from zero; afterwards it has
    the state that it had, and so have layers that write to other variables."""
    states = recurrent_states(operation)
    is_layer = isinstance(operation, keras.Layer)
    written = [*states, *(operation.non_trainable_variables if is_layer else ())]
    before = [tf.convert_to_tensor(variable) for variable in written]
    for state in states:
        state.assign(tf.zeros_like(state))
    try:
        yield
    finally:
        for variable, value in zip(written, before, strict=True):
            variable.assign(value)


def answer(model: keras.Model, inputs: list) -> Any:
    """What a model gives in inference for a flat list of inputs, from a fresh state."""
    with fresh_states(model), on_data(model):
        return model(structured_inputs(model, inputs), training=False)
