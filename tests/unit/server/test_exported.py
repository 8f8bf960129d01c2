"""Programs of torch.export: what is read of a file, what is refused of a crafted one, and that nothing of it runs."""

import io
import json
import pickle
import zipfile

import pytest
import torch
from pierhead_server import exported
from pierhead_server.exported import (
    UnsafeProgramError,
    check_expression,
    check_operator,
    load_exported,
)
from pierhead_server.operators import FILE_OPERATORS, find_unchecked

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of its own internals

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Net(torch.nn.Module):
    """A weight, a buffer, a constant, a factory, and sizes that are computed of the batch's."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        self.register_buffer("scale", torch.tensor(2.0))
        self.shift = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x):
        count = x.shape[0]
        y = self.linear(x) * self.scale + self.shift + torch.arange(count, device=x.device)[:, None]
        return {"out": torch.cat([y, y]).reshape(count, 2, 4), "total": y.sum(dim=1)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The network, and the file of its program."""
    torch.manual_seed(0)
    net, path = Net().eval(), tmp_path_factory.mktemp("saved") / "model.pt2"
    shapes = ({0: torch.export.Dim("batch", min=1, max=512)},)
    torch.export.save(torch.export.export(net, (torch.ones(2, 3),), dynamic_shapes=shapes), path)
    return net, path


@pytest.fixture
def boom(tmp_path):
    """A file that is there when something of an artifact's ran."""
    return tmp_path / "boom"


@pytest.fixture
def craft(saved, tmp_path):
    """Write the file anew with other records: a function of their names and bytes gives those that change."""

    def write(change):
        source = torch._C.PyTorchFileReader(str(saved[1]))
        records = {name: source.get_record(name) for name in source.get_all_records()}
        records |= change(records)
        target = torch._C.PyTorchFileWriter(str(tmp_path / "crafted.pt2"))
        for name, data in records.items():
            if not name.startswith((".data/", "byteorder", "version")):
                target.write_record(name, data, len(data))
        target.write_end_of_file()
        return tmp_path / "crafted.pt2"

    return write


@pytest.fixture
def edit(craft):
    """The same, for the program's JSON."""

    def write(change):
        def rewrite(records):
            program = json.loads(records[MODEL])
            change(program)
            return {MODEL: json.dumps(program).encode()}

        return craft(rewrite)

    return write


def graph(program):
    return program["graph_module"]["graph"]


# What is served


def test_program_computes_what_its_network_does(saved):
    net, path = saved
    module = load_exported(path)
    for count in (1, 2, 5):
        given = torch.rand(count, 3)
        with torch.inference_mode():
            expected, computed = net(given), module(given)
        assert list(computed) == ["out", "total"]
        torch.testing.assert_close(computed, expected)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 4), torch.zeros(2, 3, 1), torch.zeros(513, 3)])
def test_input_that_the_program_was_not_made_for_is_refused(saved, wrong):
    with pytest.raises(RuntimeError, match="input"):
        load_exported(saved[1])(wrong)


def test_crafted_file_loads_when_nothing_is_changed(craft):
    assert load_exported(craft(lambda _: {}))(torch.zeros(2, 3))["total"].shape == (2,)


def test_program_of_a_gpu_is_loaded_on_the_cpu(edit, craft):
    """Or the fork server, which must not touch a GPU, would take its weights there."""
    text = b'"device": {"type": "cpu", "index": null}', b'"device": {"type": "cuda", "index": 0}'
    path = craft(lambda records: {name: records[name].replace(*text) for name in (MODEL, WEIGHTS, CONSTANTS)})
    assert b'"cuda"' in torch._C.PyTorchFileReader(str(path)).get_record(WEIGHTS)
    module = load_exported(path)
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}
    assert module(torch.zeros(2, 3))["total"].device.type == "cpu"


