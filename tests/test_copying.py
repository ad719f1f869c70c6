"""Copies of layers and models: what they hold besides their weights comes along, bit by bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_nisp as kn
from keras_nisp.keras_graph import copying

WORDS = np.array([["red apple", "x"], ["green\x85pear", "y"], ["red pear", "x"]])


def same(model, small, inputs):
    """Both models give the same bits."""
    for one, other in zip(
        keras.tree.flatten(model(inputs)), keras.tree.flatten(small(inputs)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def without_nothing(model):
    """The model rebuilt without a change, copied, widened by nothing, and as a teacher."""
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.0)
    yield kn.rebuild(model, plan)
    yield copying.copy_model(model)
    yield kn.widen(model, 1, init="preserve")
    if model.outputs[0].shape[-1] > 1:
        yield kn.distiller(model, model).teacher


def head(x):
    return layers.Dense(3)(layers.Dense(8, activation="relu", name="hidden")(x))


def normalized(how):
    normalization = layers.Normalization(name="normalization")
    if how == "given":
        normalization = layers.Normalization(mean=[1.0, 2, 3, 4], variance=[4.0, 3, 2, 1])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(normalization(inputs)))
    if how == "adapted":
        normalization.adapt(np.random.default_rng(0).normal(3, 5, (20, 4)))
    if how == "from a file":
        normalization.load_own_variables({"0": np.arange(4.0), "1": np.full(4, 7.0), "2": 9})
    return model


@pytest.mark.parametrize("how", ["adapted", "given", "from a file"])
def test_normalization(how):
    model = normalized(how)
    x = np.random.default_rng(1).normal(3, 5, (5, 4)).astype("float32")
    for copy in without_nothing(model):
        same(model, copy, x)
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    probe = [keras.Model(m.input, m.layers[1].output) for m in (model, small)]
    same(*probe, x)
    assert kn.widen(model, 2, init="preserve").get_layer("hidden").units == 16


def lookup(kind, **settings):
    def make(tmp_path):
        layer = kind(**settings)
        if kind is layers.IntegerLookup:
            layer.adapt(np.array([[7, 9], [7, 5]]))
        elif kind is layers.TextVectorization:
            layer.adapt(WORDS[:, 0])
        else:
            layer.set_vocabulary(["red", "green"])
        return layer

    return make


def from_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("red\ngreen\nblue")
    return layers.StringLookup(vocabulary=str(tmp_path / "words.txt"))


LOOKUPS = {
    "integers": (lookup(layers.IntegerLookup), np.array([[7, 9], [5, 1]])),
    "words": (lookup(layers.StringLookup), np.array([["green", "red"], ["?", "red"]])),
    "from a file": (from_a_file, np.array([["green", "blue"], ["?", "red"]])),
    "text": (lookup(layers.TextVectorization, output_sequence_length=2), WORDS[:, :1]),
    "tf-idf": (lookup(layers.TextVectorization, output_mode="tf_idf"), WORDS[:, :1]),
    "characters": (
        lookup(layers.TextVectorization, output_sequence_length=5, split="character"),
        np.array([["a\nb"], ["red"]]),
    ),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_vocabularies(name, tmp_path):
    make, x = LOOKUPS[name]
    layer = make(tmp_path)
    inputs = keras.Input(x.shape[1:], dtype="int64" if name == "integers" else "string")
    y = layer(inputs)
    y = y if name == "tf-idf" else layers.Flatten()(layers.Embedding(64, 3)(y))
    model = keras.Model(inputs, head(y))
    x = keras.ops.convert_to_tensor(x)
    for copy in without_nothing(model):
        same(model, copy, x)


def test_vocabulary_of_a_loaded_model(tmp_path):
    inputs = keras.Input((1,), dtype="string")
    vectorize = layers.TextVectorization(output_mode="multi_hot")
    vectorize.adapt(WORDS[::2, 0])
    model = keras.Model(inputs, head(vectorize(inputs)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for copy in without_nothing(loaded):
        same(model, copy, keras.ops.convert_to_tensor(WORDS[:, :1]))


def test_bins():
    inputs = keras.Input((1,))
    adapted = layers.Discretization(num_bins=4)
    adapted.adapt(np.linspace(0, 1, 50)[:, None])
    x = layers.CategoryEncoding(4, "one_hot")(adapted(inputs))
    x = layers.Concatenate()([x, layers.Discretization([0.3, 0.6])(inputs)])
    x = layers.Concatenate()([x, layers.CategoryEncoding(3, "one_hot")(inputs)])
    model = keras.Model(inputs, head(x))
    for copy in without_nothing(model):
        same(model, copy, np.linspace(0, 1, 9)[:, None])


@keras.saving.register_keras_serializable("test_copying")
class Table(layers.Layer):
    """Keeps words in a file, a number in the variables' file, and constants made of weights."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.words, self.scale, self.constant = [], 1.0, 0.0
        self.inner = layers.Normalization(axis=None)

    def build(self, shape):
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")
        self.inner.build(shape)
        self.finalize_state()

    def call(self, x):
        return self.inner(x) * self.scale * len(self.words) + self.constant

    def finalize_state(self):
        self.constant = self.shift.numpy().sum()

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["scale"] = np.asarray(self.scale)

    def load_own_variables(self, store):
        self.scale = float(store.pop("scale"))
        super().load_own_variables(store)

    def save_assets(self, folder):
        with open(f"{folder}/words", "w") as file:
            file.write("\n".join(self.words))

    def load_assets(self, folder):
        with open(f"{folder}/words") as file:
            self.words = file.read().split("\n")


