"""What pruning during training has to remember, where Keras' checkpoints find it."""

import json
import weakref

import keras
import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.keras_graph import keras_training

ATTRIBUTE = "_nisp_pruner"  # of the model that is pruned
TEXT = ("fingerprint", "kind", "step", "batches", "reached", "span", "position", "epoch")


class PrunerState(keras.Operation):
    """All that the end of pruning depends on besides the weights.

    While a model is pruned this is one of its attributes. Keras saves the state of whatever it
    finds there with the weights, so `BackupAndRestore`, `ModelCheckpoint` and `save_weights` bring
    it back. It holds no variables and is no layer: the model's weights stay what they are, and
    files with and without it load into models with and without it.

    Attributes:
        fingerprint, kind: of the traced model and of the budget, to notice another one.
        step: number of batches so far, beginning with those that the optimizer had seen.
        batches: those that the optimizer had seen when `step` was counted.
        counted: gives that optimizer; `None` before the first count, and where a file says the
            count. (Keras would save an optimizer itself along with this state.)
        reached: amount removed so far.
        span: first and last step of the default schedule, once it is laid.
        position: how far the schedule was read; see `ScheduleReader`.
        epoch: the one of the last pruning step.
        removed: boolean per unit; empty before training.
        scores: those by which units were removed last.
        random_states: what dropout draws next, which Keras does not save by itself.
        loaded: whether a file was loaded that the pruner has not looked at yet.
        restored: whether one was loaded that held the state of a pruner.
    """

    def __init__(self):
        super().__init__(name="nisp_pruner")
        self.fingerprint, self.kind = "", ""
        self.step, self.batches, self.reached, self.epoch = 0, 0, 0.0, 0
        self.span: tuple[int, int] | None = None
        self.position: tuple | None = None
        self.removed, self.scores = np.zeros(0, bool), np.zeros(0)
        self.counted: weakref.ref | None = None
        self.loaded = self.restored = False
        self.random_states: list[keras.Variable] = []

    @property
    def begun(self) -> bool:
        """Whether it is said of each unit if it is removed."""
        return len(self.removed) > 0

    def attach(self, model: keras.Model) -> None:
        setattr(model, ATTRIBUTE, self)
        self.random_states = keras_training.random_states(model)

    def detach(self, model: keras.Model) -> None:
        if self.is_of(model):
            delattr(model, ATTRIBUTE)

    def is_of(self, model: keras.Model) -> bool:
        """Whether it is this state that the model's checkpoints hold."""
        return getattr(model, ATTRIBUTE, None) is self

    def save_own_variables(self, store):
        text = json.dumps({name: getattr(self, name) for name in TEXT})
        store["text"] = np.frombuffer(text.encode(), np.uint8)
        for index, state in enumerate(self.random_states):
            store[f"random_{index}"] = np.asarray(state)
        if self.begun:
            store["removed"], store["scores"] = self.removed, self.scores

    def load_own_variables(self, store):
        self.loaded = True  # whatever it holds, the weights are others now
        if "text" not in store.keys():  # noqa: SIM118
            return
        text = json.loads(np.asarray(store["text"]).tobytes())
        for name in TEXT:
            setattr(self, name, text[name])
        self.counted = None
        self.removed, self.scores = np.zeros(0, bool), np.zeros(0)
        if "removed" in store.keys():  # noqa: SIM118
            self.removed = np.asarray(store["removed"], bool)
            self.scores = np.asarray(store["scores"], np.float64)
        for index, state in enumerate(self.random_states):
            if f"random_{index}" in store.keys():  # noqa: SIM118
                state.assign(store[f"random_{index}"])
        self.restored = True

    def count(self, model: keras.Model) -> None:
        """Counts the batches that the optimizer has seen since it was counted last.

        A checkpoint may be older than the count of its last batch: other callbacks come first. One
        with which the model was compiled meanwhile begins another count.
        """
        optimizer, batches = keras_training.innermost_optimizer(model), batches_of(model)
        if self.counted is None or self.counted() is optimizer:
            self.step += batches - self.batches
        self.counted = None if optimizer is None else weakref.ref(optimizer)
        self.batches = batches

    def check(self, channel_map: ChannelMap, kind: str) -> None:
        """Raises if the state is that of another model or of a budget of another kind."""
        if not self.begun:
            return
        if self.fingerprint != channel_map.fingerprint:
            raise ValueError(
                f"The checkpoint that was loaded holds the state of a NISPPruner for a model of "
                f"another structure than '{channel_map.model.name}'. Expected that of the same run."
            )
        if self.kind != kind:
            raise ValueError(
                "The checkpoint that was loaded holds the state of a NISPPruner with "
                f"`{self.kind}=`. Expected the budget of the same run. Received: `{kind}=`."
            )


def batches_of(model: keras.Model) -> int:
    """Number of batches that the optimizer of a model has seen."""
    optimizer = keras_training.innermost_optimizer(model)
    return 0 if optimizer is None else keras_training.batches_seen(optimizer)
