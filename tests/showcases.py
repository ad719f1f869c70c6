"""Networks as people bring them, each with data to train and to calibrate on.

Every function gives a compiled model, its inputs and its labels.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

RNG = np.random.default_rng(0)


def _compiled(inputs, outputs, loss, name, **settings):
    model = keras.Model(inputs, outputs, name=name)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False, **settings)
    return model


def eegnet(electrodes=8, samples=64, classes=3):
    """Lawhern et al., 2018, at a batch size of 1 for a microcontroller."""
    inputs = keras.Input((electrodes, samples, 1), batch_size=1, name="eeg")
    x = layers.Conv2D(8, (1, 16), padding="same", use_bias=False, name="temporal")(inputs)
    x = layers.BatchNormalization()(x)
    spatial = layers.DepthwiseConv2D((electrodes, 1), depth_multiplier=2, use_bias=False)
    x = layers.ELU()(layers.BatchNormalization()(spatial(x)))
    x = layers.Dropout(0.25)(layers.AveragePooling2D((1, 4))(x))
    x = layers.SeparableConv2D(16, (1, 8), padding="same", use_bias=False)(x)
    x = layers.ELU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.25)(layers.AveragePooling2D((1, 4))(x))
    outputs = layers.Dense(classes, activation="softmax")(layers.Flatten()(x))
    model = _compiled(inputs, outputs, "sparse_categorical_crossentropy", "eegnet")
    x = RNG.normal(size=(24, electrodes, samples, 1)).astype("float32")
    return model, x, RNG.integers(0, classes, 24)


def streaming_gru(steps=4, features=6):
    """Goes on from window to window: a state, a batch size of 1, a fixed number of steps."""
    inputs = keras.Input((steps, features), batch_size=1, name="window")
    x = layers.GRU(12, stateful=True, return_sequences=True, name="memory")(inputs)
    outputs = layers.Dense(2, name="forecast")(layers.Dense(16, "relu", name="hidden")(x))
    model = _compiled(inputs, outputs, "mse", "streaming")
    x = RNG.normal(size=(20, steps, features)).astype("float32")
    return model, x, RNG.normal(size=(20, steps, 2))


def dfl_detector(bins=8, classes=3):
    """A detector that, like YOLOv8, gives a distribution over distances for each side of a box."""
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(16, 3, 2, "same", activation="silu", name="stem")(inputs)
    boxes, scores = [], []
    for level in (1, 2):
        x = layers.Conv2D(16 * level, 3, 2, "same", use_bias=False, name=f"down{level}")(x)
        x = ops.silu(layers.BatchNormalization(name=f"bn{level}")(x))
        b = layers.Conv2D(16, 3, padding="same", activation="silu", name=f"box{level}")(x)
        b = layers.Conv2D(4 * bins, 1, name=f"sides{level}")(b)
        c = layers.Conv2D(16, 3, padding="same", activation="silu", name=f"class{level}")(x)
        boxes.append(layers.Reshape((-1, 4, bins))(b))
        scores.append(layers.Reshape((-1, classes))(layers.Conv2D(classes, 1)(c)))
    sides = ops.softmax(ops.concatenate(boxes, 1), -1)
    distances = ops.matmul(sides, np.arange(bins, dtype="float32")[:, None])
    outputs = {
        "boxes": ops.squeeze(distances, -1),
        "classes": ops.sigmoid(ops.concatenate(scores, 1)),
    }
    losses = {"boxes": "huber", "classes": "binary_crossentropy"}
    weights = {"boxes": 2.0, "classes": 1.0}
    model = _compiled(inputs, outputs, losses, "detector", loss_weights=weights)
    places = outputs["boxes"].shape[1]
    y = {
        "boxes": RNG.uniform(0, bins - 1, (24, places, 4)),
        "classes": RNG.integers(0, 2, (24, places, classes)).astype("float32"),
    }
    return model, RNG.uniform(size=(24, 32, 32, 3)).astype("float32"), y


TEXTS = [
    "the film was good and funny",
    "a bad dull film",
    "good acting and a funny end",
    "dull and bad and far too long",
]


def text_classifier():
    """Takes strings: an adapted TextVectorization is its first layer."""
    words = layers.TextVectorization(max_tokens=30, output_sequence_length=8, name="words")
    words.adapt(TEXTS)
    inputs = keras.Input((1,), dtype="string", name="text")
    x = layers.Embedding(30, 12, name="embedding")(words(inputs))
    x = layers.Conv1D(16, 3, activation="relu", name="conv")(x)
    x = layers.Dense(10, activation="relu", name="hidden")(layers.GlobalMaxPooling1D()(x))
    outputs = layers.Dense(1, activation="sigmoid", name="positive")(x)
    model = _compiled(inputs, outputs, "binary_crossentropy", "texts")
    return model, tf.constant([[t] for t in TEXTS * 6]), np.array([1.0, 0, 1, 0] * 6)


def tabular():
    """Columns of a table, each with its own adapted preprocessing."""
    n = 32
    columns = {
        "age": RNG.uniform(18, 90, (n, 1)).astype("float32"),
        "job": RNG.choice(["cook", "driver", "nurse"], (n, 1)),
        "zip": RNG.choice([10115, 20095, 80331], (n, 1)),
        "city": RNG.choice(["Bern", "Graz", "Ulm", "Lyon"], (n, 1)),
    }
    dtypes = {"age": "float32", "job": "string", "zip": "int64", "city": "string"}
    inputs = {name: keras.Input((1,), dtype=dtypes[name], name=name) for name in columns}
    age = layers.Normalization(name="scaled_age")
    age.adapt(columns["age"])
    job = layers.StringLookup(output_mode="one_hot", name="job_index")
    job.adapt(columns["job"])
    code = layers.IntegerLookup(name="zip_index")
    code.adapt(columns["zip"])
    codes = layers.Embedding(code.vocabulary_size(), 4, name="zip_embedding")
    city = layers.Embedding(16, 4, name="city_embedding")(layers.Hashing(16)(inputs["city"]))
    x = layers.Concatenate()(
        [
            age(inputs["age"]),
            job(inputs["job"]),
            layers.Flatten()(codes(code(inputs["zip"]))),
            layers.Flatten()(city),
        ]
    )
    x = layers.Dense(24, activation="relu", name="hidden1")(x)
    x = layers.Dense(16, activation="relu", name="hidden2")(x)
    outputs = layers.Dense(1, name="income")(x)
    model = _compiled(inputs, outputs, "mse", "tabular")
    columns = {name: tf.constant(array) for name, array in columns.items()}
    return model, columns, columns["age"] / 50


def lora_mlp():
    """One layer of it was tuned by LoRA."""
    inputs = keras.Input((12,), name="features")
    x = layers.Dense(24, activation="relu", name="first")(inputs)
    x = layers.Dense(24, activation="relu", name="tuned")(x)
    x = layers.Dense(16, activation="relu", name="third")(x)
    outputs = layers.Dense(3, name="logits")(x)
    model = keras.Model(inputs, outputs, name="lora")
    model.get_layer("tuned").enable_lora(4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=False)
    x, y = RNG.normal(size=(32, 12)).astype("float32"), RNG.integers(0, 3, 32)
    model.fit(x, y, epochs=2, verbose=0)
    return model, x, y


def siamese():
    """Two images, one encoder, the Euclidean distance of what it makes of them."""
    image = keras.Input((16, 16, 1))
    x = layers.Conv2D(12, 3, activation="relu", name="conv1")(image)
    x = layers.Conv2D(16, 3, 2, activation="relu", name="conv2")(x)
    x = layers.Dense(8, name="embedding")(layers.GlobalAveragePooling2D()(x))
    encoder = keras.Model(image, x, name="encoder")
    left, right = keras.Input((16, 16, 1), name="left"), keras.Input((16, 16, 1), name="right")
    squares = ops.sum(ops.square(encoder(left) - encoder(right)), -1, keepdims=True)
    outputs = ops.sqrt(ops.maximum(squares, 1e-7))
    model = _compiled([left, right], outputs, "mse", "siamese")
    pairs = [RNG.normal(size=(24, 16, 16, 1)).astype("float32") for _ in range(2)]
    return model, pairs, RNG.uniform(size=(24, 1))


def cbam():
    """Woo et al., 2018: attention to channels, then to places by means and maxima over channels."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv1")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    squeeze = layers.Dense(4, activation="relu", name="squeeze")
    excite = layers.Dense(16, name="excite")
    pooled = layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)
    gate = ops.sigmoid(excite(squeeze(pooled[0])) + excite(squeeze(pooled[1])))
    x = x * ops.reshape(gate, (-1, 1, 1, 16))
    places = ops.concatenate(
        [ops.mean(x, -1, keepdims=True), ops.max(x, -1, keepdims=True)], axis=-1
    )
    x = x * layers.Conv2D(1, 7, padding="same", activation="sigmoid", name="places")(places)
    x = layers.Conv2D(24, 3, 2, activation="relu", name="conv2")(x)
    outputs = layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = _compiled(inputs, outputs, "sparse_categorical_crossentropy", "cbam")
    return model, RNG.uniform(size=(24, 16, 16, 3)).astype("float32"), RNG.integers(0, 4, 24)
