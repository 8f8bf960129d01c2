"""Real, tiny models: loaded, refused, and predicting what torch itself predicts."""

import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from pierhead_server import cuda, modules
from pierhead_server.artifact import read_artifact
from pierhead_server.classifier import ImageClassifier
from pierhead_server.config import Preprocessing
from pierhead_server.errors import ArtifactInvalidError
from pierhead_server.messages import Hello
from pierhead_server.model import LoadOptions, load_model
from pierhead_server.modules import find_foreign_call, load_torchvision
from pierhead_server.protocol import Request
from pierhead_server.tensors import Signature, TensorSpec
from pierhead_server.worker import warm_up

from tests.unit.server.calls import CONTRACT, ask, in_base64, instances, pictures, predict
from tests.unit.server.pictures import LABELS, SIDE, encode, export_program, picture

OPTIONS = LoadOptions(max_image_pixels=10**6)


def load(folder, options=OPTIONS):
    return load_model(read_artifact(folder), options).model


@pytest.fixture
def copy(tmp_path):
    """A copy of an artifact's folder that a test may spoil."""
    return lambda folder: shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def classifier(torchvision_folder):
    return load(torchvision_folder)


def confidences(prediction):
    """By the classes' names."""
    return dict(zip(prediction["displayNames"], prediction["confidences"], strict=True))


def build_network(folder):
    """torchvision's own, with the weights of `torchvision_folder`."""
    import torchvision
    from safetensors.torch import load_file

    network = torchvision.models.mobilenet_v3_small(num_classes=len(LABELS)).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network


def compute(model, *images):
    """What a model makes of pictures, before it is cut and sorted: [pictures, classes]."""
    prepared = model.prepare(Request([encode(image) for image in images], {}))
    (computed,) = model.compute([prepared])
    return computed.outcome.tensors()["confidences"]


def compute_expected(network, images, how):
    """What torchvision's own preprocessing and torch make of pictures."""
    from torchvision import transforms

    preset = transforms.Compose(
        [
            transforms.Resize(how.resize, transforms.InterpolationMode(how.interpolation)),
            transforms.CenterCrop(how.crop),
            transforms.ToTensor(),
            transforms.Normalize(how.mean, how.std),
        ]
    )
    with torch.inference_mode():
        return network(torch.stack([preset(image) for image in images]))


def test_torchvision_model_predicts_what_torch_does(classifier, torchvision_folder):
    network, how = build_network(torchvision_folder), Preprocessing(resize=SIDE + 8, crop=SIDE)
    images = [picture(SIDE + 8, SIDE + 20, seed=seed) for seed in range(3)]  # cropped, not scaled: equal to the pixel
    expected = compute_expected(network, images, how).softmax(dim=1)
    (predictions,) = predict(classifier, pictures(*images))
    for prediction, row in zip(predictions, expected, strict=True):
        assert prediction["ids"] == [str(index) for index in row.argsort(descending=True).tolist()]
        assert prediction["displayNames"] == [LABELS[int(index)] for index in prediction["ids"]]
        assert confidences(prediction) == pytest.approx(dict(zip(LABELS, row.tolist(), strict=True)), abs=1e-5)


def test_batches_and_chunks_give_what_each_picture_gives(classifier):
    images = [picture(seed=seed) for seed in range(11)]  # more than are computed at once
    together = compute(classifier, *images)
    assert together.shape == (11, len(LABELS))
    np.testing.assert_allclose(together, np.concatenate([compute(classifier, image) for image in images]), atol=1e-4)


def test_exported_program_predicts_what_torch_does(exported_folder):
    program = torch.export.load(exported_folder / "model.pt2").module()
    how = Preprocessing(resize=SIDE, crop=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    (expected,) = compute_expected(program, [picture(SIDE, SIDE)], how).sigmoid()
    ((prediction,),) = predict(load(exported_folder), pictures(picture(SIDE, SIDE)))
    assert confidences(prediction) == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5)


