"""Each row of the operator table and each special operation against Paddle."""

import functools
import json
import os
import re
from collections import defaultdict

import numpy as np
import paddle
import paddle.nn.functional as F
import pir_harness
import pytest
from paddle.base import core
from pir_cases import CASES
from pir_harness import Case

from paddleq._paddle_compat import framework_proto
from paddleq.errors import UnsupportedOperatorError
from paddleq.export.pir_to_program import from_pir, to_program_desc
from paddleq.export.pir_to_program.attributes import HOOKS
from paddleq.export.pir_to_program.operator_table import ROWS
from paddleq.export.pir_to_program.special_operators import SPECIALS
from paddleq.export.program.op_desc import shape_of
from paddleq.export.program.passes.transposed_convolutions import COMPUTED_SIZES

needs_pir = pytest.mark.needs_pir
_DENSE_TENSOR = 7  # paddle.framework.proto.VarType.Type

# The legacy operators

_TYPES = {"int": "INT", "dtype": "INT", "long": "LONG", "float": "FLOAT", "str": "STRING",
          "bool": "BOOLEAN", "ints": "INTS", "longs": "LONGS", "floats": "FLOATS",
          "bools": "BOOLEANS"}
_BY_HOOKS = {"_reduction": {"reduce_all"}, "_strided": {"infer_flags"}, "_counted_axis": set(),
             "_scale_factors": set()}
# Attributes of any operator, and hints for oneDNN.
_NEVER_SET = {"op_role", "op_role_var", "op_namescope", "op_callstack", "op_device",
              "with_quant_attr", "use_mkldnn", "use_onednn", "mkldnn_data_type", "use_quantizer"}
# (legacy operator, name of a slot or an attribute) that some versions of Paddle do not have.
_ONLY_ELSEWHERE = {
    ("relu6", "threshold"): "gone since Paddle 2.5, but Paddle-Lite reads it",
    ("swish", "beta"): "gone since Paddle 2.5, but Paddle-Lite and OpenVINO read it",
    ("lookup_table_v2", "is_sparse"): "gone since Paddle 2.5, but older runtimes read it",
    ("lookup_table_v2", "is_distributed"): "gone since Paddle 2.5, but older runtimes read it",
    ("lookup_table_v2", "remote_prefetch"): "gone since Paddle 2.5, but older runtimes read it",
    ("dropout", "seed"): "of the kernel: nothing is drawn in inference",
    ("dropout", "fix_seed"): "of the kernel: nothing is drawn in inference",
    ("quantize_linear", "qmin"): "new in Paddle 3", ("quantize_linear", "qmax"): "new in Paddle 3",
    ("dequantize_linear", "qmin"): "new in Paddle 3",
    ("dequantize_linear", "qmax"): "new in Paddle 3",
    ("fake_quantize_dequantize_moving_average_abs_max", "round_type"): "new in Paddle 3",
    ("histogram", "Weight"): "new in Paddle 3", ("histogram", "density"): "new in Paddle 3",
    ("kldiv_loss", "log_target"): "new in Paddle 3", ("nanmedian", "mode"): "new in Paddle 3",
}
_ONLY_IN_PADDLE_3 = ("gammaln", "copysign", "lp_pool2d")
# Attributes of another type in Paddle 2.6.
_CHANGED_TYPES = (("histogram", "min"), ("histogram", "max"))
# Inputs and attributes that PIR lacks.
_NOT_IN_PIR = {
    ("lp_pool2d", "KernelSizeTensor"), ("lp_pool2d", "KernelSizeTensorList"),
    ("scale", "BiasTensor"), ("pow", "FactorTensor"), ("conv2d_transpose", "Bias"),
    ("depthwise_conv2d_transpose", "Bias"), ("batch_norm", "MomentumTensor"),
    *((f"reduce_{name}", slot) for name in ("all", "any", "amax", "amin")
      for slot in ("AxisTensor", "AxisTensorList")),
    *(("fake_quantize_dequantize_moving_average_abs_max", slot)
      for slot in ("InAccum", "InState")),  # for training
}
# Added attributes with other values than the default, as PIR's operator requires.
_NOT_DEFAULT = {("tril_triu", "lower"), ("hard_swish", "offset")}


