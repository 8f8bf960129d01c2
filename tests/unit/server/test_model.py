"""Real, tiny models: loaded, refused, and predicting what torch itself predicts."""

import io
import shutil
import warnings

import pytest
import torch
from pierhead_server.artifact import read_artifact
from pierhead_server.errors import ArtifactInvalidError, InternalError, InvalidArgumentError
from pierhead_server.model import Classifier, load_classifier
from pierhead_server.protocol import Parameters, Picture, PredictRequest

from tests.unit.server.pictures import LABELS, SIDE, encode, export_program, picture


def load(folder):
    return load_classifier(read_artifact(folder), threads=1, max_image_pixels=10**6)


def request(*images, **parameters):
    return PredictRequest(tuple(Picture(encode(image), "content") for image in images), Parameters(**parameters))


@pytest.fixture
def copy(tmp_path):
    """A copy of an artifact's folder that a test may spoil."""
    return lambda folder: shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def classifier(torchvision_folder):
    return load(torchvision_folder)


def test_torchvision_model_predicts_what_torch_does(classifier, torchvision_folder):
    import torchvision
    from safetensors.torch import load_file
    from torchvision.transforms._presets import ImageClassification

    network = torchvision.models.mobilenet_v3_small(num_classes=len(LABELS)).eval()
    network.load_state_dict(load_file(torchvision_folder / "model.safetensors"))
    preset = ImageClassification(resize_size=SIDE + 8, crop_size=SIDE)
    pictures = [picture(seed=seed) for seed in range(3)]
    with torch.inference_mode():
        expected = network(torch.stack([preset(image) for image in pictures])).softmax(dim=1)
    for ranking, confidences in zip(classifier.predict(request(*pictures)), expected, strict=True):
        assert [index for index, _ in ranking] == confidences.argsort(descending=True).tolist()
        assert dict(ranking) == pytest.approx(dict(enumerate(confidences.tolist())), abs=1e-5)


def test_exported_program_predicts_what_torch_does(exported_folder):
    from torchvision import transforms

    program = torch.export.load(exported_folder / "model.pt2").module()
    preset = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    image = picture(SIDE, SIDE)
    with torch.inference_mode():
        expected = program(preset(image)[None]).sigmoid()[0]
    (ranking,) = load(exported_folder).predict(request(image))
    assert dict(ranking) == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-5)


def test_ranking_is_cut_by_threshold_and_number(classifier):
    (everything,) = classifier.predict(request(picture()))
    (two,) = classifier.predict(request(picture(), max_predictions=2))
    (above,) = classifier.predict(request(picture(), confidence_threshold=everything[1][1]))
    (none,) = classifier.predict(request(picture(), confidence_threshold=1.0))
    assert len(everything) == len(LABELS)
    assert two == above == everything[:2]
    assert none == []


def test_bad_picture_names_its_instance(classifier):
    good = Picture(encode(picture()), "content")
    with pytest.raises(InvalidArgumentError, match=r"^instances\[1\]\.b64: not a picture: "):
        classifier.predict(PredictRequest((good, Picture(b"x", "b64")), Parameters()))


def test_confidence_that_is_no_number_is_an_error(torchvision_folder):
    artifact = read_artifact(torchvision_folder)
    nan = Classifier(lambda batch: torch.full((len(batch), len(LABELS)), torch.nan), artifact, max_image_pixels=10**6)
    with pytest.raises(InternalError, match="no numbers"):
        nan.predict(request(picture()))


def test_architecture_that_computes_while_it_is_built_loads(tmp_path):
    import torchvision
    from safetensors.torch import save_file

    save_file(torchvision.models.regnet_x_400mf(num_classes=2).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text(
        "{format: torchvision, architecture: regnet_x_400mf, weights: model.safetensors, labels: [a, b],"
        " preprocessing: {resize: 64, crop: 64}}"
    )
    assert load(tmp_path).predict(request(picture()))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "mobilenet_v3_small",
            "mobilenet_v3_smal",
            "architecture: mobilenet_v3_smal is unknown: did you mean mobilene",
        ),
        ("mobilenet_v3_small", "fasterrcnn_resnet50_fpn", "architecture: fasterrcnn_resnet50_fpn is unknown"),
        ("mobilenet_v3_small", "resnet18", "weights: model.safetensors does not fit resnet18 with 5 labels: "),
        ("ant, ", "", "weights: model.safetensors does not fit mobilenet_v3_small with 4 labels: "),
    ],
)
def test_misfit_is_named(torchvision_folder, copy, old, new, message):
    folder = copy(torchvision_folder)
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace(old, new))
    with pytest.raises(ArtifactInvalidError) as caught:
        load(folder)
    assert str(caught.value).startswith(message)