class Remembers(layers.Layer):
    """Has no hooks: attributes that somebody set, without a config, and a narrow constructor."""

    def __init__(self, factor):
        super().__init__(name="remembers", dtype="float32")
        self.factor, self.offsets = factor, None

    def call(self, x):
        return x * self.factor + (0 if self.offsets is None else self.offsets)


def test_layers_of_ones_own():
    inputs = keras.Input((4,))
    table, remembers = Table(), Remembers(2)
    x = layers.Dense(6)(remembers(table(inputs)))
    model = keras.Model(inputs, head(x))
    table.words, table.scale = ["a", "b"], 3.0
    table.shift.assign([1, 2, 3, 4])
    table.finalize_state()
    table.inner.adapt(np.arange(8.0).reshape(2, 4))
    remembers.factor, remembers.offsets = 5.0, np.arange(4.0)
    remembers.trainable = False
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    for copy in without_nothing(model):
        same(model, copy, x)
        assert not copy.get_layer("remembers").trainable
    kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)


def test_frozen_parts_of_layers():
    inputs = keras.Input((4, 6))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, head(attention(inputs, inputs)))
    attention._query_dense.trainable = False
    attention._key_dense.bias.trainable = False
    model.get_layer("hidden").kernel.trainable = False
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    frozen = [v.path for v in model.weights if not v.trainable]
    assert len(frozen) == 4
    assert [v.path for v in small.weights if not v.trainable] == frozen


