"""Finds the final response layer (FRL): the tensor that the classifier reads."""

import dataclasses
from typing import Any

import numpy as np

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.errors import NoFinalResponseLayerError
from keras_nisp.importance.base import per_unit, run
from keras_nisp.keras_graph.masks import level
from keras_nisp.keras_graph.wrappers import UnfoldTime


@dataclasses.dataclass(frozen=True, eq=False)
class FinalResponse:
    """The responses that are ranked.

    Attributes:
        tensor: the traced tensor of the responses.
        classifier: the call that reads it; `None` if the user named the layer.
    """

    tensor: Traced
    classifier: Call | None


def check_names(frl: Any) -> None:
    """Raises unless `frl` is a name, or a list of names that is not empty."""
    names = [frl] if isinstance(frl, str) else frl
    if not isinstance(names, (list, tuple)) or not names or not isinstance(names[0], str):
        raise TypeError(
            f"Expected `frl` to be the name of a layer, or a list of names. Received: frl={frl!r}"
        )


def find_final_responses(channel_map: ChannelMap, frl=None) -> list[FinalResponse]:
    """The final responses of a model.

    From each output, the layers are followed back to those whose kernels make it: the
    classifiers, several where an output is put together from parts. What they read are final
    responses.

    Args:
        channel_map: the traced model.
        frl: name of the layer (or a list of names) whose output is to be taken instead.

    Raises:
        NoFinalResponseLayerError: no output is made by layers with kernels, or
            there is no layer of the name.
    """
    if frl is not None:
        names = [frl] if isinstance(frl, str) else frl
        return [FinalResponse(_named(channel_map, name).outputs[0], None) for name in names]
    producers = {id(t): call for call in channel_map.calls for t in call.outputs}
    found: dict[int, FinalResponse] = {}
    made = [_classifiers(output, producers) for output in channel_map.outputs]
    for index, classifiers in enumerate(made):
        if not classifiers and any(made):
            continue  # an input that is passed on: there is nothing to rank
        features = [(call, _features(channel_map, call)) for call in classifiers]
        if not classifiers or not all(tensors for _, tensors in features):
            raise NoFinalResponseLayerError(
                f"Output {index} of model '{channel_map.model.name}' does not come from "
                "classifier layers with a kernel, so there is no final response layer to rank. "
                "Name the layer whose responses matter most: `frl='layer_name'`."
            )
        for call, tensors in features:
            for tensor in tensors:
                found.setdefault(id(tensor), FinalResponse(tensor, call))
    return list(found.values())


def _features(channel_map: ChannelMap, call: Call) -> list[Traced]:
    """What the kernels of a call read: its input, or of several those that are no masks."""
    if len(call.inputs) == 1:
        return call.inputs
    bindings = [channel_map.bindings.get(id(weight)) for weight in call.weights]
    axes = [binding.axes[axis] for binding in bindings if binding for axis in binding.read]
    read = channel_map.seen(np.concatenate([np.zeros(0, int), *(units.ravel() for units in axes)]))
    return list({id(t): t for t in call.inputs if read[t.names].any()}.values())


def _classifiers(output: Traced, producers: dict) -> list[Call]:
    """The calls with kernels that a tensor comes from by the shortest ways."""
    found, seen, pending = [], set(), [output]
    while pending:
        call = producers.get(id(pending.pop()))
        if call is None or id(call) in seen:
            continue  # a model input, or met on another way
        seen.add(id(call))
        if call.reads:
            found.append(call)
        else:  # unfolding time reads off its second input how many steps there are, no more
            pending += call.inputs[:1] if isinstance(call.layer, UnfoldTime) else call.inputs
    return found


def _named(channel_map: ChannelMap, name: str) -> Call:
    for call in channel_map.calls:
        if name in (call.path, call.layer.name):
            return call
    known = [call.path for call in channel_map.calls]
    raise NoFinalResponseLayerError(
        f"There is no layer '{name}' for `frl` in model '{channel_map.model.name}'. Its last "
        f"layers are: {known[-8:]}."
    )


def collect_responses(channel_map, final: FinalResponse, batches) -> tuple[np.ndarray, np.ndarray]:
    """Responses of the FRL to batches of samples, a feature map averaged over its positions.

    Returns:
        The units of the features and the array `(samples, features)`.
    """
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    size = np.prod(final.tensor.shape) / max(final.tensor.names.size, 1)

    def capture(tensor):
        rows.append(per_unit(level(tensor), final.tensor.names))

    for inputs, _ in batches:
        if final.classifier is None:
            _run_until(channel_map, inputs, final.tensor, capture)
        else:
            run(channel_map, inputs, _at(final.classifier, final.tensor, capture))
    responses = np.concatenate([values for _, values in rows]) / size
    if not np.isfinite(responses).all():
        where = final.classifier.path if final.classifier else "the layer named by `frl`"
        raise ValueError(
            f"Expected finite responses. Received NaN or infinity in what enters '{where}' of "
            f"model '{channel_map.model.name}' on the calibration data: activations overflow "
            "(in half precision?), or the data are in another range than in training."
        )
    return rows[0][0], responses


def _at(classifier: Call, read: Traced, capture):
    def on_read(call, index, tensor):
        # Attention may read the same tensor several times.
        if call is classifier and index == first:
            capture(tensor)
        return tensor

    first = [tensor is read for tensor in classifier.inputs].index(True)
    return on_read


def _run_until(channel_map, inputs, traced, capture):
    def visit(call, args, kwargs):
        outputs = call.infer(*args, **kwargs)
        if any(tensor is traced for tensor in call.outputs):
            capture(outputs)
        return outputs

    channel_map.walk(inputs, visit)
