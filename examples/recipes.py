"""Data and networks that the examples and benchmarks share."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.export.interpreter import dequantized, load_interpreter, quantized

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")


def load(dataset: str = "digits", data_dir: str | None = None, test_share: float = 0.25):
    """Images in [0, 1] and integer labels.

    Args:
        dataset: one of `DATASETS`. Digits come with scikit-learn, the others are read by
            TensorFlow Datasets.
        data_dir: TFDS data directory; without it TFDS downloads the data.
        test_share: of the digits; the others are split already.

    Returns:
        `(x_train, y_train), (x_test, y_test)`.
    """
    if dataset == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        x = (digits.images[..., None] / 16).astype(np.float32)
        x_train, x_test, y_train, y_test = train_test_split(
            x, digits.target, test_size=test_share, random_state=0, stratify=digits.target
        )
        return (x_train, y_train), (x_test, y_test)

    import tensorflow_datasets as tfds

    splits = tfds.load(
        dataset,
        data_dir=data_dir,
        download=data_dir is None,
        split=["train", "test"],
        as_supervised=True,
        batch_size=-1,
    )
    return tuple((x.astype(np.float32) / 255, y) for x, y in tfds.as_numpy(splits))


def residual_cnn(
    input_shape, classes: int = 10, widths=(32, 64, 96), blocks: int = 1, name="residual_cnn"
) -> keras.Model:
    """A small ResNet: a stem, then stages of residual blocks, halving the resolution.

    Images of 16 pixels and more are halved by the stem already.
    """
    inputs = keras.Input(input_shape, name="image")
    strides = 2 if input_shape[0] >= 16 else 1
    x = _conv_bn(inputs, widths[0], strides=strides, name="stem")
    x = layers.ReLU(name="stem_relu")(x)
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _block(x, width, stride, name=f"stage{stage + 1}_block{block + 1}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, outputs, name=name)


def _block(x, width, stride, name):
    shortcut = x
    y = _conv_bn(x, width, strides=stride, name=f"{name}_1")
    y = layers.ReLU(name=f"{name}_1_relu")(y)
    y = _conv_bn(y, width, name=f"{name}_2")
    if stride > 1 or x.shape[-1] != width:
        shortcut = _conv_bn(x, width, kernel=1, strides=stride, name=f"{name}_shortcut")
    y = layers.Add(name=f"{name}_add")([y, shortcut])
    return layers.ReLU(name=f"{name}_relu")(y)


def _conv_bn(x, width, kernel=3, strides=1, name=None):
    x = layers.Conv2D(
        width, kernel, strides=strides, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def compile_for(
    model: keras.Model, steps: int, rate: float = 0.05, adam: bool = False
) -> keras.Model:
    """SGD with Nesterov momentum (or AdamW), a cosine schedule over `steps`, and weight decay.

    Keras decays apart from momentum: 5e-3 has the effect of the usual L2 penalty of 5e-4
    under momentum 0.9.
    """
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    if adam:
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05)
    else:
        optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-3)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # on a CPU, training is faster without
    )
    return model


def augmented(x, y, batch_size: int, seed: int = 0) -> tf.data.Dataset:
    """Shuffled batches of flipped images, moved by up to 4 pixels."""
    size = x.shape[1:]

    def move(images, labels):
        images = tf.pad(images, [[0, 0], [4, 4], [4, 4], [0, 0]])
        count = tf.shape(images)[0]
        flip = tf.random.uniform([count, 1, 1, 1]) < 0.5
        images = tf.where(flip, images[:, :, ::-1], images)
        # One offset for a part of the batch each: a crop of its own per image is slow on a CPU.
        parts = [tf.image.random_crop(p, [tf.shape(p)[0], *size]) for p in tf.split(images, 8)]
        return tf.concat(parts, 0), labels

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    data = data.batch(batch_size, drop_remainder=True)
    return data.map(move, tf.data.AUTOTUNE).prefetch(4)


def accuracy(model: keras.Model, x, y) -> float:
    """Share of right answers."""
    return float((model.predict(x, batch_size=500, verbose=0).argmax(-1) == y).mean())


def tflite_accuracy(content: bytes, x, y, batch_size: int = 500) -> float:
    """Share of right answers of a TFLite file in the interpreter."""
    interpreter = load_interpreter(content)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    right = 0
    for start in range(0, len(x), batch_size):
        batch = quantized(x[start : start + batch_size], source)
        interpreter.resize_tensor_input(source["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], batch)
        interpreter.invoke()
        logits = dequantized(interpreter.get_tensor(target["index"]), target)
        right += int((logits.argmax(-1) == y[start : start + batch_size]).sum())
    return right / len(x)