@keras.saving.register_keras_serializable("test_copying")
class Noisy(keras.Model):
    """As Keras loads it: settings in the config, the graph in the constructor."""

    def __init__(self, *args, noise=0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.noise = noise

    def get_config(self):
        return {**super().get_config(), "noise": self.noise}

    def train_step(self, data):
        return {**super().train_step(data), "noise": keras.ops.convert_to_tensor(self.noise)}


class Weighted(keras.Model):
    """Takes a graph and a number that no config holds."""

    def __init__(self, inputs, outputs, alpha):
        super().__init__(inputs, outputs)
        self.alpha = alpha
        self.extra = self.add_weight(shape=(), name="extra", trainable=False)

    def train_step(self, data):
        return {**super().train_step(data), "alpha": keras.ops.convert_to_tensor(self.alpha)}


class Whole(keras.Model):
    """Makes its own graph."""

    def __init__(self, width=16, **kwargs):
        inputs = keras.Input((4,))
        super().__init__(inputs, layers.Dense(3)(layers.Dense(width)(inputs)), **kwargs)

    def train_step(self, data):
        return super().train_step(data)


class Stack(keras.Sequential):
    def __init__(self, layers=None, name=None, beta=1.0):
        super().__init__(layers, name=name)
        self.beta = beta


def test_classes_of_models(tmp_path):
    inputs = keras.Input((4,))
    noisy = Noisy(inputs, head(inputs), noise=0.3, name="noisy")
    noisy.temperature = 7
    outer = Weighted(inputs, noisy(inputs), 2.5)
    outer.extra.assign(5.0)
    outer.compile("sgd", "mse", jit_compile=False)
    small = kn.prune(outer, kn.Magnitude(), ratio=0.5, verbose=0)
    inner = small.get_layer("noisy")
    assert type(small) is Weighted
    assert type(inner) is Noisy
    assert (inner.noise, inner.temperature, float(small.extra)) == (0.3, 7, 5.0)
    assert small.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0).history["alpha"] == [2.5]
    small = kn.prune(noisy, kn.Magnitude(), ratio=0.5, verbose=0)
    small.save(tmp_path / "small.keras")
    assert keras.models.load_model(tmp_path / "small.keras").noise == 0.3
    stack = Stack([inputs, layers.Dense(8), layers.Dense(2)], "stack", beta=4.0)
    small = kn.prune(stack, kn.Magnitude(), ratio=0.5, verbose=0)
    assert (type(small), small.name, small.beta, small.layers[0].units) == (Stack, "stack", 4.0, 4)


def test_class_that_makes_its_own_graph():
    with pytest.warns(UserWarning, match=r"Whole.*plain model.*`train_step`.*inputs, outputs"):
        small = kn.prune(Whole(), kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.layers[1].units == 8


class Flavoured(layers.Dense):
    """Its config holds what its constructor does not take, and `**kwargs` hide which."""

    def __init__(self, units, flavour=None, **kwargs):
        super().__init__(units, **kwargs)
        self.flavour = flavour

    def get_config(self):
        return {**super().get_config(), "flavour": self.flavour, "version": 3}


class Narrow(layers.Dense):
    def __init__(self, units, activation=None):
        super().__init__(units, activation)

    def get_config(self):
        return {**super().get_config(), "note": 1}


class Forgets(layers.Dense):
    def __init__(self, units, **kwargs):
        kwargs["activation"] = None
        super().__init__(units)


@pytest.mark.parametrize("kind", [Flavoured, Narrow])
def test_constructors_that_do_not_take_their_config(kind):
    inputs = keras.Input((4,))
    x = kind(8, activation="relu")(inputs)
    first = kind(6, activation="tanh")
    model = keras.Model(inputs, head(first(x)))
    first.trainable = False
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, exclude=first.name, verbose=0)
    for old, new in zip(model.layers, small.layers, strict=True):
        assert (type(new), new.name, new.trainable) == (type(old), old.name, old.trainable)
        if isinstance(new, layers.Dense):
            assert new.get_config() == {**old.get_config(), "units": new.units}
    assert [layer.units for layer in small.layers[1:]] == [4, 6, 4, 3]


def gelu(x):
    return x / (1 + keras.ops.exp(-1.702 * x))