def test_program_can_be_had_on_another_device(saved):
    """`meta` refuses tensors of two devices as a GPU does, and computes nothing."""
    module, meta = load_exported(saved[1]), torch.device("meta")
    given = torch.zeros(2, 3, device=meta)
    with pytest.raises(RuntimeError, match="device"):
        torch.export.load(saved[1]).module().to(meta)(given)
    placed = module.copy_to(meta)
    assert placed(given)["out"].device == meta
    assert module(torch.zeros(2, 3))["out"].device.type == "cpu"  # this one stays where it was


class Programs:
    """Programs as people export them."""

    @staticmethod
    def cond(x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    @staticmethod
    def sizes(x):
        half = (x.shape[0] + 1) // 2
        return torch.nn.functional.pad(x[:half], (0, 1), mode="constant"), x.reshape(x.shape[0] * 3) ** 2

    @staticmethod
    def asserts(x):
        torch._check(x.shape[0] < 1000)
        return x.to(torch.float64).to(torch.float32)

    @staticmethod
    def counts(x):
        chosen = torch.nonzero(x[0] > 0).shape[0]
        torch._check(chosen >= 0)
        return x * chosen

    @staticmethod
    def grad(x):
        with torch.no_grad():
            y = x * 2
        return [y, (y + 1, y.argmax(dim=1))]

    @staticmethod
    def attention(x):
        y = x[:, None, :]
        return torch.nn.functional.scaled_dot_product_attention(y, y, y)


@pytest.mark.parametrize("name", ["cond", "sizes", "asserts", "counts", "grad", "attention"])
@pytest.mark.parametrize("decomposed", [False, True])
def test_programs_of_many_kinds_load(tmp_path, name, decomposed):
    class Kind(torch.nn.Module):
        def forward(self, x):
            return getattr(Programs, name)(x)

    given = torch.rand(4, 3)
    program = torch.export.export(Kind(), (given,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program.run_decompositions() if decomposed else program, tmp_path / "model.pt2")
    with torch.inference_mode():
        torch.testing.assert_close(load_exported(tmp_path / "model.pt2")(given), getattr(Programs, name)(given))


def test_real_architecture_loads(tmp_path):
    import torchvision

    network = torchvision.models.mobilenet_v3_small(num_classes=3).eval()
    given = torch.rand(2, 3, 64, 64)
    program = torch.export.export(network, (given,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "model.pt2")
    with torch.inference_mode():
        torch.testing.assert_close(load_exported(tmp_path / "model.pt2")(given), network(given))


# What is refused, and does not run


def touching(path):
    """Python that leaves a file behind."""
    return f"open({str(path)!r}, 'w').close()"


def first_size(program):
    """The first of the program's sizes that is an expression."""
    for value in graph(program)["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                return size["as_expr"]
    raise AssertionError("no size is free")


def set_size(text):
    return lambda program: first_size(program).update(expr_str=text)


def set_input(program, name):
    """Give the last input another name, wherever it stands."""
    text = json.dumps(program).replace('"x"', json.dumps(name))
    program.clear()
    program.update(json.loads(text))


def set_tree(program, tree):
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    protocol, _ = json.loads(signature["in_spec"])
    signature["in_spec"] = json.dumps([protocol, tree])


def add_node(program, target, *arguments):
    """A node before all others."""
    node = dict(graph(program)["nodes"][0], target=target, name="added", outputs=[{"as_none": True}])
    node["inputs"] = [{"name": "", "arg": argument, "kind": 1} for argument in arguments]
    graph(program)["nodes"].insert(0, node)


ENUM = '{"__enum__": true, "fqn": "antigravity:x", "name": "y"}'
DEFAULTDICT = {"default_factory_module": "os", "default_factory_name": "getcwd", "dict_context": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda program, boom: set_size(touching(boom))(program), "is no size"),
        (lambda program, boom: set_size(f"__import__('os').system('touch {boom}')")(program), "is no size"),
        (lambda program, _: first_size(program).update(expr_str=[]), "must be str, not list"),
        (lambda program, boom: add_node(program, "torch.os.system", {"as_string": f"touch {boom}"}), "no operator"),
        (lambda program, boom: add_node(program, "torch.load", {"as_string": str(boom)}), "no operator of ATen"),
        (
            lambda program, boom: add_node(
                program, "torch.ops.aten.from_file.default", {"as_string": str(boom)}, {"as_bool": True}, {"as_int": 1}
            ),
            "no operator of ATen",
        ),
        (
            lambda program, boom: add_node(
                program, "torch.ops.aten.save.default", {"as_int": 1}, {"as_string": str(boom)}
            ),
            "no operator of ATen",
        ),
        (lambda program, _: add_node(program, "_operator.attrgetter", {"as_string": "x"}), "no operator of ATen"),
        (lambda program, _: add_node(program, "torch.ops.aten.__class__", {"as_string": "x"}), "no operator of ATen"),
        (lambda program, _: add_node(program, "torch.ops.aten.relu.__class__", {"as_int": 1}), "no operator of ATen"),
        (lambda program, _: add_node(program, "torch.ops.aten.relu.overloads", {"as_int": 1}), "no operator of ATen"),
        (
            lambda program, _: add_node(program, "torch.ops.higher_order.cond.py_impl", {"as_int": 1}),
            "no operator of ATen",
        ),
        (
            lambda program, _: add_node(program, "torch.ops.inductor._reinterpret_tensor.default", {"as_int": 1}),
            "no operator of ATen",
        ),
        (lambda program, _: add_node(program, "torch.ops.load_library", {"as_string": "x"}), "no operator of ATen"),
        (lambda program, _: add_node(program, "torch.ops.image.write_file", {"as_string": "x"}), "no operator of ATen"),
        (
            lambda program, _: add_node(program, "torch.ops.aten.relu.default", {"as_operator": "torch.os.system"}),
            "no operator of ATen",
        ),
        (lambda program, boom: set_input(program, f"x={touching(boom)}"), "is no name"),
        (lambda program, boom: set_input(program, f"x): pass\n{touching(boom)}\ndef f(y"), "is no name"),
        (
            lambda program, _: set_tree(program, {"type": "builtins.dict", "context": ENUM, "children_spec": []}),
            "no names",
        ),
        (
            lambda program, _: set_tree(
                program, {"type": "builtins.dict", "context": f"[{ENUM}]", "children_spec": []}
            ),
            "no names",
        ),
        (
            lambda program, _: set_tree(
                program, {"type": "collections.defaultdict", "context": DEFAULTDICT, "children_spec": []}
            ),
            "tuples, lists and dicts",
        ),
        (
            lambda program, _: set_tree(program, {"type": "builtins.dict", "context": '["a b"]', "children_spec": []}),
            "no names",
        ),
        (
            lambda program, _: program["range_constraints"].update({"u999999999999": {"min_val": 0, "max_val": 1}}),
            "is no size",
        ),
        (lambda program, _: graph(program).update(custom_obj_values={"c": {"name": "c", "class_fqn": "c"}}), "custom"),
    ],
)
def test_crafted_program_is_refused_before_anything_of_it_runs(edit, boom, change, message):
    path = edit(lambda program: change(program, boom))
    with pytest.raises(UnsafeProgramError, match=message):
        load_exported(path)
    assert not boom.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda program, boom: program.update(guards_code=[touching(boom), f"{touching(boom)} == L['x']"]),
        lambda program, boom: graph(program)["nodes"][0].update(
            metadata={"stack_trace": f"\n{touching(boom)}", "nn_module_stack": touching(boom)}
        ),
        lambda program, boom: program["graph_module"].update(metadata={"custom": touching(boom)}),
    ],
)
def test_what_serving_does_not_need_is_left_out(edit, boom, change):
    module = load_exported(edit(lambda program: change(program, boom)))
    assert module(torch.zeros(2, 3))["total"].shape == (2,)
    assert not boom.exists()


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


