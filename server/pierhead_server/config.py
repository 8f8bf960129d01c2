"""`model.yaml`: what an artifact is made of. No torch, no I/O but reading the file."""

import difflib
import math
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from pierhead_server.errors import ArtifactInvalidError

MODEL_FILE = "model.yaml"
MAX_MODEL_FILE_BYTES = 1024 * 1024
_MOST_NUMBERS = 1 << 28  # of an instance's tensor: a model is tried with some, before any client sends one

Dtype = Literal["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def check_inside(path: str) -> str:
    """A path that stays inside the artifact's folder; raises ValueError."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or any(ord(c) < 32 or c == "\\" for c in path):
        raise ValueError("must be a path inside the artifact's folder")
    return path


def _labels(value: object) -> object:
    if isinstance(value, str):
        return check_inside(value)
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return value
    raise ValueError("must be a file's path or a list of names (in YAML, quote yes, no and numbers)")


RelativePath = Annotated[str, AfterValidator(check_inside)]
Labels = Annotated[str | list[str], BeforeValidator(_labels)]  # a file with one name a line, or the names


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Preprocessing(_Strict):
    """How a picture becomes the model's input. The defaults are those of torchvision's ImageNet weights."""

    resize: int = Field(default=256, gt=0, le=4096)  # the shorter side is scaled to this many pixels
    crop: int = Field(default=224, gt=0, le=4096)  # the square cut out of the middle
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of red, green, blue in 0..1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    # Lets the JPEG decoder scale by eighths first: faster on large pictures, and a little other than full size.
    scaled_decoding: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Preprocessing":
        if self.crop > self.resize:
            raise ValueError("crop must be at most resize")
        if not all(value > 0 for value in self.std):
            raise ValueError("std must be above 0")
        return self


class ImageInput(_Strict):
    """An input that takes float32 [batch, 3, crop, crop], made of pictures."""

    name: str = Field(min_length=1)
    type: Literal["image"]
    preprocessing: Preprocessing = Preprocessing()


class TensorInput(_Strict):
    """An input that takes [batch, *shape]."""

    name: str = Field(min_length=1)
    type: Literal["tensor"] = "tensor"
    dtype: Dtype = "float32"
    shape: tuple[int, ...] = ()  # of one instance; -1 is any size

    @model_validator(mode="after")
    def _check(self) -> "TensorInput":
        if not all(size > 0 or size == -1 for size in self.shape):
            raise ValueError("shape must hold sizes above 0, or -1 for any")
        if math.prod(size for size in self.shape if size > 0) > _MOST_NUMBERS:
            raise ValueError(f"shape must be of at most {_MOST_NUMBERS} numbers")
        return self


def _input_type(value: object) -> str:
    """Of what is read, and of what is written again."""
    return str(value.get("type", "tensor") if isinstance(value, dict) else getattr(value, "type", "tensor"))


Input = Annotated[
    Annotated[ImageInput, Tag("image")] | Annotated[TensorInput, Tag("tensor")], Discriminator(_input_type)
]


class _Model(_Strict):
    labels: Labels | None = None
    # What turns the outputs into confidences: softmax over all classes, sigmoid for each class by itself, or nothing.
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    preprocessing: Preprocessing = Preprocessing()
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # what the model computes in


class TorchvisionModel(_Model):
    """One of torchvision's classification architectures with its weights."""

    format: Literal["torchvision"]
    architecture: str
    weights: RelativePath  # .safetensors, or a state dict (.pth, .pt) of plain tensors
    # One of torchvision's own, such as ResNet50_Weights.IMAGENET1K_V2: its labels and preprocessing are the defaults.
    metadata: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "TorchvisionModel":
        if self.labels is None and self.metadata is None:
            raise ValueError("labels: missing: name every class, or give metadata, torchvision's name of the weights")
        return self


class _Program(_Model):
    program: RelativePath
    # With labels the program is an image classifier: float32 [batch, 3, crop, crop] to [batch, classes].
    # With inputs it may take and give any tensors, batch first.
    inputs: list[Input] | None = None
    outputs: list[str] | None = None  # names of what it gives, in order; of a dict they are its keys

    @model_validator(mode="after")
    def _check(self) -> "_Program":
        if (self.labels is None) == (self.inputs is None):
            raise ValueError("give labels (an image classifier) or inputs (any other program), and not both")
        names = [entry.name for entry in self.inputs or ()]
        for field, given in (("inputs", names), ("outputs", self.outputs or [])):
            if len(set(given)) < len(given):
                raise ValueError(f"{field}: a name is there twice")
        if self.inputs == [] or self.outputs == []:
            raise ValueError("inputs and outputs need at least one entry each, or leave outputs out")
        return self


class ExportedProgram(_Program):
    """A program saved by `torch.export.save`."""

    format: Literal["torch.export"]


class TorchScriptProgram(_Program):
    """A program saved by `torch.jit.save`."""

    format: Literal["torchscript"]


class OpenvinoProgram(_Program):
    """A network of OpenVINO's: `model.xml`, with its weights in `model.bin` beside it."""

    format: Literal["openvino"]


class CustomPredictor(_Strict):
    """`predictor.py` with a class Predictor: code, which runs only where the model's version allows it."""

    format: Literal["predictor"]
    # Each worker calls from_path for itself, after it was forked: for code that uses a GPU or starts threads there.
    load_in_workers: bool = False


ModelConfig = TorchvisionModel | ExportedProgram | TorchScriptProgram | OpenvinoProgram | CustomPredictor
_FORMATS: dict[str, type[BaseModel]] = {
    "torchvision": TorchvisionModel,
    "torch.export": ExportedProgram,
    "torchscript": TorchScriptProgram,
    "openvino": OpenvinoProgram,
    "predictor": CustomPredictor,
}
_CONFIG: TypeAdapter[ModelConfig] = TypeAdapter(Annotated[ModelConfig, Field(discriminator="format")])


def read_config(folder: Path) -> ModelConfig:
    """Read a folder's model.yaml; raises ArtifactInvalidError that names the field and the fix."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise ArtifactInvalidError(f"{MODEL_FILE}: missing: every artifact needs one")
    if path.stat().st_size > MAX_MODEL_FILE_BYTES:
        raise ArtifactInvalidError(f"{MODEL_FILE}: larger than {MAX_MODEL_FILE_BYTES} bytes: put labels into a file")
    return parse_config(path.read_bytes())


def parse_config(content: bytes) -> ModelConfig:
    """Parse a model.yaml; raises ArtifactInvalidError that names the field and the fix."""
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date that is none
        raise ArtifactInvalidError(f"{MODEL_FILE}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _CONFIG.validate_python(document)
    except ValidationError as error:
        causes = [_explain(dict(cause)) for cause in error.errors()]
        raise ArtifactInvalidError(f"{MODEL_FILE}: {'; '.join(causes)}") from None


def _explain(cause: dict[str, Any]) -> str:
    """One pydantic error as `field: cause`, with the nearest known name for an unknown field."""
    tag, *where = [str(part) for part in cause["loc"]] or [""]
    if where[:1] == ["inputs"] and len(where) > 2:
        del where[2]  # which part of the union it was; no field
    field = ".".join(where)
    match cause["type"]:
        case "union_tag_not_found" | "union_tag_invalid":
            if where:
                return f"{field}.type: must be image or tensor"
            return f"format: must be one of {', '.join(_FORMATS)}"
        case "missing":
            return f"{field}: missing"
        case "extra_forbidden":
            known = _known_fields(tag, where)
            near = difflib.get_close_matches(where[-1], known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            return f"{field}: unknown: {fix}"
    return f"{field}: {cause['msg'].removeprefix('Value error, ')}".removeprefix(": ")


def _known_fields(tag: str, where: list[str]) -> list[str]:
    if len(where) == 1:
        return list(_FORMATS[tag].model_fields)
    if where[0] == "inputs" and len(where) == 3:
        return list(dict.fromkeys([*TensorInput.model_fields, *ImageInput.model_fields]))
    return list(Preprocessing.model_fields)