def test_weights_that_are_no_safetensors_are_refused(torchvision_folder, copy):
    folder = copy(torchvision_folder)
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ArtifactInvalidError, match=r"^weights: model\.safetensors does not fit"):
        load(folder)


class Head(torch.nn.Module):
    """A program that is not a classifier as it should be."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, batch):
        pooled = batch.mean(dim=(2, 3))
        return (pooled, pooled) if self.kind == "tuple" else pooled


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "dynamic", "message"),
    [
        ("tensor", True, "labels: 5 names, but the model gives (1, 3) for a batch of 1"),
        ("tuple", True, "the model gives a tuple: it must give one tensor"),
        ("tensor", False, "the model refuses a float32 input of 1x3x64x64: "),
    ],
)
def test_program_that_is_no_classifier_is_refused(exported_folder, copy, kind, dynamic, message):
    folder = copy(exported_folder)
    export_program(Head(kind), folder / "model.pt2", torch.zeros(2, 3, SIDE, SIDE), dynamic=dynamic)
    with pytest.raises(ArtifactInvalidError) as caught:
        load(folder)
    assert str(caught.value).startswith(message)


@pytest.mark.filterwarnings("ignore")
def test_program_for_one_picture_at_a_time_is_refused(exported_folder, copy):
    folder = copy(exported_folder)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, len(LABELS)))
    export_program(network, folder / "model.pt2", torch.zeros(1, 3, SIDE, SIDE), dynamic=False)
    with pytest.raises(ArtifactInvalidError, match="2x3x64x64: export it with a dynamic batch dimension: "):
        load(folder)


def rewrite(archive, change):
    """Change the records of a .pt2 archive: a function of their names and bytes."""
    source = torch._C.PyTorchFileReader(str(archive))
    records = {name: source.get_record(name) for name in source.get_all_records()}
    target = torch._C.PyTorchFileWriter(str(archive.with_name("changed.pt2")))
    for name, data in change(records).items():
        if not name.startswith((".data/", "byteorder", "version")):
            target.write_record(name, data, len(data))
    target.write_end_of_file()
    archive.with_name("changed.pt2").replace(archive)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pickled(thing):
    """As torch.save writes it."""
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda records, _: {WEIGHTS: records[WEIGHTS].replace(b'"use_pickle": false', b'"use_pickle": true')},
            "pickle",
        ),
        (
            lambda _, bomb: {
                CONSTANTS: b'{"config": {"c": {"path_name": "opaque_obj_0", "use_pickle": false, "is_param": false, '
                b'"tensor_meta": null}}}',
                "data/constants/opaque_obj_0": pickled(bomb),
            },
            "c is a pickle",
        ),
        (lambda _, bomb: {"data/weights/model.pt": pickled({"weight": bomb})}, "holds a pickle"),
        (lambda _, bomb: {"data/constants/model.pt": pickled({"weight": bomb})}, "holds a pickle"),
        (lambda _records, _bomb: {"data/aotinductor/model/model.so": b"\x7fELF"}, "holds machine code"),
        (lambda _, bomb: {"data/sample_inputs/model.pt": pickled((bomb,))}, "no torch.export program"),
    ],
)
def test_no_pickle_of_an_archive_is_loaded(exported_folder, copy, tmp_path, change, message):
    folder, boom = copy(exported_folder), tmp_path / "boom"
    rewrite(folder / "model.pt2", lambda records: records | change(records, Bomb(boom)))
    with pytest.raises(ArtifactInvalidError, match=message):
        load(folder)
    assert not boom.exists()


@pytest.mark.filterwarnings("ignore")
def test_rewritten_archive_loads_when_nothing_is_changed(exported_folder, copy):
    folder = copy(exported_folder)
    rewrite(folder / "model.pt2", dict)
    assert load(folder).predict(request(picture()))


@pytest.mark.filterwarnings("ignore")
def test_program_that_is_none_is_refused(exported_folder, copy):
    folder = copy(exported_folder)
    (folder / "model.pt2").write_bytes(b"no archive")
    with pytest.raises(ArtifactInvalidError, match=r"^program: model\.pt2 is no torch\.export program: "):
        load(folder)


def test_warm_up_leaves_no_warning(exported_folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(exported_folder)
    assert [str(warning.message) for warning in caught if "pierhead" in warning.filename] == []