def test_ranking_is_cut_by_threshold_and_number(classifier):
    ((everything,),) = predict(classifier, pictures(picture()))
    between = sum(everything["confidences"][:2]) / 2
    answers = predict(
        classifier,
        pictures(picture(), maxPredictions=2.0),
        pictures(picture(), confidenceThreshold=between),
        pictures(picture(), confidenceThreshold=1),
    )
    assert len(everything["ids"]) == len(LABELS)
    assert [len(prediction["ids"]) for (prediction,) in answers] == [2, 1, 0]
    assert answers[0][0]["ids"] == everything["ids"][:2]


def test_each_form_of_a_picture_is_the_same_picture(classifier):
    data, array = in_base64(encode(picture())), np.asarray(picture()).tolist()
    forms = [
        {"b64": data},
        {"content": data},
        {"content": data, "mimeType": "image/jpeg"},
        {"image": {"b64": data}},
        {"image_bytes": {"b64": data}},
        array,
        {"image": array},
    ]
    (predictions,) = predict(classifier, instances(*forms))
    for prediction in predictions:
        assert confidences(prediction) == pytest.approx(confidences(predictions[0]), abs=1e-4)


def test_bad_picture_names_its_instance_and_harms_no_other_request(classifier):
    bad = {"b64": in_base64(b"x")}
    spoilt = instances(*pictures(picture())["instances"], bad)
    first, (second,), third = predict(classifier, spoilt, pictures(picture()), instances({"content": bad["b64"]}))
    assert first.startswith("instances[1]: not a picture: ")
    assert third.startswith("instances[0].content: not a picture: ")
    ((alone,),) = predict(classifier, pictures(picture()))
    assert confidences(second) == pytest.approx(confidences(alone), abs=1e-4)


def test_picture_over_the_limit_is_refused(classifier):
    (message,) = predict(classifier, pictures(picture(1001, 1000)))
    assert message == "instances[0].content: more than 1000000 pixels: send a smaller picture"
    (message,) = predict(classifier, instances([[[0, 0, 0]] * 100_000]))
    assert message == "instances[0]: more than 1000000 pixels: send a smaller picture"


def test_confidence_that_is_no_number_is_an_error():
    class Nan:
        form, batch = "quick", 1

        def __call__(self, rows):
            return np.full((len(rows), len(LABELS)), np.nan, dtype=np.float32)

    (reply,) = ask(ImageClassifier(Nan(), LABELS, Preprocessing(), max_image_pixels=10**6), pictures(picture()))
    assert reply.code == 500
    assert b"no numbers" in reply.body


def test_signature_is_a_picture_and_a_confidence_for_each_class(classifier):
    assert classifier.signature == Signature(
        (TensorSpec("image", "bytes", ()),), (TensorSpec("confidences", "float32", (len(LABELS),)),)
    )
    assert (classifier.form, classifier.batch) == ("quick", 1)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_activation_makes_confidences_of_outputs(activation, torchvision_folder, copy):
    folder = copy(torchvision_folder)
    change_yaml(folder, "format:", f"activation: {activation}\nformat:")
    image, how = picture(SIDE + 8, SIDE + 8), Preprocessing(resize=SIDE + 8, crop=SIDE)
    logits = compute_expected(build_network(folder), [image], how)
    expected = {"softmax": logits.softmax(dim=1), "sigmoid": logits.sigmoid(), "none": logits}[activation]
    np.testing.assert_allclose(compute(load(folder), image), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_several_labels_may_be_sure_at_once(torchvision_folder, copy):
    folder = copy(torchvision_folder)
    change_yaml(folder, "format:", "activation: sigmoid\nformat:")
    image, how = picture(SIDE + 8, SIDE + 8), Preprocessing(resize=SIDE + 8, crop=SIDE)
    ((prediction,),) = predict(load(folder), pictures(image, confidenceThreshold=0.5))
    sure = compute_expected(build_network(folder), [image], how)[0].sigmoid() >= 0.5
    assert sorted(prediction["ids"]) == [str(index) for index in sure.nonzero().flatten().tolist()]
    assert len(prediction["ids"]) > 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["torchvision", "exported"])