def _protos():
    proto, found = framework_proto(), {}
    for text in core.get_all_op_protos():
        made = proto.OpProto()
        made.ParseFromString(text)
        found[made.type] = made
    return found


def _slots_of(row):
    """Return (slot, takes a list) of the inputs that a row can write."""
    for slot in row.inputs:
        if slot.legacy != "-" and slot.type is None:
            yield slot.legacy, slot.many
        if slot.tensor:
            yield slot.tensor, False
        if slot.tensors:
            yield slot.tensors, True


def _attributes_of(row):
    """Return (attribute, type) of the attributes that a row writes."""
    for slot in row.inputs:
        if slot.type is not None:
            yield slot.legacy, slot.type
    for entry in (*row.attributes, *row.added):
        if entry.legacy != "-" and not entry.fixed:
            yield entry.legacy, entry.type


@pytest.fixture(scope="module")
def protos():
    """Definitions of the legacy operators in the installed Paddle."""
    return _protos()


def _installed(names, legacy=str):
    """Names whose legacy operator the installed Paddle has."""
    return sorted(name for name in names
                  if paddle.__version__ >= "3" or legacy(name) not in _ONLY_IN_PADDLE_3)


@pytest.mark.parametrize("name", _installed(ROWS, lambda name: ROWS[name].legacy))
def test_row_matches_the_legacy_operator(name, protos):
    row = ROWS[name]
    proto, wrong = protos[row.legacy], []
    inputs = {slot.name: slot for slot in proto.inputs}
    outputs = {slot.name: slot for slot in proto.outputs}
    kinds = {each.name: framework_proto().AttrType.Name(each.type) for each in proto.attrs}

    for slot, many in _slots_of(row):
        if slot in COMPUTED_SIZES:  # which a pass removes: the legacy operator has no such slot
            continue
        if (row.legacy, slot) in _ONLY_ELSEWHERE and slot not in inputs:
            continue
        if slot not in inputs or inputs[slot].duplicable != many:
            wrong.append(f"input {slot}")
    for output in row.outputs:
        if output.legacy != "-" and (output.legacy not in outputs
                                     or outputs[output.legacy].duplicable != output.many):
            wrong.append(f"output {output.legacy}")
    for attribute, kind in _attributes_of(row):
        if (row.legacy, attribute) in _CHANGED_TYPES and paddle.__version__ < "3":
            continue
        if kinds.get(attribute) != _TYPES[kind] and (
                attribute in kinds or (row.legacy, attribute) not in _ONLY_ELSEWHERE):
            wrong.append(f"attribute {attribute}: {kinds.get(attribute)} instead of {kind}")
    assert not wrong


@pytest.mark.parametrize("legacy", _installed({row.legacy for row in ROWS.values()}))
def test_rows_cover_the_legacy_operator(legacy, protos):
    rows = [row for row in ROWS.values() if row.legacy == legacy]
    slots = {slot for row in rows for slot, _ in _slots_of(row)}
    hooks = {getattr(HOOKS.get(row.pir), "__name__", None) for row in rows}
    written = {name for row in rows for name, _ in _attributes_of(row)}
    for hook in hooks - {None}:
        written |= _BY_HOOKS[hook]
    written |= {entry.legacy for row in rows for entry in row.attributes if entry.fixed}
    left = {slot.name for slot in protos[legacy].inputs} - slots
    left |= {each.name for each in protos[legacy].attrs} - written - _NEVER_SET
    assert {name for name in left if (legacy, name) not in _NOT_IN_PIR} == set()


@pytest.mark.parametrize("name", sorted(name for name, row in ROWS.items() if row.added))
def test_added_attributes_are_defaults(name):
    row = ROWS[name]
    defaults = core.get_op_attrs_default_value(row.legacy.encode())
    for entry in row.added:
        known = (row.legacy, entry.legacy)
        if entry.legacy in defaults and known not in _NOT_DEFAULT:
            assert entry.default == pytest.approx(defaults[entry.legacy]), known


