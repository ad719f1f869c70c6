"""Layers of Keras for weights that the code of some other layer uses by itself."""

import string
from collections.abc import Callable

import keras

Signature = tuple[str, ...]


class WeightLayers:
    """Makes layers that hold variables, one for each variable, and are named after them.

    What is done with a variable decides which layer: a product needs a `Dense` or an
    `EinsumDense`, rows that are looked up an `Embedding`. For all else there is a table: an
    `EinsumDense` that multiplies a one for each sample by the variable.

    All methods give `None` if the variable is already held by another layer.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[Signature, keras.Layer]] = {}

    def product(self, kernel: keras.Variable, equation: str, dtype=None) -> keras.Layer | None:
        """The layer that multiplies by a variable.

        Args:
            kernel: the variable.
            equation: of an einsum of a tensor, whose first axis is that of samples, and the
                variable.
            dtype: of the layer.
        """
        operands, output = equation.split("->")
        tensor, letters = operands.split(",")
        sizes = dict(zip(letters, kernel.shape, strict=True))
        given = tuple(sizes.get(letter) for letter in tensor)
        if len(letters) == 2 and letters[0] == tensor[-1] and output == tensor[:-1] + letters[1]:
            return self._held(
                kernel,
                ("dense",),
                lambda **named: keras.layers.Dense(kernel.shape[1], use_bias=False, **named),
                (None, kernel.shape[0]),
                dtype,
            )
        shape = tuple(sizes.get(letter) for letter in output[1:])
        equation = _plain(equation)
        return self._held(
            kernel,
            ("product", equation),
            lambda **named: keras.layers.EinsumDense(equation, shape, **named),
            given,
            dtype,
        )

    def rows(self, table: keras.Variable, dtype=None) -> keras.Layer | None:
        """The layer that looks up rows of a matrix."""
        return self._held(
            table,
            ("rows",),
            lambda **named: keras.layers.Embedding(*table.shape, **named),
            (None,),
            dtype,
        )

    def table(self, variable: keras.Variable, dtype=None) -> keras.Layer | None:
        """The layer that gives a variable for each entry of a vector of ones."""
        letters = string.ascii_lowercase[1 : 1 + len(variable.shape)]
        return self.product(variable, f"a,{letters}->a{letters}", dtype)

    def _held(
        self, variable: keras.Variable, signature: Signature, make: Callable, given: tuple, dtype
    ) -> keras.Layer | None:
        if id(variable) not in self.known:
            role = "embeddings" if signature == ("rows",) else "kernel"
            penalties = {
                f"{role}_{name}": getattr(variable, name) for name in ("regularizer", "constraint")
            }  # what is made of the layer's config would be without them
            layer = make(name=_name(variable), dtype=dtype, **penalties)
            vars(layer)["add_weight"] = lambda *args, **kwargs: variable
            layer.build(given)
            del vars(layer)["add_weight"]
            self.known[id(variable)] = signature, layer
        found, layer = self.known[id(variable)]
        return layer if found == signature else None


def _name(variable: keras.Variable) -> str:
    """That of the variable, or of its layer if that is what it would be called in the holder."""
    *owners, name = variable.path.split("/")
    return owners[-1] if owners and name == "kernel" else name


def _plain(equation: str) -> str:
    """The same equation with the first letters of the alphabet, so that equal ones are alike."""
    letters = dict.fromkeys(letter for letter in equation if letter.isalpha())
    names = dict(zip(letters, string.ascii_letters, strict=False))
    return "".join(names.get(letter, letter) for letter in equation)