def test_half_precision_is_close_to_float32_and_its_drift_is_told(kind, precision, request, copy, caplog):
    caplog.set_level("INFO")
    folder = copy(request.getfixturevalue(f"{kind}_folder"))
    text = (folder / "model.yaml").read_text().replace("activation: sigmoid\n", "") + "activation: none\n"
    (folder / "model.yaml").write_text(text)
    images = [picture(seed=seed) for seed in range(4)]
    exact = compute(load(folder), *images)
    assert "precision" not in caplog.text
    change_yaml(folder, "format:", f"precision: {precision}\nformat:")
    rough = compute(load(folder), *images)
    assert (exact.dtype, rough.dtype) == (np.float32, np.float32)
    assert 0 < np.linalg.norm(rough - exact) < 0.15 * np.linalg.norm(exact)
    told = re.search(
        rf"precision {precision}: of 8 synthetic pictures a confidence moves by at most (\S+),", caplog.text
    )
    assert float(told[1]) < 1


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_weights_may_be_a_state_dict(classifier, torchvision_folder, copy, suffix, zipped):
    folder = copy(torchvision_folder)
    weights = folder / f"model{suffix}"
    torch.save(build_network(folder).state_dict(), weights, _use_new_zipfile_serialization=zipped)
    change_yaml(folder, "model.safetensors", weights.name)
    np.testing.assert_allclose(compute(load(folder), picture()), compute(classifier, picture()), atol=1e-5)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "save",
    [
        lambda path, bomb: torch.save({"weight": bomb}, path),
        lambda path, bomb: torch.save({"weight": bomb}, path, _use_new_zipfile_serialization=False),
        lambda path, bomb: path.write_bytes(pickle.dumps(bomb)),
        lambda path, _: torch.save(torch.nn.Linear(1, 1), path),
        lambda path, _: torch.save([torch.zeros(1)], path),
        lambda path, _: torch.save({"weight": 1}, path),
        lambda path, _: path.write_bytes(b"PK no archive"),
        lambda path, _: path.write_bytes(b""),
    ],
)
def test_weights_that_are_more_than_tensors_are_refused(torchvision_folder, copy, tmp_path, save):
    folder, boom = copy(torchvision_folder), tmp_path / "boom"
    save(folder / "model.pth", Bomb(boom))
    change_yaml(folder, "model.safetensors", "model.pth")
    with pytest.raises(ArtifactInvalidError, match=r"^weights: model\.pth is no state dict of tensors: "):
        load(folder)
    assert not boom.exists()


@pytest.fixture(scope="module")
def imagenet_folder(tmp_path_factory):
    """The architecture with as many classes as ImageNet has, named by torchvision's metadata."""
    import torchvision
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("imagenet")
    torch.manual_seed(0)
    save_file(torchvision.models.mobilenet_v3_small().state_dict(), folder / "model.safetensors")
    (folder / "model.yaml").write_text(
        "{format: torchvision, architecture: mobilenet_v3_small, weights: model.safetensors,"
        " metadata: MobileNet_V3_Small_Weights.IMAGENET1K_V1}"
    )
    return folder


def test_metadata_bring_labels_and_preprocessing(imagenet_folder):
    from safetensors.torch import load_file
    from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small

    network, weights = mobilenet_v3_small().eval(), MobileNet_V3_Small_Weights.IMAGENET1K_V1
    network.load_state_dict(load_file(imagenet_folder / "model.safetensors"))
    image = picture(400, 300)
    with torch.inference_mode():
        expected = network(weights.transforms()(image)[None]).softmax(dim=1)[0]
    ((prediction,),) = predict(load(imagenet_folder), pictures(image, maxPredictions=1000))
    assert prediction["displayNames"] == [weights.meta["categories"][int(index)] for index in prediction["ids"]]
    given = torch.zeros(1000)
    given[[int(index) for index in prediction["ids"]]] = torch.tensor(prediction["confidences"])
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("", (256, 224, (0.485, 0.456, 0.406))),
        (", preprocessing: {resize: 100, crop: 96}", (100, 96, (0.485, 0.456, 0.406))),
        (", preprocessing: {}", (256, 224, (0.485, 0.456, 0.406))),
    ],
)
def test_own_preprocessing_goes_before_the_metadata(imagenet_folder, copy, addition, expected):
    folder = copy(imagenet_folder)
    change_yaml(folder, "_V1}", f"_V1{addition}}}")
    how = load(folder)._preprocessing
    assert (how.resize, how.crop, how.mean) == expected


