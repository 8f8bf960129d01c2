"""Torch modules from an artifact's files. A pickle is never loaded without torch's own limits on what it may hold."""

import difflib
import importlib
import re
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pierhead_server.artifact import Artifact
from pierhead_server.config import ExportedProgram, TorchScriptProgram, TorchvisionModel
from pierhead_server.converted import Metadata
from pierhead_server.errors import ArtifactInvalidError
from pierhead_server.operators import find_unchecked


def import_torchvision() -> Any:
    """torchvision (0.29) without torch's compiler: to import that takes longer than torch, torchvision half a second.

    Of the compiler, torchvision wants one function for its operators of detection, which a classifier never calls.
    """
    if "torchvision" in sys.modules or _COMPILER in sys.modules:
        return importlib.import_module("torchvision")
    compiler, functions = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")
    compiler.__path__ = []
    functions.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    stand_ins = {module.__name__: module for module in (compiler, functions)}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("torchvision")
    finally:
        for name in stand_ins:
            del sys.modules[name]


_COMPILER = "torch._dynamo"


def _is_compile_supported(device_type: str) -> bool:
    """The compiler's own answer, when somebody asks."""
    return bool(importlib.import_module(f"{_COMPILER}.utils").is_compile_supported(device_type))


def load_torchvision(artifact: Artifact, config: TorchvisionModel, classes: int) -> torch.nn.Module:
    """One of torchvision's classification architectures with the artifact's weights. Raises ArtifactInvalidError."""
    architecture = config.architecture
    _check_architecture(architecture)
    module = _build_torchvision(architecture, classes)
    try:
        module.load_state_dict(_read_weights(artifact.folder / config.weights), strict=True, assign=True)
    except RuntimeError as error:
        raise ArtifactInvalidError(
            f"weights: {config.weights} does not fit {architecture} with {classes} labels: {first_line(error)}"
        ) from None
    module = module.float().eval()
    _fold_norms(module)
    return module


def _fold_norms(network: torch.nn.Module) -> None:
    """Put each batch norm that stands behind a convolution into its weights, in place.

    A tenth of the time of a small network (MobileNet, EfficientNet) goes into them. Where they are no neighbours in a
    sequence (ResNet), to find them would take longer than they cost.
    """
    sequences = [module for module in network.modules() if isinstance(module, torch.nn.Sequential)]
    for sequence in sequences:
        for place, (first, second) in enumerate(pairwise(sequence)):
            if isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d):
                sequence[place] = torch.nn.utils.fuse_conv_bn_eval(first, second)
                sequence[place + 1] = torch.nn.Identity()


def _check_architecture(architecture: str) -> None:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=1)
        fix = f"did you mean {near[0]}?" if near else "see torchvision's classification models"
        raise ArtifactInvalidError(f"architecture: {architecture} is unknown: {fix}")


def _build_torchvision(architecture: str, classes: int) -> torch.nn.Module:
    """The architecture, its weights' places empty."""
    models = import_torchvision().models
    with warnings.catch_warnings(), _Empty():
        warnings.simplefilter("ignore")  # of how a network would be initialised, which this one is not
        module: torch.nn.Module = models.get_model(architecture, weights=None, num_classes=classes)
        return module


class _Empty(TorchFunctionMode):
    """Weights are neither allocated nor drawn at random, which for large networks takes many seconds.

    What an architecture computes of its own (RegNet its widths, Swin its positions) is computed. On `meta` as a whole
    it could not be, and torch's Python code for that imports the compiler.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch calls it in place of its functions."""
        kwargs = kwargs or {}
        if func is torch.Tensor.normal_:
            return args[0]
        if func is torch.nn.init.normal_:
            return kwargs["tensor"]
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ArtifactInvalidError(f"weights: {path.name} is no safetensors file: {first_line(error)}") from None
    try:
        # torch's own unpickler, which knows tensors and plain containers alone.
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # it raises whatever a broken or a hostile file makes it trip over
        raise ArtifactInvalidError(f"weights: {path.name} is no state dict of tensors: {first_line(error)}") from None
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ArtifactInvalidError(f"weights: {path.name} is no state dict of tensors: save module.state_dict()")
    return weights


