"""Fine-tuning a smaller classifier with the original as its teacher."""

import keras

from keras_nisp.errors import warn
from keras_nisp.keras_graph import copying, keras_models
from keras_nisp.keras_graph.output_kinds import ending_of, is_regressor, kind_of


def distiller(
    small: keras.Model,
    original: keras.Model,
    temperature: float = 4.0,
    student_loss_weight: float = 0.5,
) -> keras.distillation.Distiller:
    """Makes a `Distiller` that trains a pruned classifier on labels and the original's answers.

    It is `keras.distillation.Distiller` without its pitfalls: the teacher is a copy, since a
    `Distiller` freezes it; the teacher's outputs are used as probabilities, whether the models end
    in a softmax or in logits; and the result is built, as `BackupAndRestore` requires.

    Args:
        small: the pruned model to train. Its one output has classes along the last axis, as logits
            or after a softmax.
        original: the model before pruning. It is not changed.
        temperature: number by which logits are divided; the higher it is, the more the teacher's
            second choices count.
        student_loss_weight: weight of the labels, in [0, 1]; the rest is the teacher's weight.

    Returns:
        A `Distiller`. Compile it with an optimizer and the loss for the labels, and `fit` it; this
        trains `small`.

    Raises:
        TypeError: a model is not functional or Sequential.
        ValueError: a model does not give logits or a softmax of two or more classes, the models
            differ in inputs or outputs, or a number is out of range.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> small = rebuild(model, plan_pruning(model, Magnitude(), ratio=0.5))
    >>> teaching = distiller(small, model)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> teaching.compile("sgd", loss)
    >>> _ = teaching.fit(np.ones((8, 4)), np.zeros(8), verbose=0)

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    section 2.
    """
    _check(original, small)
    teacher = copying.copy_model(original)
    loss = SoftTargets(temperature, ending_of(small) is not None)
    teaching = keras.distillation.Distiller(
        teacher, small, loss, student_loss_weight=student_loss_weight
    )
    teaching.build(small.input_shape)
    return teaching


def _check(original, small) -> None:
    """Raises unless both models are classifiers of the same kind."""
    for model in (original, small):
        keras_models.check_model(model)
        outputs = keras_models.body(model).outputs
        if len(outputs) != 1:
            raise ValueError(
                f"Expected a classifier with one output. Received '{model.name}' with "
                f"{len(outputs)}: build a `keras.distillation.Distiller` with a loss for each."
            )
        kind = kind_of(model)
        if "binary" in kind.name or is_regressor(model) or outputs[0].shape[kind.axis] == 1:
            raise ValueError(
                "Expected a classifier that gives logits or a softmax of two or more classes. "
                f"Received '{model.name}', whose output {tuple(outputs[0].shape)} is no "
                "distribution over classes: build a `keras.distillation.Distiller` with a loss "
                "that fits it."
            )
        if kind.axis != -1:
            raise ValueError(
                "Expected a classifier with classes along the last axis. Received "
                f"'{model.name}', whose output {tuple(outputs[0].shape)} has them along axis "
                f"{kind.axis}: end it with a `keras.layers.Permute`."
            )
    endings = ["logits" if ending_of(model) is None else "softmax" for model in (original, small)]
    if endings[0] != endings[1]:
        raise ValueError(
            "Expected `original` and `small` to end alike. Received: "
            f"'{original.name}' ends in {endings[0]}, '{small.name}' in {endings[1]}. Take both "
            "before their softmax, or both behind it."
        )
    if small.count_params() > original.count_params():
        warn(
            f"`distiller(small, original)` trains '{small.name}', which has more weights than its "
            f"teacher '{original.name}'. If it is the original, give the smaller model first."
        )


@keras.saving.register_keras_serializable("keras_nisp")
class SoftTargets(keras.distillation.LogitsDistillation):
    """The divergence of softened predictions, times the temperature squared.

    Args:
        temperature: number by which logits are divided.
        probabilities: whether the outputs are probabilities already, not logits.
    """

    def __init__(self, temperature: float, probabilities: bool):
        # Keras 3.15 takes "kl_divergence", its default, for a function and gives it logits.
        super().__init__(temperature, keras.losses.KLDivergence())
        self.probabilities = probabilities

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        if self.probabilities:
            teacher_outputs, student_outputs = map(_logits, (teacher_outputs, student_outputs))
        return super().compute_loss(teacher_outputs, student_outputs, **kwargs)

    def get_config(self):
        return {"temperature": self.temperature, "probabilities": self.probabilities}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _logits(probabilities):
    """Logits up to a constant, which a softmax does not see."""
    return keras.ops.log(keras.ops.maximum(probabilities, keras.config.epsilon()))