def test_own_labels_go_before_the_metadata(imagenet_folder, copy):
    folder = copy(imagenet_folder)
    (folder / "labels.txt").write_text("".join(f"class {number}\n" for number in range(1000)))
    change_yaml(folder, "_V1}", "_V1, labels: labels.txt}")
    ((prediction,),) = predict(load(folder), pictures(picture()))
    assert prediction["displayNames"] == [f"class {index}" for index in prediction["ids"]]


@pytest.mark.parametrize(
    "name", ["MobileNet_V3_Small_Weights.NONE", "ImageNet", "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1", "", "a.b.c"]
)
def test_metadata_of_no_classifier_are_refused(imagenet_folder, copy, name):
    folder = copy(imagenet_folder)
    change_yaml(folder, "MobileNet_V3_Small_Weights.IMAGENET1K_V1", f'"{name}"')
    with pytest.raises(ArtifactInvalidError, match=r"^metadata: .*names no weights of torchvision's classifiers"):
        load(folder)


def change_yaml(folder, old, new):
    text = (folder / "model.yaml").read_text()
    assert old in text
    (folder / "model.yaml").write_text(text.replace(old, new, 1))


class TinyNetwork(torch.nn.Module):
    def forward(self, batch):
        return batch.mean(dim=(2, 3))


def test_torchscript_classifier_is_served(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)
        torch.jit.trace(TinyNetwork(), torch.zeros(1, 3, 8, 8)).save(tmp_path / "model.pt")
    (tmp_path / "model.yaml").write_text(
        "{format: torchscript, program: model.pt, labels: [red, green, blue], activation: none,"
        " preprocessing: {resize: 8, crop: 8, mean: [0, 0, 0], std: [1, 1, 1]}}"
    )
    loaded = load_model(read_artifact(tmp_path), LoadOptions(10**6))
    ((prediction,),) = predict(loaded.model, instances([[[51, 255, 0]]]))
    assert confidences(prediction) == pytest.approx({"green": 1.0, "red": 0.2, "blue": 0.0})


