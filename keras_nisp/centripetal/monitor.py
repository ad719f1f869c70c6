"""CentripetalMonitor: watches clusters come together."""

import keras
import numpy as np

from keras_nisp.centripetal.cluster_mean import ClusteredVariables
from keras_nisp.centripetal.deviation import Deviation, deviation_of
from keras_nisp.centripetal.merging import level
from keras_nisp.centripetal.optimizers import Centripetal, CentripetalSGD
from keras_nisp.errors import PlanMismatchError, warn
from keras_nisp.keras_graph import keras_training
from keras_nisp.keras_graph.keras_models import student_of
from keras_nisp.keras_graph.replicas import check_fit
from keras_nisp.plans.forecast import Forecast
from keras_nisp.plans.plan import Plan, check_is_plan

# float32 keeps about so much of a deviation from the mean, and no less.
ROUNDING = 1e-7


class CentripetalMonitor(keras.callbacks.Callback):
    """Reports how far the channels of clusters are from identical, and if they will be in time.

    Once they are identical, it also gives the members of a cluster the mean of their
    BatchNormalization statistics. Otherwise these become equal only as fast as a moving average
    forgets.

    At the end of each epoch it adds to the logs, and so to the progress bar and the history,
    `deviation` (relative to the weights: the root of the squared differences from the cluster
    means over the squared weights) and `deviation_predicted`. Callbacks that write
    logs (`CSVLogger`, `TensorBoard`) go after this one in the list. If the optimizer has
    `strength="auto"` and no number of steps, the monitor sets it to that of `fit`. Under a
    `distiller` it watches the student.

    Args:
        plan: the plan that the optimizer has.
        per_layer: whether to log `deviation/<layer>` for each layer as well.
        stop_when_collapsed: whether to end training as soon as the tolerance of the optimizer is
            reached.

    Attributes:
        history: for each epoch a dict of `step`, `deviation` (a `Deviation`) and
            `predicted`, beginning with the deviation before training.
        forecast: the `Forecast`, or `None` if the number of steps is unknown.

    Raises:
        TypeError: the model's optimizer is neither `CentripetalSGD` nor `Centripetal`.
        ValueError: when training starts, if the optimizer has another plan, or if it needs the
            number of steps and that is unknown.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    >>> plan = plan_merging(model, ratio=0.5)
    >>> model.compile(CentripetalSGD(0.1, plan=plan), "mse")
    >>> monitor = CentripetalMonitor(plan)
    >>> x, y = np.random.normal(size=(64, 4)), np.random.normal(size=(64, 3))
    >>> logs = model.fit(x, y, epochs=50, verbose=0, callbacks=[monitor]).history
    >>> logs["deviation"][-1] < 1e-4
    True
    """

    def __init__(
        self, plan: Plan, per_layer: bool = False, stop_when_collapsed: bool = False
    ) -> None:
        super().__init__()
        check_is_plan(plan)
        plan.check_merges()
        self.plan = plan
        self.per_layer = per_layer
        self.stop_when_collapsed = stop_when_collapsed
        self.history: list[dict] = []
        self.forecast: Forecast | None = None
        self._started = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        check_fit(self.model, self)
        optimizer = keras_training.optimizer_of(self.model)
        if not isinstance(optimizer, (CentripetalSGD, Centripetal)):
            raise TypeError(
                "Expected a model compiled with CentripetalSGD, or with Centripetal around another "
                f"optimizer. Received: {type(optimizer).__name__}"
            )
        if optimizer.plan.creators != self.plan.creators:
            raise ValueError(
                "Expected the plan of the optimizer. Received another one: pass "
                "`CentripetalMonitor(model.optimizer.plan)`."
            )
        self._check_trained()
        self._optimizer = optimizer
        self._started = False

    def _check_trained(self) -> None:
        """Raises if a layer with clusters was frozen since the plan was made."""
        frozen = {weight.path for weight in student_of(self.model).non_trainable_weights}
        for row in self.plan.variables:
            if row.clusters and row.path in frozen:
                raise PlanMismatchError(
                    f"Expected a model in which '{row.path}' is trained, as it was when the plan "
                    "was made. It is frozen: set `trainable` of its layer, or make a new plan with "
                    "`exclude=` for it."
                )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # Not before: BackupAndRestore brings weights, steps and clusters back when training begins.
        if not self._started:
            self._start(epoch)
            self._started = True

    def _start(self, epoch: int) -> None:
        optimizer = self._optimizer
        self.plan = optimizer.plan
        self._clustered = ClusteredVariables(self.plan, self.model.trainable_variables)
        self._begun = optimizer.pulls_done()
        self._warned = False
        params = self.params or {}  # there are none in a training loop of the user's own
        batches = (params.get("steps") or 0) * ((params.get("epochs") or 0) - epoch)
        steps = optimizer.pulls_done(batches) if batches > 0 else 0
        if optimizer.settings.automatic and optimizer.steps is None:
            if not steps:
                raise ValueError(
                    "The number of steps of an epoch is unknown. Pass `steps=` to the optimizer, "
                    "or `steps_per_epoch=` to `fit`."
                )
            optimizer.steps = steps
            # A train step that an earlier `fit` compiled knows another number.
            self.model.make_train_function(force=True)
        left = steps - self._begun
        self.forecast = optimizer.forecast(left, self._begun) if left > 0 else None
        self._first = deviation_of(self.model.trainable_variables, self._clustered)
        self.history.append({"step": self._begun, "deviation": self._first, "predicted": None})
        tolerance = optimizer.settings.tolerance
        if self.forecast is not None and self._first.relative * self.forecast.final > tolerance:
            warn(f"{self.forecast}")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        step = self._optimizer.pulls_done()
        measured = deviation_of(self.model.trainable_variables, self._clustered)
        predicted = self._predict(step, measured)
        self.history.append({"step": step, "deviation": measured, "predicted": predicted})
        if logs is not None:
            logs["deviation"] = measured.relative
            if predicted is not None:
                logs["deviation_predicted"] = predicted
            if self.per_layer:
                logs.update({f"deviation/{k}": v for k, v in measured.layers.items()})
        if predicted is not None and measured.relative > 10 * predicted + ROUNDING:
            self._warn(measured, predicted)
        if measured.relative <= self._optimizer.settings.tolerance:
            level(student_of(self.model), self.plan, only_statistics=True)
            if self.stop_when_collapsed:
                self.model.stop_training = True

    def _predict(self, step: int, measured: Deviation) -> float | None:
        """What the law makes of the first deviation, over the present weights."""
        at = step - self._begun
        if self.forecast is None or at >= len(self.forecast.kernels):
            return None
        left = {True: self.forecast.kernels[at] ** 2, False: self.forecast.vectors[at] ** 2}
        squares = sum(row.squares * left[row.is_kernel] for row in self._first.variables)
        norm = sum(row.norm for row in measured.variables)
        return float(np.sqrt(squares / norm)) if norm else 0.0

    def _warn(self, measured: Deviation, predicted: float) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"The {measured} is more than the {predicted:.1e} that the law of C-SGD predicts: "
                "something else moves the weights apart (a constraint, an average of weights, "
                "another callback), or the learning rate is another than at the start."
            )