def config(path_name, **changes):
    size = [{"as_int": 1}]
    meta = {"dtype": 7, "sizes": size, "requires_grad": False, "device": {"type": "cpu", "index": None}}
    meta |= {"strides": size, "storage_offset": {"as_int": 0}, "layout": 7}
    payload = {"path_name": path_name, "is_param": False, "use_pickle": False, "tensor_meta": meta} | changes
    return json.dumps({"config": {"c": payload}}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bomb: {CONSTANTS: config("tensor_0", use_pickle=True), "data/constants/tensor_0": bomb}, "pickle"),
        (lambda bomb: {CONSTANTS: config("tensor_0", use_pickle=0), "data/constants/tensor_0": bomb}, "pickle"),
        (lambda bomb: {CONSTANTS: config("opaque_obj_0"), "data/constants/opaque_obj_0": bomb}, "a pickle"),
        (lambda bomb: {CONSTANTS: config("custom_obj_0"), "data/constants/custom_obj_0": bomb}, "a pickle"),
        (lambda bomb: {CONSTANTS: config("../weights/weight_0"), "data/constants/x": bomb}, "pickle"),
        (lambda bomb: {"data/weights/model.pt": bomb}, "a pickle"),
        (lambda bomb: {"data/constants/model.pt": bomb}, "a pickle"),
        (lambda _: {"data/aotinductor/model/model.so": b"\x7fELF"}, "machine code"),
        (lambda _: {"models/another.json": b"{}"}, "no part of it"),
        (lambda _: {"data/executorch/model.pte": b"x"}, "no part of it"),
        # The files of older formats, which torch falls back to.
        (lambda bomb: {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": bomb}, "no part of it"),
        (lambda _: {CONSTANTS: config("tensor_0", tensor_meta=None)}, "size is missing"),
    ],
)
def test_other_records_are_refused(craft, boom, change, message):
    path = craft(lambda _: change(pickled(Bomb(boom))))
    with pytest.raises(UnsafeProgramError, match=message):
        load_exported(path)
    assert not boom.exists()