def write_script(folder, network):
    """A TorchScript artifact that gives three confidences."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(folder / "model.pt"))
    (folder / "model.yaml").write_text(
        "{format: torchscript, program: model.pt, labels: [red, green, blue], activation: none,"
        " preprocessing: {resize: 8, crop: 8, mean: [0, 0, 0], std: [1, 1, 1]}}"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("when", ["loading", "computing"])
def test_torchscript_that_writes_a_file_is_refused_before_it_runs(tmp_path, when):
    boom = str(tmp_path / "boom")

    class Writing(TinyNetwork):
        def __init__(self):
            super().__init__()
            self.path = boom
            self.training = False

        @torch.jit.export
        def __getstate__(self):
            return self.path, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.path, self.training = state
            torch.save(self.path, self.path)

    class Reading(TinyNetwork):
        def forward(self, batch):
            return batch.mean(dim=(2, 3)) + torch.from_file("/etc/hostname", size=1, dtype=torch.uint8)

    write_script(tmp_path, Writing() if when == "loading" else Reading())
    called = "save" if when == "loading" else "from_file"
    with pytest.raises(ArtifactInvalidError, match=rf"^program: code/.* calls {called}: a program computes with ten"):
        load(tmp_path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("torch.save(x, CONSTANTS.c0)", "save"),
        ("ops.aten.save(x, p)", "save"),
        ("x.save(p)", "save"),
        ("x.\n  save(p)", "save"),
        ("s = torch.save", "save"),
        ("y = '\"'; torch.save(x, p); z = '\"'", "save"),
        ('y = 1 # "\ntorch.save(x, p) # "', "save"),
        ("torch.from_file(p)", "from_file"),
        ("ops.image.write_file(p, x)", "write_file"),
        ('getattr(torch, "save")(x, p)', "getattr"),
        ('getattr(torch, "s\\x61ve")(x, p)', "getattr"),
        ('getattr((torch), "from\\137file")("/etc/passwd", False, 16, dtype=0)', "getattr"),
        ('getattr(torch, "sa" "ve")(x, p)', "getattr"),
        ("getattr(torch, 'sa\\166e')(x, p)", "getattr"),
        ('getattr(ops, "image")', "ops"),
        ("ops.image.decode_png(x)", "ops.image"),
        ("ops.inductor._reinterpret_tensor(x, [9], [1], 0)", "ops.inductor"),
        ("o = ops\no.inductor", "ops"),
        ("torch._sparse_coo_tensor_unsafe(i, v, [9])", "_sparse_coo_tensor_unsafe"),
        ("ops.aten._index_put_impl_(x, i, v, False, True)", "_index_put_impl_"),
        ("x. # here\n _coalesced_(True)", "_coalesced_"),
        ('getattr(torch, "_coalesced_")(x, True)', "_coalesced_"),
        ("torch.fbgemm_linear_fp16_weight(x, p, b)", "fbgemm_linear_fp16_weight"),
        ("torch._convolution(x, w, b, [1], [0], [1], False, [0], 1, False, False, True, True)", None),
        ("(self)._forward_impl(x, )", None),
        ("_0, _1, = torch.max(x, 0)", None),
        ("ops.quantized.linear(x, p)", None),
        ("class M(Module):\n  ops : __torch__.Ops", None),
        ("(self.ops).forward(x, )", None),
        ('ops.prim.RaiseException("save your work first")', None),
        ('getattr(self, "0")', None),
        ('_0 = getattr(self.features, "12")', None),
        ("self.saved", None),
    ],
)
def test_calls_of_more_than_tensors_are_found_in_torchscript(code, call):
    assert find_foreign_call(code) == call


def test_torchscript_that_unpacks_to_much_more_is_refused(tmp_path, monkeypatch):
    write_script(tmp_path, TinyNetwork())
    monkeypatch.setattr(modules, "_MOST_SCRIPT_BYTES", 0)
    with zipfile.ZipFile(tmp_path / "model.pt") as packed:
        records = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (records | {"model/extra/zeros": b"\0" * 1_000_000}).items():
            archive.writestr(name, data)
    with pytest.raises(ArtifactInvalidError, match=r"^program: model\.pt is no TorchScript program: it unpacks to 1"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("device", "cached", "ordered"), [("cpu", True, True), ("cpu", False, False), ("cuda", True, False)]
)
def test_classifier_orders_its_compiled_form_where_it_may(torchvision_folder, tmp_path, device, cached, ordered):
    options = LoadOptions(10**6, compiled_dir=tmp_path if cached else None, device=device)
    order = load_model(read_artifact(torchvision_folder), options).order
    assert (order is not None) == ordered
    if order:
        assert order.entry.parent == tmp_path


def test_predictor_is_refused_unless_code_is_allowed(tmp_path):
    (tmp_path / "model.yaml").write_text("format: predictor")
    (tmp_path / "predictor.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "class Predictor:\n"
        "    from_path = classmethod(lambda cls, folder: cls())\n"
        "    def predict(self, instances): return instances\n"
    )
    with pytest.raises(ArtifactInvalidError, match=r"^format: predictor is code: set allowCode: true"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert predict(load(tmp_path, LoadOptions(10**6, allow_code=True)), instances(1, "a")) == [[1, "a"]]


def test_predictor_that_is_loaded_in_workers_is_not_loaded_before(tmp_path):
    (tmp_path / "model.yaml").write_text("{format: predictor, load_in_workers: true}")
    (tmp_path / "predictor.py").write_text(
        "import pathlib\n"
        "class Predictor:\n"
        "    @classmethod\n"
        "    def from_path(cls, folder):\n"
        f"        pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "        return cls()\n"
        "    def predict(self, instances): return instances\n"
    )
    loaded = load_model(read_artifact(tmp_path), LoadOptions(10**6, allow_code=True))
    assert not (tmp_path / "ran").exists()
    assert predict(loaded.load(), instances(1, "a")) == [[1, "a"]]
    assert (tmp_path / "ran").exists()


# Taking a classifier to a GPU


@pytest.fixture
def small_sizes(monkeypatch):
    """And torch's settings for GPUs as they were."""
    monkeypatch.setattr(cuda, "SIZES", (1, 2, 4))
    settings = ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"))
    settings += ((torch.backends.cudnn, "benchmark"),)
    before = [getattr(of, name) for of, name in settings]
    yield
    for (of, name), value in zip(settings, before, strict=True):
        setattr(of, name, value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["torchvision", "exported"])