def _is_zip(path: Path) -> bool:
    """Whether torch can map it: files of before torch 1.6 are of another format."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def read_metadata(name: str) -> Metadata:
    """The labels and the preprocessing of torchvision's weights of this name. Raises ArtifactInvalidError."""
    models = import_torchvision().models
    try:
        weights = models.get_weight(name)
        preset: Any = weights.transforms()
        preprocessing = {
            "resize": preset.resize_size[0],
            "crop": preset.crop_size[0],
            "mean": tuple(preset.mean),
            "std": tuple(preset.std),
            "interpolation": preset.interpolation.value,
        }
        return Metadata(tuple(weights.meta["categories"]), preprocessing)
    except (ValueError, KeyError, AttributeError):
        raise ArtifactInvalidError(
            f"metadata: {name} names no weights of torchvision's classifiers: "
            "write it like ResNet50_Weights.IMAGENET1K_V2"
        ) from None


def load_program(artifact: Artifact, config: ExportedProgram | TorchScriptProgram) -> torch.nn.Module:
    """A program that was saved whole. Raises ArtifactInvalidError."""
    path = artifact.folder / config.program
    return _load_exported(path) if isinstance(config, ExportedProgram) else _load_torchscript(path)


def _load_torchscript(path: Path) -> torch.nn.Module:
    """A TorchScript program: code of a language that knows tensors alone, but for operators that open files.

    What it unpickles are TorchScript's own types. Some of its code runs while it is loaded (`__setstate__`), so that
    the text of all of it is looked through before.
    """
    try:
        _check_script(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its deprecation: models saved years ago are still there
            module: torch.nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ArtifactInvalidError(f"program: {path.name} is no TorchScript program: {first_line(error)}") from None
    return module.eval()


# `torch.save`, `torch.from_file` and torchvision's operators, however they are called.
_FILE_CALL = re.compile(r"\b(from_file|read_file|write_file)\b")
# An attribute may be named by a string, whose escapes would hide what it is called. torch writes nothing but this.
_PLAIN_GETATTR = r'getattr\(\s*[\w.]+\s*,\s*"(?!save")\w+"\s*\)'
_OTHER_GETATTR = re.compile(rf"\b(?!{_PLAIN_GETATTR})getattr\b", re.ASCII)
_SAVE_CALL = re.compile(r"\bsave\b")
# Operators beside torch's own: of extensions, and of torch's compiler, some of which reach beyond a tensor's memory.
_OTHER_CALL = re.compile(
    r"(?<![\w.])ops\b(?!\s*:)(?!\s*\.\s*(?:aten|prims?|_?quantized|sparse|mkldnn\w*|onednn|torchvision)\b)(\s*\.\s*\w+)?"
)
_WORD = re.compile(r"\b(?:_|fbgemm_|segment_)\w+", re.ASCII)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_MOST_SCRIPT_BYTES = 256 << 20  # what a file may unpack to beyond its size: code is compressed in it


def _check_script(path: Path) -> None:
    """Raises ArtifactInvalidError for code that reaches beyond tensors, ValueError for what is no archive of code."""
    reader = torch._C.PyTorchFileReader(str(path))  # a zip; of other forms the code could not be read
    names = reader.get_all_records()
    unpacked = sum(reader.get_record_size(name) for name in names)
    if unpacked > path.stat().st_size + _MOST_SCRIPT_BYTES:
        raise ValueError(f"it unpacks to {unpacked} bytes")
    for name in names:
        if name.endswith(".py") and (found := find_foreign_call(reader.get_record(name).decode())):
            raise ArtifactInvalidError(f"program: {name} calls {found}: a program computes with tensors, and no more")


def find_foreign_call(code: str) -> str | None:
    """What TorchScript's code calls that would reach beyond tensors, such as a file; None where there is nothing."""
    # In a message the word is harmless. torch writes strings in double quotes; where there is anything else that could
    # hide code from this, they are looked through, too.
    spoken = code if "'" in code or "#" in code or '"""' in code else _STRING.sub('""', code)
    found = (
        _FILE_CALL.search(code)
        or _OTHER_GETATTR.search(code)
        or _SAVE_CALL.search(spoken)
        or _OTHER_CALL.search(spoken)
    )
    if found:
        return found[0]
    unchecked = find_unchecked()
    return next((word for word in _WORD.findall(code) if word in unchecked), None)


def _load_exported(path: Path) -> torch.nn.Module:
    # Imported here: it takes as long as torch itself, and a torchvision architecture does without.
    from pierhead_server.exported import UnsafeProgramError, load_exported

    try:
        return load_exported(path)
    except UnsafeProgramError as error:
        raise ArtifactInvalidError(f"program: {path.name} {error}") from None
    except Exception as error:  # the reader and the deserialiser raise whatever a broken file makes them trip over
        raise ArtifactInvalidError(f"program: {path.name} is no torch.export program: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """An exception's message in one line of bounded length."""
    return " ".join(str(error).split())[:300]