@pytest.mark.skipif(
    keras.activations.serialize(keras.ops.gelu) != "gelu", reason="files name the module as well"
)
@pytest.mark.parametrize("function", [keras.ops.gelu, gelu])
def test_functions_of_which_keras_writes_the_name_alone(function, tmp_path):
    """By the name `gelu`, Keras loads that of `keras.activations`."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(layers.Dense(8, activation=function, name="first")(inputs)))
    with pytest.warns(UserWarning, match="'gelu' of module .* `keras.activations.gelu`"):
        small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)  # which verifies
    assert small.get_layer("first").activation is function
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert loaded.get_layer("first").activation is keras.activations.gelu
    with pytest.warns(UserWarning, match="'gelu' of module"):
        copies = list(without_nothing(model))
    for copy in copies:
        same(model, copy, np.random.default_rng(0).normal(size=(8, 4)))


def test_functions_of_other_modules_that_compute_what_keras_loads():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(layers.Dense(8, activation=tf.nn.gelu)(inputs)))
    kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)  # without a warning


def test_a_copy_that_loses_a_setting_is_noticed():
    layer = Forgets(4)
    layer.activation = keras.activations.relu
    with pytest.warns(UserWarning, match="Forgets.*activation='linear' .instead of 'relu'"):
        copying.copy_layer(layer)


def unlike(optimizer):
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(8, name="first")(inputs))
    model = keras.Model(inputs, head(layers.Activation("relu")(x)))
    model.compile(optimizer, "mse", metrics=[keras.metrics.MeanMetricWrapper(off, name="off")])
    return model


def off(y, p):
    return keras.ops.abs(y - p)


def test_weights_that_do_not_decay():
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    model = unlike(optimizer)
    kernel = model.get_layer("first").kernel
    optimizer.exclude_from_weight_decay([kernel], ["gamma"])
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    small.optimizer.build(small.trainable_variables)
    decays = {v.path: small.optimizer._use_weight_decay(v) for v in small.trainable_variables}
    assert [path for path, decay in decays.items() if not decay] == ["first/kernel", "norm/gamma"]
    assert decays["hidden/kernel"]


@pytest.mark.parametrize("scaled", [False, True])
def test_slots_belong_to_weights_and_not_to_places(scaled):
    optimizer = keras.optimizers.Adam(0.01)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model = unlike(optimizer)
    model.get_layer("hidden").trainable = False
    x, y = np.random.default_rng(0).normal(size=(2, 32, 4)).astype("float32")
    model.fit(x, y[:, :3], verbose=0)
    model.get_layer("hidden").trainable = True
    model.get_layer("first").trainable = False
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    with pytest.warns(UserWarning, match="^Optimizer variables .[a-z0-9_]*/hidden_kernel_m"):
        small = kn.rebuild(model, plan, optimizer_state=True)
    slots = {v.name: v.numpy() for v in small.optimizer.variables}
    old = {v.name: v.numpy() for v in model.optimizer.variables}
    whole, part = old["norm_gamma_momentum"], slots["norm_gamma_momentum"]
    kept = [abs(whole - value).argmin() for value in part]
    assert len(kept) == 4
    np.testing.assert_array_equal(part, whole[kept])
    assert not slots["hidden_kernel_momentum"].any()
    assert (slots["iteration"], old["iteration"]) == (1, 1)
    small.fit(x, y[:, :3], verbose=0)


def test_compile_configuration_after_saving_as_h5(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.25), "mse", jit_compile=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("absl.logging.warning", lambda *args: None)
        model.save(tmp_path / "m.h5")
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.optimizer.learning_rate == 0.25
    assert small.loss == "mse"


def tuned(layer):
    """LoRA with factors that matter, and a scale of its own."""
    layer.enable_lora(2, lora_alpha=3)
    for name in ("lora_kernel_b", "lora_embeddings_b"):
        if hasattr(layer, name):
            getattr(layer, name).assign(keras.random.normal(getattr(layer, name).shape))


@pytest.mark.parametrize("which", ["embedding", "conv", "einsum", "hidden", "attention"])
def test_lora_is_pruned_with_its_layer(which):
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, name="embedding")(inputs)
    x = layers.Conv1D(8, 3, padding="same", activation="relu", name="conv")(x)
    x = layers.EinsumDense("abc,cd->abd", (6, 8), activation="relu", name="einsum")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(inputs, head(layers.GlobalAveragePooling1D()(x)))
    layer = model.get_layer(which)
    if which == "attention":
        tuned(layer._query_dense)
        tuned(layer._output_dense)
    else:
        tuned(layer)
    before = [v.numpy() for v in model.weights]
    data = np.random.default_rng(0).integers(0, 9, (16, 6))
    for importance in (kn.Magnitude(), kn.NISP(data)):
        small = kn.prune(model, importance, ratio=0.5, verbose=0)
        copy = small.get_layer(which)
        copy = copy._query_dense if which == "attention" else copy
        assert copy.lora_alpha == 3
        assert len(small.weights) == len(model.weights)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_efficientnet_with_statistics_from_a_file():
    model = keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3), classes=5)
    (layer,) = (x for x in model.layers if isinstance(x, layers.Normalization))
    layer.load_own_variables({"0": np.full(3, 0.45), "1": np.full(3, 0.06), "2": 1})
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    for copy in without_nothing(model):
        same(model, copy, x)


def test_code_without_a_module():
    """`exec` with globals of its own gives functions whose `__module__` is None."""
    code = """