def test_model_that_cannot_be_captured_is_launched_operator_by_operator(
    kind, precision, request, copy, caplog, small_sizes
):
    """As here, where there is no GPU: the device is the CPU, and the capture fails as that of a model can."""
    folder = copy(request.getfixturevalue(f"{kind}_folder"))
    change_yaml(folder, "format:", f"precision: {precision}\nformat:")
    model = load(folder)
    images = [picture(seed=seed) for seed in range(5)]
    expected = compute(model, *images)
    model.move(torch.device("cpu"))
    assert (model.form, model.batch) == ("cuda", 4)
    np.testing.assert_allclose(compute(model, *images), expected, atol=0.02)
    assert "cannot be captured as a graph" in caplog.text


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda *_: _raise(RuntimeError("CUDA out of memory")), "out of memory"),
        (lambda *_: lambda pictures: np.full((len(pictures), len(LABELS)), 5, dtype=np.float32), "something else"),
        (lambda *_: lambda pictures: np.full((len(pictures), len(LABELS)), np.nan), "no numbers"),
    ],
)
def test_classifier_that_a_gpu_fails_goes_on_as_before(exported_folder, monkeypatch, broken, message):
    model = load(exported_folder)
    before = compute(model, picture())
    monkeypatch.setattr(cuda, "make_cuda_runner", broken)
    with pytest.raises((RuntimeError, ValueError), match=message):
        model.move(torch.device("cuda", 0))
    assert (model.form, model.batch) == ("quick", 1)
    np.testing.assert_array_equal(compute(model, picture()), before)


def _raise(error):
    raise error


