"""Every cell that the CPU declares legal computes with the decoded weights; the others say why not.

A cell is an operator, a weight format, an activation and a weight shape, ragged ones included.
"""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.backends.cpu import CpuTarget
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import Plan, SiteEntry, Source
from lwqc.quant.formats import BITS, BLOCKS, WeightFormat
from lwqc.runtime.session import Session, SessionSettings
from tests.build import model, normal
from tests.processor import EXACT, WHOLE

TARGET = CpuTarget()
OPSET = 20
ROWS = 3
SHAPES = {"even": (16, 8), "odd": (33, 7), "narrow": (96, 5), "ragged": (250, 12), "wide": (256, 4)}
OPERATORS = ["MatMul", "Gemm", "GemmT", "Gather", "Conv"]
FORMATS = [
    WeightFormat(b, k, s)
    for b in BITS
    for k in (*BLOCKS, None)
    for s in (True, False)
    if b != 7 or (k is None and s)
]
FORMATS += [WeightFormat(4, b, kind=k) for k in ("nf4", "fp4") for b in BLOCKS]
GRAINED = [WeightFormat(4, b, kind=k, product=WHOLE) for k in ("dg", "e2m1") for b in (16, 32, 128)]
FORMATS += GRAINED
ACTIVATIONS = ["none", "dynamic"]
INDEX = np.array([[0, 3, 1]])


def net(op):
    """One node per shape, each with a weight, an input and an output of its own."""
    rows, weights, inputs, types = [], {}, {}, {}
    for i, (name, (k, n)) in enumerate(SHAPES.items()):
        w, x, y, b = f"w_{name}", f"x_{name}", f"y_{name}", f"b_{name}"
        matrix = normal(n, k, seed=i)
        if op == "Gather":
            rows.append((op, [w, x], y, {}))
            weights[w], inputs[x], types[x] = matrix, ["b", 3], ir.DataType.INT64.value
        elif op == "Conv":
            rows.append((op, [x, w], y, {}))
            weights[w], inputs[x] = matrix.reshape(n, k, 1, 1), [1, k, 2, 2]
        elif op == "MatMul":
            rows.append((op, [x, w], y, {}))
            weights[w], inputs[x] = np.ascontiguousarray(matrix.T), ["m", k]
        else:
            trans = int(op == "GemmT")
            rows.append(("Gemm", [x, w, b], y, {"transB": trans}))
            weights[w] = matrix if trans else np.ascontiguousarray(matrix.T)
            weights[b], inputs[x] = normal(n, seed=i + 50), ["m", k]
    return model(rows, weights, inputs, [row[2] for row in rows], opset=OPSET, types=types)


NETS = {op: net(op) for op in OPERATORS}
SITES = {op: {s.name: s for s in find_sites(built).sites} for op, built in NETS.items()}


def feed(op, name):
    k, _ = SHAPES[name]
    if op == "Gather":
        return INDEX
    x = normal(4 if op == "Conv" else ROWS, k, seed=9) * np.exp(normal(1, k, seed=10))
    return x.T.reshape(1, k, 2, 2) if op == "Conv" else x


def expected(op, name, decoded):
    """Output in float64, and the sum of |x| |w| of each of its elements."""
    x = feed(op, name)
    if op == "Gather":
        return decoded[x], np.abs(decoded[x])
    rows = (x.reshape(x.shape[1], -1).T if op == "Conv" else x).astype(np.float64)
    y, size = rows @ decoded.T, np.abs(rows) @ np.abs(decoded).T
    if op == "Conv":
        return y.T.reshape(1, -1, 2, 2), size.T.reshape(1, -1, 2, 2)
    if op != "MatMul":
        y = y + normal(len(decoded), seed=list(SHAPES).index(name) + 50)
    return y, size


def activation_bound(name, fmt, decoded):
    """What rounding the activations to 8 bits may change, for each output element.

    Blocks: int8 with the step max|x| / 127 of each row and block, wrong by half a step. Per
    channel: uint8 with the step (max - min) / 255 of the tensor, half a step and another half where
    the rounded zero point cuts the range.
    """
    x = np.abs(feed("MatMul", name)).astype(np.float64)
    if fmt.block is None or fmt.grained:
        signed = feed("MatMul", name)
        step = (max(signed.max(), 0) - min(signed.min(), 0)) / 255
        return np.full((len(x), 1), step) * np.abs(decoded).sum(axis=1)
    padding = ((0, 0), (0, -x.shape[1] % fmt.block))
    blocks = np.pad(x, padding).reshape(len(x), -1, fmt.block)
    weights = np.pad(np.abs(decoded), padding).reshape(len(decoded), -1, fmt.block).sum(axis=2)
    return blocks.max(axis=2) / 127 / 2 @ weights.T


