"""What a model takes and gives, as the worker tells the listener. No numpy: the listener has none."""

import msgspec


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output."""

    name: str
    dtype: str  # numpy's name, such as float32, int64, uint8 or bool; "bytes" for encoded pictures and text
    shape: tuple[int, ...]  # of one instance; -1 is any size


class Signature(msgspec.Struct, frozen=True):
    """A model's inputs and outputs; OIP's metadata are made of it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


# The Open Inference Protocol's names of numpy's dtypes.
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bytes": "BYTES",
}


def describe_model(name: str, version: str, signature: Signature | None) -> dict[str, object]:
    """A model's metadata as the Open Inference Protocol writes them; a predictor may have no signature."""
    return {
        "name": name,
        "versions": [version],
        "platform": "pytorch",
        "inputs": [_describe(spec) for spec in signature.inputs] if signature else [],
        "outputs": [_describe(spec) for spec in signature.outputs] if signature else [],
    }


def _describe(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": [-1, *spec.shape]}
