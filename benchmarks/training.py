"""Tasks of the accuracy experiments: data, network, recipe; training that can be interrupted."""

import argparse
import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import architectures
import models
from recipes import accuracy, augmented, compile_for, load, residual_cnn

import keras_nisp as kn

VGG_LIKE = ((32, 2), (64, 2), (128, 2))


@dataclasses.dataclass(frozen=True)
class Task:
    """A network on a dataset, and how it is trained.

    `epochs` and `rate` are those of the base network, `tune` the epochs after pruning. `ratio`
    is the share of channels that the paper removes from such a network. With `weights`, the base
    starts from this file and its epochs adapt it to the data. `adam` trains with AdamW.
    """

    dataset: str
    network: Callable[..., keras.Model]
    epochs: int
    tune: int
    rate: float
    ratio: float
    augment: bool = False
    weights: str | None = None
    batch_size: int = 128
    adam: bool = False

    def build(self, shape, weights_dir: str | None) -> keras.Model:
        """The network before any training here."""
        if self.weights is None:
            return self.network(input_shape=shape)
        if weights_dir is None:
            raise SystemExit(f"This task starts from {self.weights}: pass --weights-dir.")
        return models.load_cifar_resnet(Path(weights_dir) / self.weights, shortcut="projection")


DEPTHS = (2, 4, 6, 8, 10)


def plain_cnn(depth: int, input_shape, width: int = 32, classes: int = 10) -> keras.Model:
    """Convolutions in a row, without BatchNormalization or shortcuts, and one hidden layer."""
    inputs = x = keras.Input(input_shape, name="image")
    for index in range(1, depth + 1):
        x = keras.layers.Conv2D(
            width,
            3,
            strides=2 if index == 1 else 1,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            name=f"conv{index}",
        )(x)
        if index in (depth // 2, depth):
            x = keras.layers.MaxPooling2D(name=f"pool{index}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(64, activation="relu", name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x), name=f"plain{depth}")


RESNET20, RESNET56 = (functools.partial(models.cifar_resnet, depth) for depth in (20, 56))
VGG = functools.partial(models.vgg, VGG_LIKE, (128,))
VIT = functools.partial(architectures.vision_transformer, width=48, mlp=96)
TASKS = {
    "digits": Task("digits", residual_cnn, 20, 12, 0.05, 0.25, batch_size=64),  # a trial
    "lenet_mnist": Task("mnist", models.lenet5, 3, 2, 0.02, 0.5),
    "quick_cifar10": Task("cifar10", models.cifar_quick, 8, 3, 0.01, 0.5),
    "residual_fashion": Task("fashion_mnist", residual_cnn, 4, 2, 0.05, 0.25),
    "vgg_fashion": Task("fashion_mnist", VGG, 3, 2, 0.05, 0.5),
    "vgg_cifar10": Task("cifar10", VGG, 6, 2, 0.05, 0.5, True),
    "resnet20_fashion": Task("fashion_mnist", RESNET20, 2, 1, 0.05, 0.25),
    "resnet20_cifar10": Task("cifar10", RESNET20, 4, 2, 0.02, 0.25, True, "resnet20_cifar10.npz"),
    "resnet56_cifar10": Task("cifar10", RESNET56, 2, 4, 0.02, 0.25, True, "resnet56_cifar10.npz"),
    "vit_cifar10": Task("cifar10", VIT, 6, 2, 2e-3, 0.5, True, adam=True),
    **{
        f"plain{depth}_fashion": Task(
            "fashion_mnist", functools.partial(plain_cnn, depth), 2, 0, 0.02, 0.5
        )
        for depth in DEPTHS
    },
}


class Lab:
    """One task: its data, its base networks (kept in files), and training.

    Args:
        task: a key of `TASKS`.
        args: the command's arguments: `data_dir`, `weights_dir`, `out`.
    """

    def __init__(self, task: str, args: argparse.Namespace):
        self.task, self.args = TASKS[task], args
        self.out = Path(args.out) / task

    @functools.cached_property
    def data(self):
        """`(x, y)` for training and for testing."""
        train, test = load(self.task.dataset, self.args.data_dir)
        if self.task.dataset == "cifar10":
            train, test = ((models.preprocess_cifar(x), y) for x, y in (train, test))
        return train, test

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.data[0][0]) // self.task.batch_size

    def accuracy(self, model) -> float:
        """On the test set."""
        return accuracy(model, *self.data[1])

    def calibration(self, seed: int, count: int = 2000):
        """Training samples with labels, at most so many."""
        x, y = self.data[0]
        chosen = np.random.default_rng(seed).choice(len(x), min(count, len(x)), replace=False)
        return x[chosen], y[chosen]

    def base(self, seed: int) -> keras.Model:
        """The base network of a seed."""

        def make():
            keras.utils.set_random_seed(seed)
            model = self.task.build(self.data[0][0].shape[1:], self.args.weights_dir)
            self.fit(model, self.task.epochs, self.task.rate, f"base_{seed}")
            return model

        return self.kept(f"base_{seed}", make)

    def kept(self, name: str, make: Callable[[], keras.Model]) -> keras.Model:
        """A trained network from its file, which is made once."""
        path = self.out / f"{name}.keras"
        if not path.exists():
            model = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            model.save(path)
        return keras.models.load_model(path)

    def fit(self, model, epochs: int, rate: float | None, key: str, callbacks=(), wrap=None):
        """Trains, and resumes after an interruption with the epoch that was interrupted.

        Args:
            model: to be trained.
            epochs: how many.
            rate: learning rate at the start of the cosine; `None` if the model is compiled.
            key: tells trainings of this task apart.
            callbacks: of Keras.
            wrap: `wrap(model)` gives the model to `fit` instead, such as a Distiller.

        Returns:
            Test accuracy after each epoch.
        """
        folder = self.out / "running" / key
        folder.mkdir(parents=True, exist_ok=True)
        curve = _Curve(model, self.accuracy, folder / "curve.json")
        trained = model if wrap is None else wrap(model)
        if rate is not None:
            compile_for(trained, self.steps * epochs, rate, self.task.adam)
        x, y = self.data[0]
        size, count = self.task.batch_size, self.steps * self.task.batch_size
        data = (augmented(x, y, size),) if self.task.augment else (x[:count], y[:count], size)
        backup = keras.callbacks.BackupAndRestore(str(folder / "backup"))
        trained.fit(*data, epochs=epochs, verbose=0, callbacks=[*callbacks, curve, backup])
        shutil.rmtree(folder)
        return curve.values


class _Curve(keras.callbacks.Callback):
    """Test accuracy after each epoch, kept in a file until training is over."""

    def __init__(self, measured, accuracy, path):
        super().__init__()
        self.measured, self.accuracy, self.path = measured, accuracy, path
        self.values = json.loads(path.read_text()) if path.exists() else []

    def on_epoch_end(self, epoch, logs=None):
        self.values = [*self.values[:epoch], self.accuracy(self.measured)]
        self.path.write_text(json.dumps(self.values))


def reductions(small, base) -> dict[str, float]:
    """What is gone: shares of FLOPs and parameters."""
    before, after = kn.profile(base).total, kn.profile(small).total
    return {
        "flops_removed": 1 - after.flops / before.flops,
        "parameters_removed": 1 - after.parameters / before.parameters,
    }


def use_threads(count: int | None) -> None:
    """Limits TensorFlow to so many threads; before anything runs."""
    if count:
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)
