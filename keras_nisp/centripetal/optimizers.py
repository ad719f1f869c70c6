"""CentripetalSGD, and the same pull for any other optimizer."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_nisp.centripetal.cluster_mean import ClusteredVariables
from keras_nisp.centripetal.clustered_optimizer import (
    ClusteredOptimizer,
    check_settings,
    plan_from,
    rate_of_pulls,
)
from keras_nisp.keras_graph import keras_training
from keras_nisp.plans.forecast import COLLAPSE, TOLERANCE, Settings
from keras_nisp.plans.plan import Plan


@keras.saving.register_keras_serializable(package="keras_nisp")
class CentripetalSGD(ClusteredOptimizer, keras.optimizers.SGD):
    """SGD that makes the channels of each cluster identical while it trains.

    A variable that owns clustered channels (kernels, biases, scales and offsets) takes the step

        W <- W - learning_rate * (mean(gradient) + weight_decay * W + strength * (W - mean(W)))

    where the means are over the members of each cluster; momentum accumulates the term in
    parentheses. The mean gradient never separates the members, so the deviation
    shrinks by a known factor at each step, whatever the data (see `Plan.check`). Afterwards
    `rebuild` merges each cluster into one channel, without loss.

    All other variables are updated as by `keras.optimizers.SGD`.

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
        momentum, nesterov: as for `keras.optimizers.SGD`.
        weight_decay: as for `keras.optimizers.SGD`; but for clustered variables it is part
            of the formula above. There it passes through the momentum, which makes it
            1 / (1 - momentum) times as strong as Keras' own.
        plan: a plan from `plan_merging`. It is saved with the optimizer.
        strength: the centripetal strength (epsilon in the paper, which uses 3e-3 for 600
            epochs), or `"auto"`: the pull that leaves `tolerance` of the deviation after
            the share `collapse` of the steps, the same at every learning rate.
        steps: number of optimizer steps, for `"auto"`; `CentripetalMonitor` sets it if it
            is not given.
        tolerance: for `"auto"`: the share of the deviation that may remain.
        vector_strength: the strength for biases, scales and offsets, by default that of kernels.
        preset: `"paper"` treats all clustered variables alike; `"reference"` follows the
            authors' code: biases, scales and offsets have 0.1 of the strength (not with
            `"auto"`, which pulls all alike) and no decay.
        collapse: for `"auto"`: the share of the steps after which the channels of each cluster
            are identical. The other steps train the network as it will be merged.
        **kwargs: other arguments of `keras.optimizers.SGD`: clipping, EMA, gradient
            accumulation...

    Raises:
        ValueError: an argument is wrong, or the strength makes the update unstable.
        PlanMismatchError: when training starts, if the plan is for another model.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan = plan_merging(model, ratio=0.5)
    >>> model.compile(CentripetalSGD(0.1, momentum=0.9, plan=plan, steps=200), "mse")
    >>> x, y = np.random.normal(size=(640, 4)), np.random.normal(size=(640, 3))
    >>> _ = model.fit(x, y, batch_size=32, epochs=10, verbose=0)
    >>> small = rebuild(model, plan, verbose=0)
    >>> np.allclose(model(x), small(x), atol=1e-3)
    True

    Source: Ding et al., "Centripetal SGD for Pruning Very Deep Convolutional Networks", CVPR
    2019, equation 5.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        *,
        plan: Plan,
        strength: float | str = "auto",
        steps: int | None = None,
        tolerance: float = TOLERANCE,
        vector_strength: float | None = None,
        preset: str = "paper",
        collapse: float = COLLAPSE,
        name: str = "CentripetalSGD",
        **kwargs: Any,
    ) -> None:
        if isinstance(learning_rate, keras.optimizers.Optimizer):
            raise TypeError(
                "Expected `learning_rate` to be a float or a schedule. Received an optimizer, "
                f"{type(learning_rate).__name__}: for optimizers other than SGD use "
                "`Centripetal(optimizer, plan)`."
            )
        settings = Settings(
            strength,
            momentum,
            nesterov,
            weight_decay,
            vector_strength,
            preset,
            tolerance,
            steps,
            collapse,
        )
        batches = kwargs.get("gradient_accumulation_steps") or 1
        check_settings(plan, settings, rate_of_pulls(learning_rate, batches))
        super().__init__(learning_rate, momentum, nesterov, weight_decay, name=name, **kwargs)
        self.plan, self.settings = plan, settings

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        self._clustered = ClusteredVariables(self.plan, variables)
        super().build(variables)

    def apply(
        self,
        grads: list[tf.Tensor | None],
        trainable_variables: list[keras.Variable] | None = None,
    ) -> None:
        variables = list(trainable_variables or self._trainable_variables)
        self.build(variables)
        if any(gradient is not None for gradient in grads):
            # Clusters collapse where no loss reaches them, too, as those of `Centripetal` do.
            grads = [
                tf.zeros_like(variable.value)
                if gradient is None and self._get_variable_index(variable) in self._clustered
                else gradient
                for gradient, variable in zip(grads, variables, strict=True)
            ]
        super().apply(grads, trainable_variables)

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        index = self._get_variable_index(variable)
        if index not in self._clustered:
            super().update_step(gradient, variable, learning_rate)
            return
        is_kernel, mean = self._clustered[index]
        rate = tf.cast(learning_rate, variable.dtype)
        decay = self.settings.decay(is_kernel) if super()._use_weight_decay(variable) else 0.0
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        step = self._step(gradient, tf.convert_to_tensor(variable), rate, mean, is_kernel, decay)
        if not self.momentum:
            variable.assign_sub(rate * step)
            return
        # What keras.optimizers.SGD does with its momentum, in one pass over the memory: with
        # wide layers that outweighs what the means cost.
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[index].value.handle,
            lr=rate,
            grad=step,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def _step(self, gradient, weights, rate, mean, is_kernel, decay):
        """mean(gradient) + decay * weights + strength * (weights - mean(weights))."""
        if self.settings.automatic:
            pull = tf.constant(self.settings.constant_pull(), weights.dtype)
            strength = tf.maximum(tf.math.divide_no_nan(pull, rate) - decay, 0)
        else:
            strength = self.settings.strength_of(is_kernel)
        return mean(gradient - strength * weights) + (decay + strength) * weights

    def _update_model_variables_moving_average(self, trainable_variables):
        super()._update_model_variables_moving_average(trainable_variables)
        self._level_averages(self)

    def _use_weight_decay(self, variable):
        if self._get_variable_index(variable) in self._clustered:
            return False  # it decays inside the formula
        return super()._use_weight_decay(variable)

    def _batches_per_pull(self):
        return self.gradient_accumulation_steps or 1

    def plain(self) -> keras.optimizers.SGD:
        """`keras.optimizers.SGD` with the same settings, for the merged model."""
        return keras.optimizers.SGD.from_config({**super().get_config(), "name": "SGD"})

    def get_config(self) -> dict:
        return {**super().get_config(), **self._own_config()}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "CentripetalSGD":
        return super().from_config({**config, "plan": plan_from(config["plan"])}, custom_objects)


