"""The operations of a TFLite file, read from the file itself."""

from collections import Counter
from collections.abc import Iterator

FLOATS = {"FLOAT16", "FLOAT32", "FLOAT64"}
# They carry values in and out of float, and compute nothing.
CASTS = {"QUANTIZE", "DEQUANTIZE"}


def operations(content: bytes) -> dict[str, int]:
    """Names of TFLite's operations and how often each is in a file, `{"CONV_2D": 3}`."""
    return dict(sorted(Counter(name for name, _ in _operators(content)).items()))


def float_operations(content: bytes) -> dict[str, int]:
    """Those operations that compute with floats."""
    found = (name for name, kinds in _operators(content) if kinds & FLOATS and name not in CASTS)
    return dict(sorted(Counter(found).items()))


def listed(counts: dict[str, int]) -> str:
    """Operations as text: `"ELU, DIV (2)"`."""
    return ", ".join(name if n == 1 else f"{name} ({n})" for name, n in counts.items())


def _operators(content: bytes) -> Iterator[tuple[str, set[str]]]:
    """Name of each operator, and the types of the tensors that it takes and gives."""
    # TensorFlow has no public reader of its own format.
    from tensorflow.lite.python import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    model = schema.Model.GetRootAs(content, 0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            code = codes[operator.OpcodeIndex()]
            # Codes above 127 are in the newer of two fields.
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            if name == "CUSTOM":
                name = code.CustomCode().decode()
            tensors = [operator.Inputs(j) for j in range(operator.InputsLength())]
            tensors += [operator.Outputs(j) for j in range(operator.OutputsLength())]
            yield name, {types[graph.Tensors(t).Type()] for t in tensors if t >= 0}