def cells(op, fmt, activation):
    """Legal entries by site, and the reasons of the others."""
    entry = SiteEntry(weight=fmt, activation=activation)
    forms = {name: TARGET.form(site, entry, OPSET) for name, site in SITES[op].items()}
    reasons = {name: form for name, form in forms.items() if TARGET.refuses(form)}
    return {name: entry for name in forms if name not in reasons}, reasons


def lower(op, entries, weights):
    return TARGET.lower(NETS[op], Plan(source=Source(), quantize=entries), weights)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("op", OPERATORS)
def test_cell(op, fmt, activation):
    entries, reasons = cells(op, fmt, activation)
    weights = EncodedWeights(NETS[op], io.read_array)
    for name, reason in reasons.items():
        assert len(reason.split()) > 3
        with pytest.raises(InputError, match=f"^{name} "):
            lower(op, {name: SiteEntry(weight=fmt, activation=activation)}, weights)
    if not entries:
        return
    lowered = lower(op, entries, weights)
    assert not TARGET.misplaced(lowered)
    session = Session(lowered.model, SessionSettings(threads=1))
    found = session({f"x_{name}": feed(op, name) for name in SHAPES})
    for site, entry in entries.items():
        name = site.removeprefix("w_")
        decoded = weights.get(site, entry).decode().astype(np.float64)
        wanted, size = expected(op, name, decoded)
        bound = 1e-5 * size + 1e-6 * np.abs(wanted)  # float32 sums in another order; the bias
        if activation == "dynamic" and op != "Gather":
            bound = bound + activation_bound(name, fmt, decoded)
        difference = np.abs(found[f"y_{name}"] - wanted)
        assert (difference <= bound).all(), (site, (difference / bound).max())


def test_how_many_cells_are_legal():
    legal: Counter[str] = Counter()
    illegal: Counter[str] = Counter()
    for op in OPERATORS:
        for fmt in FORMATS:
            for activation in ACTIVATIONS:
                entries, reasons = cells(op, fmt, activation)
                legal[op] += len(entries)
                illegal[op] += len(reasons)
    print("legal:", dict(legal), "illegal:", dict(illegal))
    assert sum((legal + illegal).values()) == 5 * len(FORMATS) * 2 * len(SHAPES)
    linear = 466 + len(SHAPES) * EXACT  # 8-bit weights with 8-bit activations
    linear += len(SHAPES) * len(GRAINED)
    assert legal == {"MatMul": linear, "Gemm": linear, "GemmT": linear, "Gather": 173, "Conv": 245}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_dynamic_activations_are_rounded(bits):
    """The bound of level 4 is needed: its kernel is not the float one."""
    fmt = WeightFormat(bits, 32)
    entries, _ = cells("MatMul", fmt, "dynamic")
    weights = EncodedWeights(NETS["MatMul"], io.read_array)
    session = Session(lower("MatMul", entries, weights).model, SessionSettings(threads=1))
    found = session({f"x_{name}": feed("MatMul", name) for name in SHAPES})["y_ragged"]
    decoded = weights.get("w_ragged", entries["w_ragged"]).decode().astype(np.float64)
    wanted, size = expected("MatMul", "ragged", decoded)
    assert np.abs(found - wanted).max() > 1e-4 * size.max()


@pytest.mark.parametrize(
    ("op", "text", "activation", "site", "reason"),
    [
        ("Gather", "w4b32", "none", "w_ragged", "not a multiple of the block 32"),
        ("Gather", "nf4b16", "none", "w_even", "no kernel for Gather"),
        ("Conv", "fp4b16", "none", "w_even", "no kernel for Conv"),
        ("Conv", "w4b32", "dynamic", "w_even", "no kernel for Conv"),
        ("MatMul", "nf4b16", "dynamic", "w_even", "no integer kernel"),
        ("MatMul", "nf4b32", "none", "w_ragged", "multiple of the block 32"),
        ("MatMul", "w3c", "dynamic", "w_even", "symmetric 8-bit"),
        ("MatMul", "w4b32", "static", "w_even", "dynamic or none"),
        ("MatMul", "dgw7b32", "none", "w_even", "activations have 8 bits"),
        ("Conv", "dgw7b32", "static", "w_even", "no kernel for Conv"),
    ],
)
def test_reasons(op, text, activation, site, reason):
    entry = SiteEntry(weight=text, activation=activation)
    assert reason in TARGET.form(SITES[op][site], entry, OPSET)