def test_sample_inputs_are_never_unpickled(craft, boom):
    path = craft(lambda _: {"data/sample_inputs/model.pt": pickled((Bomb(boom),))})
    assert load_exported(path)(torch.zeros(2, 3))["total"].shape == (2,)
    assert not boom.exists()


def test_older_format_is_refused_unread(tmp_path, boom):
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("version", "8.20")
        archive.writestr("serialized_state_dict.pt", pickle.dumps(Bomb(boom)))
    with pytest.raises(RuntimeError):
        load_exported(tmp_path / "old.pt2")
    assert not boom.exists()


def test_weight_of_no_bytes_takes_no_memory(craft):
    huge = [{"as_int": 2**40}]
    meta = json.loads(config("tensor_0"))["config"]["c"]["tensor_meta"] | {"sizes": huge}
    path = craft(lambda _: {CONSTANTS: config("tensor_0", tensor_meta=meta), "data/constants/tensor_0": b""})
    with pytest.raises(UnsafeProgramError, match="has no bytes"):
        load_exported(path)


def test_weight_cannot_reach_beyond_its_bytes(craft):
    meta = json.loads(config("tensor_0"))["config"]["c"]["tensor_meta"] | {"sizes": [{"as_int": 1000}]}
    path = craft(lambda _: {CONSTANTS: config("tensor_0", tensor_meta=meta), "data/constants/tensor_0": b"\0" * 4})
    with pytest.raises(RuntimeError, match="out of bounds"):
        load_exported(path)


def test_archive_that_unpacks_to_more_is_refused(saved, tmp_path):
    source = torch._C.PyTorchFileReader(str(saved[1]))
    with zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.get_all_records():
            archive.writestr(f"model/{name}", source.get_record(name))
        archive.writestr("model/extra/zeros", b"\0" * 50_000_000)
    assert (tmp_path / "bomb.pt2").stat().st_size < 1_000_000
    with pytest.raises(UnsafeProgramError, match="bytes that unpack to 5"):
        load_exported(tmp_path / "bomb.pt2")