import keras
from keras import layers

class Mine(layers.Dense):
    def save_own_variables(self, store):
        super().save_own_variables(store)

    def load_own_variables(self, store):
        super().load_own_variables(store)

class Own(keras.Model):
    def train_step(self, data):
        return super().train_step(data)

    def get_config(self):
        return super().get_config()

a = keras.Input((4,))
x = layers.Dense(8, activation=lambda t: 0.5 * t)(layers.Lambda(lambda t: 2.0 * t)(a))
model = Own(a, layers.Dense(3)(Mine(6)(x)))
"""
    namespace = {}
    exec(code, namespace)
    small = kn.prune(namespace["model"], kn.Random(0), ratio=0.5)  # which verifies
    assert type(small) is namespace["Own"]


class Settled(layers.Layer):
    """What is made by subclasses in unusual ways, and does the same."""

    def call(self, x):
        return x + keras.ops.cast(self.by, x.dtype)


class WithOptions(Settled):
    def __init__(self, by, **options):
        super().__init__(**options)
        self.by = by


class ByName(Settled):
    def __init__(self, *, by, **options):
        super().__init__(**options)
        self.by = by


class OwnConfig(WithOptions):
    def get_config(self):
        return {"by": self.by}


class WithoutOptions(Settled):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def get_config(self):
        return {"by": self.by}


UNUSUAL = {
    "options": lambda **options: WithOptions([2.0], **options),
    "array": lambda **options: WithOptions(np.ones(8, "float32"), **options),
    "initializer": lambda **options: WithOptions(keras.initializers.Ones()(()), **options),
    "by name": lambda **options: ByName(by=2.0, **options),
    "config": lambda **options: OwnConfig(2.0, **options),
    "Keras": lambda **options: layers.Dense(8, **options),
    "no options": lambda **options: WithoutOptions(2.0),
}


@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_every_layer_has_stays(kind):
    options = {"dtype": "mixed_bfloat16", "activity_regularizer": "l2", "trainable": False}
    layer = UNUSUAL[kind](name="special", autocast=False, **options)
    if kind == "no options":
        layer.name, layer.dtype_policy, layer.trainable = "special", "mixed_bfloat16", False
        layer.activity_regularizer = keras.regularizers.L2(0.5)
    layer.supports_masking = True
    inputs = keras.Input((4,))
    x = layer(layers.Dense(8, name="before")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8, name="after")(x)))
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    new = small.get_layer("special")
    for name in ("trainable", "autocast", "supports_masking"):
        assert getattr(new, name) == getattr(layer, name)
    assert new.dtype_policy.name == "mixed_bfloat16"
    assert new.activity_regularizer.get_config() == layer.activity_regularizer.get_config()
    assert small.get_layer("after").units == 4


def test_arguments_that_nothing_notes_are_refused():
    class Listed(Settled):
        def __init__(self, *by, **options):
            super().__init__(**options)
            self.by = by[0] if by else 1.0

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(Listed(2.0, name="special")(inputs)))
    with pytest.raises(TypeError, match=r"'special' \(Listed\).*`\*by` were.*`get_config`"):
        copying.copy_model(model)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="whole")
        self.hidden, self.out = layers.Dense(8), layers.Dense(3)

    def call(self, x):
        return self.out(self.hidden(x))


def test_policy_of_a_model():
    """A model for mixed precision stays one that scales its loss, whatever the policy is now."""
    inputs = keras.Input((4,))
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, whole = keras.Model(inputs, head(inputs)), Subclassed()
        model.compile("sgd", "mse")
    finally:
        keras.config.set_dtype_policy("float32")
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.dtype_policy.name == "mixed_float16"
    assert isinstance(small.optimizer, keras.optimizers.LossScaleOptimizer)
    assert kn.as_functional(whole, inputs).dtype_policy.name == "mixed_float16"