# PIR's operations

_HEADERS = ("pd_op.h", "manual_op.h")
_OPERATION = re.compile(r'static const char ?\* ?name\(\) \{ return "pd_op\.(\w+)"; \}')
_ACCESS = re.compile(r"pir::Value (\w+)\(\) (?:const )?\{\s*return "
                     r"(?:this->)?(operand_source|result)\((\d+)\);")


@pytest.fixture(scope="module")
def signatures():
    """Return PIR operation -> names of operands and results, from Paddle's headers."""
    folder = os.path.join(os.path.dirname(paddle.__file__), "include", "paddle", "fluid", "pir",
                          "dialect", "operator", "ir")
    found = {}
    for header in _HEADERS:
        with open(os.path.join(folder, header), encoding="utf-8") as file:
            parts = _OPERATION.split(file.read())
        for name, text in zip(parts[1::2], parts[2::2]):
            slots = defaultdict(dict)
            for slot, kind, number in _ACCESS.findall(text.split("class ")[0]):
                slots[kind][int(number)] = slot
            found[name] = [[each for _, each in sorted(slots[kind].items())]
                           for kind in ("operand_source", "result")]
    return found


@needs_pir
@pytest.mark.parametrize("name", sorted(ROWS))
def test_row_matches_the_pir_operation(name, signatures):
    row = ROWS[name]
    operands, results = signatures[name]
    # An operand in one version of Paddle may be an attribute in another.
    assert [slot.pir for slot in row.inputs if slot.pir in operands] == operands
    assert all(slot.type is not None for slot in row.inputs if slot.pir not in operands)
    assert [slot.pir for slot in row.outputs if slot.pir] == results


# Numbers

