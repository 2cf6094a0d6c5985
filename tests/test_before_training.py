"""The example of pruning before training does it all, on a network of a few channels."""

import re
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra lwqc[torch]")
pytest.importorskip("sklearn", reason="it has the digits")

import lwqc
from examples.before_training import before_training, tasks
from lwqc.learn.batch_statistics import saw_no_data
from tests.build import normal
from tests.learn.test_to_torch import stored

NETWORK = """g (float[N,1,8,8] image) => (float[N,10] logits) {
    a = Conv<pads = [1,1,1,1], strides = [2,2]>(image, w1)
    b = BatchNormalization(a, s1, t1, m1, u1) c = Relu(b)
    d = Conv<pads = [1,1,1,1]>(c, w2) e = BatchNormalization(d, s2, t2, m2, u2) f = Relu(e)
    p = GlobalAveragePool(f) q = Flatten(p) logits = Gemm<transB = 1>(q, w3, b3) }"""


def network():
    sizes = {"1": 24, "2": 32}
    norms = {
        name + which: np.full(size, value, np.float32)
        for which, size in sizes.items()
        for name, value in (("s", 1), ("t", 0), ("m", 0), ("u", 1))
    }
    return stored(
        NETWORK, w1=normal(24, 1, 3, 3, seed=1), w2=normal(32, 24, 3, 3, seed=2, scale=0.2),
        w3=normal(10, 32, seed=3, scale=0.3), b3=np.zeros(10, np.float32), **norms,
    )  # fmt: skip


def test_a_network_is_pruned_trained_and_quantized(tmp_path, monkeypatch, capsys):
    start = tmp_path / "start.onnx"
    lwqc.save(network(), start)
    arguments = ["--untrained", start, "--steps", 20, "--folder", tmp_path]
    monkeypatch.setattr(sys, "argv", ["before_training", *map(str, arguments)])
    before_training.main()
    rows = capsys.readouterr().out.splitlines()[-3:]
    found = [re.search(r"accuracy (\S+) +([\d,]+) bytes +([\d,]+) MACs", row) for row in rows]
    accuracies = [float(row[1]) for row in found]
    sizes, macs = ([int(row[i].replace(",", "")) for row in found] for i in (2, 3))
    assert all(0 < accuracy < 1 for accuracy in accuracies)
    assert sizes[0] > sizes[1] > sizes[2]
    assert macs[1] == macs[2] <= 0.5 * macs[0]
    assert sizes[2] == (tmp_path / "quantized.onnx").stat().st_size
    before, pruned, trained = (
        lwqc.load(tmp_path / f"{name}.onnx").graph.initializers
        for name in ("start", "pruned", "pruned-trained")
    )
    assert pruned["w2"].shape[0] < before["w2"].shape[0]
    for name in ("w1", "w2", "w3", "s1", "m1", "u2"):
        assert not np.array_equal(
            pruned[name].const_value.numpy(), trained[name].const_value.numpy()
        )


def test_a_network_is_exported_with_normalisations_of_its_own(tmp_path):
    task = tasks.find("digits")
    task.export(tmp_path / "untrained.onnx")
    model = lwqc.load(tmp_path / "untrained.onnx")
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("BatchNormalization") == kinds.count("Conv") == 6
    assert not {"Expand", "CastLike", "Identity"} & set(kinds)
    module = lwqc.to_torch(model, batch_statistics=True).train()
    images, labels = task.draw(0, 16)
    assert module(images)["logits"].shape == (len(labels), 10)
    assert saw_no_data(model)
