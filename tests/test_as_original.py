"""Smaller graphs as models of the original's own class."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from nets import randomise

import keras_nisp as kn

pytestmark = pytest.mark.filterwarnings("ignore:.*becomes a plain model")


@keras.saving.register_keras_serializable("tests")
class Backbone(keras.Model):
    """Two blocks of one width each; heads are laid side by side, as in many networks."""

    def __init__(self, words=20, width=8, heads=2, head_dim=4, mlp=12, blocks=2, **kwargs):
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        x = layers.Embedding(words, width, name="embedding")(tokens)
        for i in range(blocks):
            y = layers.Dense(heads * head_dim, activation="relu", name=f"block{i}_heads")(x)
            x = layers.Add()([x, layers.Dense(width, name=f"block{i}_output")(y)])
            y = layers.Dense(mlp, activation="relu", name=f"block{i}_mlp")(x)
            x = layers.Add()([x, layers.Dense(width, name=f"block{i}_project")(y)])
        super().__init__(tokens, x, **kwargs)
        names = ("words", "width", "heads", "head_dim", "mlp", "blocks")
        values = (words, width, heads, head_dim, mlp, blocks)
        self.settings = dict(zip(names, values, strict=True))

    def get_config(self):
        return {"name": self.name, **self.settings}


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.Model):
    """It computes a scale from its width."""

    def __init__(self, width=8, **kwargs):
        inputs = keras.Input((4,))
        x = layers.Dense(width, activation="relu", name="hidden")(inputs)
        x = layers.Dense(2, name="head")(layers.Rescaling(1 / width, name="scale")(x))
        super().__init__(inputs, x, **kwargs)
        self.width = width

    def get_config(self):
        return {"name": self.name, "width": self.width}


@keras.saving.register_keras_serializable("tests")
class Task(keras.Model):
    """A backbone with a head, compiled from the beginning, with a method of its own."""

    def __init__(self, backbone, classes=3, **kwargs):
        x = layers.GlobalAveragePooling1D(name="pool")(backbone.output)
        x = layers.Dense(classes, name="logits")(x)
        super().__init__(backbone.input, x, **kwargs)
        self.backbone, self.classes = backbone, classes
        self.lookup = layers.StringLookup(name="lookup")
        self.compile()

    def compile(self, optimizer="auto", **kwargs):
        optimizer = keras.optimizers.Adam(1e-3) if optimizer == "auto" else optimizer
        super().compile(optimizer, **{"loss": "mse", **kwargs})

    def best(self, tokens):
        return ops.argmax(self(tokens), -1)

    def get_config(self):
        backbone = keras.saving.serialize_keras_object(self.backbone)
        return {"name": self.name, "backbone": backbone, "classes": self.classes}

    @classmethod
    def from_config(cls, config):
        backbone = keras.saving.deserialize_keras_object(config.pop("backbone"))
        return cls(backbone, **config)


TOKENS = np.random.default_rng(0).integers(0, 20, (16, 6))


def small(model, **budget):
    graph = kn.as_functional(model, input_shape=(6,), verbose=0)
    return kn.prune(graph, kn.Magnitude(), verbose=0, input_shape=(6,), **budget)


def test_widths_become_hyperparameters():
    model = randomise(Backbone())
    pruned = small(model, ratios={"*_mlp": 0.5, "*_heads": 0.5})
    found = kn.as_original(pruned, model)
    assert type(found) is Backbone
    assert found.settings["mlp"] == 6
    assert found.settings["heads"] * found.settings["head_dim"] == 4
    assert (found.settings["width"], found.settings["words"]) == (8, 20)
    np.testing.assert_allclose(found(TOKENS), pruned(TOKENS), atol=1e-6)
    assert model.settings["mlp"] == 12


def test_a_task_keeps_its_methods(tmp_path):
    model = randomise(Task(Backbone()))
    model.lookup.set_vocabulary(["red", "green"])
    compile_method = Task.compile
    pruned = small(model, ratio=0.5)
    found = kn.as_original(pruned, model)
    assert type(found) is Task
    assert type(found.backbone) is Backbone
    assert (found.backbone.settings["width"], found.classes) == (4, 3)
    np.testing.assert_allclose(found(TOKENS), pruned(TOKENS), atol=1e-6)
    assert found.lookup.get_vocabulary() == model.lookup.get_vocabulary()
    np.testing.assert_array_equal(found.best(TOKENS), ops.argmax(pruned(TOKENS), -1))
    assert Task.compile is compile_method
    found.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras", compile=False)
    np.testing.assert_array_equal(loaded(TOKENS), found(TOKENS))
    found.fit(TOKENS, np.zeros((16, 3)), verbose=0)


def test_blocks_of_other_widths():
    model = randomise(Backbone())
    pruned = small(model, ratios={"block0_mlp": 0.5})
    with pytest.raises(kn.ConversionError, match=r"Backbone cannot have.*'block\d_mlp/"):
        kn.as_original(pruned, model)


def test_classes_that_compute_something_else():
    model = randomise(Scaled())
    pruned = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    with pytest.raises(kn.ConversionError, match="does not give what that gives"):
        kn.as_original(pruned, model)


@keras.saving.register_keras_serializable("tests")
class Stack(keras.Model):
    """Its widths are in a tuple; it takes no more than twelve in any place."""

    def __init__(self, widths=(8, 6), **kwargs):
        if max(widths) > 12:
            raise ValueError("too wide")
        x = inputs = keras.Input((4,))
        for index, width in enumerate(widths):
            x = layers.Dense(width, activation="relu", name=f"hidden{index}")(x)
        super().__init__(inputs, layers.Dense(2, name="head")(x), **kwargs)
        self.widths = tuple(widths)

    def get_config(self):
        return {"name": self.name, "widths": self.widths}


def test_widths_in_a_tuple_and_what_a_class_refuses():
    model = randomise(Stack())
    found = kn.as_original(
        kn.prune(model, kn.Magnitude(), ratios={"hidden1": 0.5}, verbose=0), model
    )
    assert found.widths == (8, 3)
    pruned = kn.prune(model, kn.Magnitude(), ratios={"hidden0": 0.5}, verbose=0)
    with pytest.raises(kn.ConversionError, match=r"hidden0.*Not tried.*too wide"):
        kn.as_original(pruned, model)


def test_other_models():
    model = randomise(Backbone())
    with pytest.raises(kn.ConversionError, match=r"smaller\. Received other"):
        kn.as_original(randomise(Backbone(blocks=1)), model)
    with pytest.raises(TypeError, match=r"`original` to be a keras\.Model"):
        kn.as_original(model, "gpt2")


@keras.saving.register_keras_serializable("tests")
class Bank(layers.Layer):
    """Experts that all get all tokens."""

    def __init__(self, experts, mlp, **kwargs):
        super().__init__(**kwargs)
        self.experts, self.mlp = experts, mlp

    def build(self, shape):
        self.inner = self.add_weight(shape=(self.experts, shape[-1], self.mlp), name="inner")
        self.outer = self.add_weight(shape=(self.experts, self.mlp, shape[-1]), name="outer")

    def call(self, x):
        inner = ops.relu(ops.einsum("th,ehm->etm", x, self.inner))
        return ops.einsum("etm,emh->eth", inner, self.outer)


@keras.saving.register_keras_serializable("tests")
class Experts(layers.Layer):
    """Sends tokens to the best of its experts, and adds a loss in training."""

    def __init__(self, experts, mlp, **kwargs):
        super().__init__(**kwargs)
        self.router, self.bank = layers.Dense(experts), Bank(experts, mlp, name="bank")

    def call(self, x, training=None):
        batch, length, width = ops.shape(x)
        tokens = ops.reshape(x, (-1, width))
        weights = ops.softmax(self.router(tokens))
        _, best = ops.top_k(weights, 1)
        weights *= ops.sum(ops.one_hot(best, weights.shape[-1]), 1)
        if training:
            self.add_loss(ops.sum(ops.square(ops.mean(weights, 0))))
        given = ops.expand_dims(ops.transpose(weights), -1) * self.bank(tokens)
        mixed = ops.reshape(ops.sum(given, 0), (batch * length * width,))  # needs a batch size
        return ops.reshape(mixed, (batch, length, width))


@keras.saving.register_keras_serializable("tests")
class Mixture(keras.Model):
    """Blocks that were given no names, with the loss that balances experts."""

    def __init__(self, experts=4, mlp=6, **kwargs):
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        x = layers.Embedding(20, 8)(tokens)
        for _ in range(2):
            x = layers.Add()([x, Experts(experts, mlp)(x)])
        super().__init__(tokens, layers.Dense(3)(x), **kwargs)
        self.experts, self.mlp = experts, mlp

    def get_config(self):
        return {"name": self.name, "experts": self.experts, "mlp": self.mlp}


@pytest.mark.filterwarnings("ignore:.*add to the loss in training")
@pytest.mark.parametrize(("pattern", "widths"), [("*/dense*", (2, 6)), ("*inner", (4, 3))])
def test_layers_without_names_and_with_losses(pattern, widths):
    model = randomise(Mixture())
    pruned = small(model, ratios={pattern: 0.5})
    found = kn.as_original(pruned, model)
    assert (found.experts, found.mlp) == widths
    np.testing.assert_allclose(found(TOKENS), pruned(TOKENS), atol=1e-6)
    found(TOKENS, training=True)
    assert len(found.losses) == 2
    found.compile("sgd", "mse")
    found.fit(TOKENS, np.zeros((16, 6, 3)), verbose=0)
