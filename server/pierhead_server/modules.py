"""Torch modules from an artifact's files. A pickle is never loaded without torch's own limits on what it may hold."""

import difflib
import importlib
import json
import os
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from pierhead_server.artifact import Artifact
from pierhead_server.config import ExportedProgram, Preprocessing, TorchScriptProgram, TorchvisionModel
from pierhead_server.errors import ArtifactInvalidError

if TYPE_CHECKING:
    from torch.export.pt2_archive._package import PT2ArchiveReader


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


def read_metadata(name: str) -> tuple[tuple[str, ...], Preprocessing]:
    """The labels and the preprocessing of torchvision's weights of this name. Raises ArtifactInvalidError."""
    models = import_torchvision().models
    try:
        weights = models.get_weight(name)
        preset: Any = weights.transforms()
        labels = tuple(weights.meta["categories"])
        preprocessing = Preprocessing(
            resize=preset.resize_size[0],
            crop=preset.crop_size[0],
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        )
    except (ValueError, KeyError, AttributeError):
        raise ArtifactInvalidError(
            f"metadata: {name} names no weights of torchvision's classifiers: "
            "write it like ResNet50_Weights.IMAGENET1K_V2"
        ) from None
    return labels, preprocessing


def load_program(artifact: Artifact, config: ExportedProgram | TorchScriptProgram) -> torch.nn.Module:
    """A program that was saved whole. Raises ArtifactInvalidError."""
    path = artifact.folder / config.program
    return _load_exported(path) if isinstance(config, ExportedProgram) else _load_torchscript(path)


def _load_torchscript(path: Path) -> torch.nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its deprecation: models saved years ago are still there
            module: torch.nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ArtifactInvalidError(f"program: {path.name} is no TorchScript program: {first_line(error)}") from None
    return module.eval()


def _load_exported(path: Path) -> torch.nn.Module:
    """A `torch.export` program, of which no part is a pickle.

    torch.export.load (2.15) unpickles without limits what the archive declares as such: weights and constants with
    `use_pickle`, opaque objects, sample inputs that are more than tensors, files of older formats. So the archive is
    looked through first, and every torch.load inside is held to `weights_only`. What remains is a graph of torch's
    operators, read with sympy: still a program, so only from an owner who may run programs here.
    """
    # Imported here: it takes as long as torch itself, and a torchvision architecture does without.
    from torch.export.pt2_archive._package import PT2ArchiveReader

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        _refuse_pickles(PT2ArchiveReader(str(path)))
        return torch.export.load(path).module()
    except ArtifactInvalidError:
        raise
    except Exception as error:  # the reader and the deserialiser raise whatever a broken file makes them trip over
        raise ArtifactInvalidError(f"program: {path.name} is no torch.export program: {first_line(error)}") from error


def _refuse_pickles(archive: "PT2ArchiveReader") -> None:
    """Raises ArtifactInvalidError for an archive that declares pickled objects or machine code."""
    from torch.export.pt2_archive import constants as pt2

    for name in archive.get_file_names():
        if name.startswith(pt2.AOTINDUCTOR_DIR):
            raise ArtifactInvalidError(f"program: holds machine code ({name}): save it with torch.export.save")
        if name.startswith((pt2.WEIGHTS_DIR, pt2.CONSTANTS_DIR)):
            if name.endswith(".pt"):
                raise ArtifactInvalidError(f"program: holds a pickle ({name}): save it anew with torch.export.save")
            if name.endswith(".json"):
                _refuse_pickled_payloads(name, json.loads(archive.read_string(name)))


def _refuse_pickled_payloads(name: str, config: dict[str, dict[str, dict[str, object]]]) -> None:
    from torch.export.pt2_archive import constants as pt2

    objects = (pt2.CUSTOM_OBJ_FILENAME_PREFIX, pt2.OPAQUE_OBJ_FILENAME_PREFIX)
    for field, payload in config["config"].items():
        if payload["use_pickle"] or str(payload["path_name"]).startswith(objects):
            raise ArtifactInvalidError(f"program: {field} is a pickle ({name}): export plain tensors only")


def first_line(error: Exception) -> str:
    """An exception's message in one line of bounded length."""
    return " ".join(str(error).split())[:300]