# The grammar of sizes


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s31', positive=True, integer=True)",
        "Add(Symbol('s31', positive=True, integer=True), Integer(-1))",
        "Mul(Integer(2), Pow(Symbol('u0', integer=True), Integer(-2)))",
        "FloorDiv(Symbol('s0', positive=True, integer=True), Integer(2))",
        "StrictLessThan(Symbol('s0', positive=True, integer=True), Integer(3))",
        "Float('1.5', precision=53)",
        "Rational(1, 2)",
        "And(true, false)",
        "s0",
        "2*s0 + 1",
        "s0**2 // 3 >= 4",
        "Max(1, s0) % 2",
        "-1.5e3",
    ],
)
def test_arithmetic_is_a_size(text):
    check_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "open",
        "exit()",
        "s0.real",
        "s0[0]",
        "(lambda: 1)()",
        "[s0 for s0 in s0]",
        "1 if s0 else 2",
        "s0 and exit()",
        "s0 in s0",
        "(s0 := 1)",
        'Symbol("s0")',
        "Symbol('__import__')",
        "Symbol('s0', integer=exit())",
        "Symbol('s0', **s0)",
        "Symbol(*s0)",
        "Symbol('s0' * 9)",
        "Float('1', precision=999999999)",
        "Float('1e999999999')",
        "Integer('exit()')",
        "'exit()'",
        "Function('exit')(1)",
        "sympify('exit()')",
        "S('exit()')",
        "Add(1, evaluate=exit())",
        "9**9**9",
        "(9**64)**64",
        "9**s0",
        "Pow(9, 999999999)",
        "PowByNatural(Pow(9, 64), 64)",
        "LShift(1, 999999999)",
        "1e999",
        str(2**64),
        "s0 # exit()",
        "s0\n",
        "s0; exit()",
        "\N{FULLWIDTH LATIN SMALL LETTER S}0",
        "(" * 300 + "1" + ")" * 300,
        "+" * 4000 + "1",
        "1" * 5000,
    ],
)
def test_anything_else_is_no_size(text):
    with pytest.raises(UnsafeProgramError, match="is no size"):
        check_expression(text)


# The operators


def test_every_operator_of_aten_that_takes_text_is_known():
    """A torch that learns to open another file by its name fails here: look at what it adds."""
    files = {"file", "filename", "path", "filepath", "fname", "dir", "directory", "uri", "url", "library"}
    found = set()
    for operator in torch._C._jit_get_all_schemas():
        namespace, _, name = operator.name.partition("::")
        if namespace == "aten" and any(
            argument.name.lower() in files and "str" in str(argument.type) for argument in operator.arguments
        ):
            found.add(name)
    assert found == FILE_OPERATORS


@pytest.mark.parametrize("target", ["torch.ops.aten.relu.default", "_operator.add", "math.trunc", "torch.sym_max"])
def test_operators_are_taken(target):
    check_operator(target)


@pytest.mark.parametrize(
    "name",
    ["_sparse_coo_tensor_unsafe", "_coalesced_", "_nested_view_from_buffer", "segment_reduce", "_index_put_impl_"],
)
def test_operators_that_check_nothing_are_refused(name):
    overload = getattr(torch.ops.aten, name).overloads()[0]
    with pytest.raises(UnsafeProgramError, match="which checks nothing"):
        check_operator(f"torch.ops.aten.{name}.{overload}")


def test_core_operators_are_taken():
    """All that ATen's own core set has."""
    for name in find_unchecked():
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet else ():
            assert torch.Tag.core not in getattr(packet, overload).tags or name.endswith("_backward"), name


def test_every_operator_on_sizes_is_known():
    from torch._export.serde.serialize import _SYM_OPS

    for operator in _SYM_OPS:
        check_operator(f"{operator.__module__}.{operator.__name__}")


def test_every_text_of_the_schema_has_a_rule_that_is_used():
    from torch._export.serde import schema

    for field in exported._RULES:
        kind, _, name = field.partition(".")
        assert name in exported._hints(getattr(schema, kind)), field