@keras.saving.register_keras_serializable(package="keras_nisp")
class Centripetal(ClusteredOptimizer):
    """Wraps any optimizer, and adds the centripetal pull as a separate step.

    Each step first moves clustered variables towards the mean of their cluster,

        W <- W - learning_rate * strength * (W - mean(W)),

    then gives the optimizer the mean gradient of each cluster. Members get the same
    gradient, so an optimizer that treats all channels alike (Adam, AdamW, RMSprop, Lion,
    Muon, SGD...) gives them the same update, as long as it is wrapped from the start: its slots
    are then equal in each cluster. The deviation shrinks by 1 - learning_rate * strength
    per step, and by the optimizer's weight decay if it is decoupled. This is not guaranteed for
    an optimizer whose slots already differ, that adds noise of its own, or that does not go on from
    the weights as they are.

    Args:
        optimizer: a Keras optimizer that has not been used yet.
        plan: a plan from `plan_merging`.
        strength, steps, tolerance, vector_strength, preset, collapse: as for `CentripetalSGD`.

    Raises:
        TypeError: `optimizer` is not a Keras optimizer.
        ValueError: an argument is wrong, the optimizer is built already, or it is `Ftrl`, which
            recomputes weights from the sum of all gradients.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    >>> plan = plan_merging(model, ratio=0.5)
    >>> model.compile(Centripetal(keras.optimizers.AdamW(1e-3), plan, steps=200), "mse")
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        plan: Plan,
        strength: float | str = "auto",
        steps: int | None = None,
        tolerance: float = TOLERANCE,
        vector_strength: float | None = None,
        preset: str = "paper",
        collapse: float = COLLAPSE,
        name: str = "Centripetal",
    ) -> None:
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TypeError(
                f"Expected `optimizer` to be a Keras optimizer. Received: {optimizer!r}"
            )
        if isinstance(optimizer, ClusteredOptimizer):
            raise TypeError(f"Expected a plain optimizer. Received: {type(optimizer).__name__}")
        if optimizer.built:
            raise ValueError(
                "Expected an optimizer that has not been used: its slots may differ inside "
                "clusters. Pass `type(optimizer).from_config(optimizer.get_config())`."
            )
        if isinstance(unscaled := keras_training.unscaled(optimizer), keras.optimizers.Ftrl):
            raise ValueError(
                "Expected an optimizer that changes weights from where they are. Received: "
                f"{type(unscaled).__name__}, which recomputes them from the sum of all gradients, "
                "as Ftrl does, so that the pull is lost. Use another, such as AdamW."
            )
        settings = Settings(
            strength,
            vector_strength=vector_strength,
            preset=preset,
            tolerance=tolerance,
            steps=steps,
            collapse=collapse,
        )
        check_settings(plan, settings, keras_training.learning_rate_of(optimizer))
        super().__init__(learning_rate=0.0, name=name)
        self.plan, self.settings = plan, settings
        self.inner_optimizer = optimizer

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        self._clustered = ClusteredVariables(self.plan, variables)
        self.inner_optimizer.build(variables)
        super().build(variables)

    def _stepper(self):
        return self.inner_optimizer

    def apply(
        self,
        grads: list[tf.Tensor | None],
        trainable_variables: list[keras.Variable] | None = None,
    ) -> None:
        variables = list(trainable_variables or self._trainable_variables)
        if not self.built:
            self.build(variables)
        merged, clustered = list(grads), []
        for at, variable in enumerate(variables):
            index = self._get_variable_index(variable)
            if index in self._clustered:
                is_kernel, mean = self._clustered[index]
                clustered.append((variable, is_kernel, mean))
                if merged[at] is not None:
                    merged[at] = mean(tf.convert_to_tensor(merged[at]))
        rate = self.learning_rate

        def pull(variable, is_kernel, mean):
            weights = tf.convert_to_tensor(variable)
            share = self._share(is_kernel, rate, weights.dtype)
            variable.assign_sub(share * (weights - mean(weights)))

        keras_training.update_replicas(self, pull, clustered)
        self.inner_optimizer.apply(merged, variables)
        self._level_averages(self.inner_optimizer)

    def _share(self, is_kernel, rate, dtype):
        if self.settings.automatic:
            return tf.constant(self.settings.constant_pull(), dtype)
        return tf.cast(rate, dtype) * self.settings.strength_of(is_kernel)

    @property
    def variables(self) -> list[keras.Variable]:
        return self._variables + self.inner_optimizer.variables

    @property
    def learning_rate(self) -> tf.Tensor | keras.Variable:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | Callable) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> keras.Variable:
        return self.inner_optimizer.iterations

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        return self.inner_optimizer.scale_loss(loss)  # which takes the scale out again

    def exclude_from_weight_decay(
        self,
        var_list: list[keras.Variable] | None = None,
        var_names: list[str] | None = None,
    ) -> None:
        unscaled = keras_training.unscaled(self.inner_optimizer)
        unscaled.exclude_from_weight_decay(var_list, var_names)

    def plain(self) -> keras.optimizers.Optimizer:
        """A new plain optimizer for the merged model."""
        return type(self.inner_optimizer).from_config(self.inner_optimizer.get_config())

    def get_config(self) -> dict:
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "optimizer": inner, **self._own_config()}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Centripetal":
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects)
        return cls(**{**config, "optimizer": optimizer, "plan": plan_from(config["plan"])})