def test_torchvision_is_imported_without_the_compiler():
    """Which takes longer to import than torch, and is still there for who wants it."""
    program = """if True:
        import sys, torch
        from pierhead_server.modules import import_torchvision, _build_torchvision
        torchvision = import_torchvision()
        for architecture in torchvision.models.list_models(module=torchvision.models):
            _build_torchvision(architecture, 5)
            assert "torch._dynamo" not in sys.modules, architecture
        assert "torch._dynamo.utils" not in sys.modules
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        assert torchvision.ops.roi_align(torch.ones(1, 1, 2, 2), [boxes], 1).item() == 1
        assert torchvision.ops.roi_align.__globals__["is_compile_supported"]("cpu") in (False, True)
        assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
        assert import_torchvision() is torchvision
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_architecture_that_computes_while_it_is_built_loads(tmp_path):
    import torchvision
    from safetensors.torch import save_file

    save_file(torchvision.models.regnet_x_400mf(num_classes=2).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text(
        "{format: torchvision, architecture: regnet_x_400mf, weights: model.safetensors, labels: [a, b],"
        " preprocessing: {resize: 64, crop: 64}}"
    )
    assert predict(load(tmp_path), pictures(picture()))[0][0]["ids"]


@pytest.mark.parametrize(("architecture", "left"), [("mobilenet_v3_small", 0), ("resnet18", 17)])
def test_norms_behind_convolutions_go_into_their_weights(tmp_path, architecture, left):
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = torchvision.models.get_model(architecture, num_classes=2)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text(
        f"{{format: torchvision, architecture: {architecture}, weights: model.safetensors, labels: [a, b]}}"
    )
    artifact = read_artifact(tmp_path)
    folded = load_torchvision(artifact, artifact.config, 2)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules()) == left
    pictures = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(pictures), network.eval()(pictures), atol=1e-4, rtol=1e-4)


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
    change_yaml(folder, old, new)
    with pytest.raises(ArtifactInvalidError) as caught:
        load(folder)
    assert str(caught.value).startswith(message)


def test_weights_that_are_no_safetensors_are_refused(torchvision_folder, copy):
    folder = copy(torchvision_folder)
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ArtifactInvalidError, match=r"^weights: model\.safetensors is no safetensors file: "):
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
        ("tuple", True, "the model refuses a float32 input of 1x3x64x64: it gives a tuple, not one tensor"),
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


def pickled(thing):
    """As torch.save writes it."""
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, bomb: {"data/weights/model.pt": pickled({"weight": bomb})}, "holds a pickle"),
        (lambda _records, _bomb: {"data/aotinductor/model/model.so": b"\x7fELF"}, "holds machine code"),
        (
            lambda records, _: {
                "models/model.json": records["models/model.json"].replace(
                    b"torch.ops.aten.relu.default", b"torch.os.system"
                )
            },
            "calls 'torch.os.system', which is no operator of ATen",
        ),
    ],
)
def test_archive_that_is_more_than_a_program_is_refused(exported_folder, copy, tmp_path, change, message):
    folder, boom = copy(exported_folder), tmp_path / "boom"
    rewrite(folder / "model.pt2", lambda records: records | change(records, Bomb(boom)))
    with pytest.raises(ArtifactInvalidError, match=rf"^program: model\.pt2 .*{message}"):
        load(folder)
    assert not boom.exists()


@pytest.mark.filterwarnings("ignore")
def test_program_that_is_none_is_refused(exported_folder, copy):
    folder = copy(exported_folder)
    (folder / "model.pt2").write_bytes(b"no archive")
    with pytest.raises(ArtifactInvalidError, match=r"^program: model\.pt2 is no torch\.export program: "):
        load(folder)


def test_model_that_gives_no_numbers_is_refused(torchvision_folder, copy):
    from safetensors.torch import load_file, save_file

    folder = copy(torchvision_folder)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.3.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ArtifactInvalidError) as caught:
        load(folder)
    cause = "the model gave confidences that are no numbers"
    assert str(caught.value) == f"the model cannot answer a synthetic picture: {cause}"


def test_probe_is_answered_with_a_synthetic_picture(classifier):
    (reply,) = ask(classifier, b"", dialect="probe")
    ((prediction,),) = json.loads(reply.body).values()
    assert sorted(prediction["displayNames"]) == sorted(LABELS)


def test_own_sample_is_answered_instead_of_a_synthetic_one(exported_folder, copy):
    folder = copy(exported_folder)
    body = pictures(picture(), picture(seed=1), maxPredictions=2)
    (folder / "warmup.json").write_text(json.dumps(body))
    model = load(folder)
    (reply,) = ask(model, b"", dialect="probe")
    assert json.loads(reply.body)["predictions"] == predict(model, body)[0]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ('{"instances": ["x"]}', "instances[0]: must be a picture, not a string"),
        ('{"instances": [{"b64": "AAAA"}]}', "instances[0]: not a picture"),
        ('{"instances": []}', "instances: empty: give at least one instance"),
        ("{", "the body is not valid JSON: "),
    ],
)
def test_own_sample_that_cannot_be_answered_is_refused(exported_folder, copy, sample, message):
    folder = copy(exported_folder)
    (folder / "warmup.json").write_text(sample)
    with pytest.raises(ArtifactInvalidError) as caught:
        load(folder)
    assert str(caught.value).startswith(f"the model cannot answer warmup.json: {message}")


def test_synthetic_picture_is_within_the_limit(exported_folder):
    assert warm_up(load(exported_folder, LoadOptions(max_image_pixels=SIDE**2)), CONTRACT) == Hello("quick", 1)


def test_warm_up_leaves_no_warning(exported_folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(exported_folder)
    assert [str(warning.message) for warning in caught if "pierhead" in warning.filename] == []