def test_every_row_and_special_operation_has_a_case():
    covered = {name for case in CASES for name in case.ops}
    rows = _installed(ROWS, lambda name: ROWS[name].legacy)
    assert {*rows, *SPECIALS} - covered == set()
    assert len(ROWS) >= 200


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function: number of a case -> (saved prefix, output of dygraph)."""
    @functools.lru_cache(None)
    def save(number):
        prefix = str(tmp_path_factory.mktemp("case") / "net")
        return prefix, pir_harness.save(CASES[number], prefix)
    return save


def _name(number):
    return f"{number}-{CASES[number].ops[0]}"


@needs_pir
@pytest.mark.parametrize("number", range(len(CASES)), ids=_name)
def test_case_equals_dygraph(number, saved):
    pir_harness.run(CASES[number], *saved(number))


_X = np.ones([2, 3, 4], "float32")


def _read_after_cast(x):
    y = x * 2.0
    return paddle._C_ops.cast_(y, paddle.int32), y * 3.0


def _read_after_fill(x):
    y = x * 2.0
    return paddle._C_ops.masked_fill_(y, x > 0, paddle.full([1], 3.0)), y * 3.0


@needs_pir
@pytest.mark.parametrize("function, spec, message", [
    (lambda x: paddle.argsort(x, stable=True), [2, 3, 4], "argsort.*stable = True"),
    (lambda x: paddle.round(x, 2), [2, 3, 4], "round.*decimals = 2"),
    (lambda x: paddle._C_ops.cumprod(x, 1, True, False), [2, 3, 4], "cumprod.*exclusive = True"),
    (lambda x: F.thresholded_relu(x, 1.0, 0.5), [2, 3, 4], "thresholded_relu.*value = 0.5"),
    (lambda x: paddle.max(x, paddle.shape(x)[0]), [None, 3, 4], "max.*computed 'axis'"),
    (lambda x: paddle.linalg.qr(paddle.cumsum(x, 0).lgamma())[0], [2, 3, 4], "qr.*table"),
    (_read_after_cast, [2, 3, 4], "cast_.*read later"),
    (_read_after_fill, [2, 3, 4], "masked_fill_.*read later"),
])
def test_unsupported_use_is_refused(function, spec, message, tmp_path):
    case = Case((), function, (_X,), (spec,), None, None, None, 0)
    paddle.jit.save(pir_harness.net(case), str(tmp_path / "net"), pir_harness.specs(case))
    with pytest.raises(UnsupportedOperatorError, match=message):
        to_program_desc(tmp_path / "net", tmp_path / "old")
    assert not (tmp_path / "old.pdmodel").exists()


# Paddle's own way back to PIR

# Constants, lists and inputs differ; assignments and counters are added.
_OF_ITS_OWN = {"full", "full_int_array", "builtin.combine", "builtin.split", "builtin.slice",
               "builtin.parameter", "data", "feed", "fetch", "cast", "assign", "assign_out",
               "assign_value", "shape", "shape64", "stack", "unbind", "create_array"}
_BECOME_SEVERAL = {"matmul_with_flatten", "masked_fill", "swiglu", "full_like",
                   "clip", "strided_slice", "if", "cf.yield", "while"}
_RENAMED = {"memcpy_h2d": "assign", "memcpy_d2h": "assign"}
# The legacy operators lack an attribute that this translator insists on.
_NOT_TRANSLATED = {"round", "thresholded_relu", "repeat_interleave",
                   "repeat_interleave_with_tensor_index"}
_NOTES = {"struct_name", "op_callstack", "place", "stop_gradient", "persistable", "op_role",
          "op_namescope", "op_device", "op_role_var", "with_quant_attr"}


def _value(attribute):
    value = attribute.get("D", attribute.get("VD"))
    if isinstance(value, list):
        return [_value(each) if isinstance(each, dict) else each for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _described(path):
    """Return operation (without the in-place suffix) -> attributes of each occurrence."""
    found = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        region = json.load(file)["program"]["regions"][0]
    for name, content in pir_harness.each_operation(region):
        name = _RENAMED.get(name, name).rstrip("_")
        found[name].append({each["N"]: _value(each["AT"]) for each in content["A"]
                            if isinstance(each, dict) and each["N"] not in _NOTES})
    return found


def _translated(prefix, path):
    """Translate a ``.pdmodel`` to PIR with Paddle."""
    paddle.enable_static()
    try:
        with open(f"{prefix}.pdmodel", "rb") as file:
            program = paddle.base.libpaddle.pir.translate_to_pir(core.ProgramDesc(file.read()))
        core.serialize_pir_program(program, path, True, True, False)
    finally:
        paddle.disable_static()


def _mixes_ranks(program):
    """Return True if a shape is a list of numbers with and without dimension.

    Constants have one for Paddle-Lite. Paddle's operators take both, but not this translator.
    """
    ranks = {var.name: len(shape_of(var)) for block in program.desc.blocks for var in block.vars
             if var.type.type == _DENSE_TENSOR}
    return any(len({ranks[name] for name in slot.arguments}) > 1
               for block in program.desc.blocks for op in block.ops for slot in op.inputs
               if slot.parameter.endswith("TensorList"))


def _translatable(case):
    empty = "assign_value_" in case.ops and len(case.inputs) == 1
    return not empty and not _NOT_TRANSLATED.intersection(case.ops)


@needs_pir
@pytest.mark.parametrize("number", [i for i, case in enumerate(CASES) if _translatable(case)],
                         ids=_name)
def test_paddle_translates_back_to_the_same_operations(number, saved, tmp_path):
    prefix, output = saved(number)[0], str(tmp_path / "old")
    stored = f"{prefix}.pdiparams"
    program = from_pir(f"{prefix}.json", stored if os.path.exists(stored) else None)
    program.save(f"{output}.pdmodel", f"{output}.pdiparams", workarounds=False)
    try:
        _translated(output, str(tmp_path / "back.json"))
    except ValueError as error:
        assert _mixes_ranks(program) and "is expected to be equal" in str(error)
        return
    before, after = _described(f"{prefix}.json"), _described(tmp_path / "back.json")
    kept = {name for name in before if name not in _OF_ITS_OWN | _BECOME_SEVERAL}
    for name in kept:
        assert before[name] == after[name], name
    if not _BECOME_SEVERAL.intersection(before):
        assert set(after) - _OF_ITS_OWN == kept
