"""Every architecture of the zoo and every shipped model, brought to cuda and tensorrt.

What is checked without a GPU: the files are valid with strict shapes, TensorRT's rules hold, the
CPU computes nearly the same numbers from them, and the CUDA provider, loaded under stub libraries,
takes every node without a copy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.backends.cuda import SIZE_OPERATORS
from lwqc.backends.tensorrt_lint import lint
from lwqc.compile.execute import execute
from lwqc.decide.compress import open_version
from lwqc.decide.float_plan import with_floats
from lwqc.decide.lower import lower_plan
from lwqc.decide.planning import static_tensors, uniform
from lwqc.model import io
from lwqc.plans.goals import CONVERSION_DROP, Goals
from lwqc.plans.plan import ActivationRange, Plan, Source
from lwqc.runtime.measure import compare, worst_drop
from tests.backends import cuda_stubs
from tests.conftest import ALL, ZOO
from tests.zoo.materialize import materialize, sample_inputs

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = sorted(MODELS.glob("*.onnx"))
FOUR = ActivationRange(low=-4, high=4)
FUSED = {"bert.dynamo", "glyph_vit", "stdlib_lm", "vit_small_patch16_224.dynamo"}
# Bytes of models whose numbers are compared, and of those compared on both targets.
LARGEST_RUN, LARGEST_TWICE = 40_000_000, 12_000_000
# Numbers of every second small model are compared on tensorrt too, of all with $LWQC_TEST_ALL: its
# float16 is made by the passes of cuda.
TWICE = {path for i, path in enumerate([*ZOO, *SHIPPED]) if ALL or i % 2}


@dataclass
class Case:
    """One model, and where its lowered form goes."""

    path: Path
    folder: Path

    @cached_property
    def float_model(self) -> ir.Model:
        if self.path in SHIPPED:
            return io.load(self.path)
        return ir.serde.deserialize_model(materialize(self.path))

    @cached_property
    def feeds(self) -> dict[str, np.ndarray]:
        names = {v.name for v in self.float_model.graph.inputs}
        return {n: v for n, v in sample_inputs(self.path, batch=1).items() if n in names}

    @cached_property
    def data(self) -> Any:
        return "random:1" if self.path in SHIPPED else [self.feeds]

    def cuda(self) -> Path:
        """The file for cuda, its numbers compared where the model is not too large."""
        large = self.bytes > LARGEST_RUN  # then by rules, nothing is run
        work = open_version(
            self.float_model,
            data=self.data,
            target="cuda",
            name=self.path.stem,
            skip_checks=large,
        )
        done = execute(work, Goals(), lower_plan(work))
        file = self.folder / f"{self.path.stem}.cuda.onnx"
        io.save(done.model, file)
        if not large:
            drop = worst_drop(
                compare(work.original.session, work.job.load(file), work.job.data.fit)
            )
            assert drop < CONVERSION_DROP
        return file

    def tensorrt(self) -> tuple[ir.Model, int]:
        """The integer model for tensorrt, and its sites; ranges are made up: rules count here.

        Numbers are compared in float16. The clean-up is that of cuda and is left out.
        """
        work = open_version(self.float_model, data=self.data, target="tensorrt")
        if self.bytes < LARGEST_TWICE and self.path in TWICE:
            plain = execute(work, Goals(), with_floats(work, Plan(source=Source())))
            drop = worst_drop(
                compare(work.original.session, work.job.load(plain.model), work.job.data.fit)
            )
            assert drop < CONVERSION_DROP
        work = open_version(self.float_model, data=self.data, target="tensorrt", skip_checks=True)
        plan = with_floats(work, uniform(work, 8, "static", search=False))
        ranges = dict.fromkeys(static_tensors(work, plan), FOUR)
        done = execute(work, Goals(), plan.model_copy(update={"activations": ranges}))
        return done.model, len(plan.quantize)

    @property
    def bytes(self) -> int:
        return io.weight_bytes(self.float_model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lowered")


@pytest.fixture(params=[*ZOO, *SHIPPED], ids=lambda p: p.stem)
def case(request: pytest.FixtureRequest, folder: Path) -> Case:
    return Case(request.param, folder)


def test_both_forms_are_valid_and_compute_the_same(case: Case):
    file = case.cuda()
    onnx.checker.check_model(str(file))
    proto = onnx.load(str(file))
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    assert onnx.TensorProto.FLOAT16 in {t.data_type for t in proto.graph.initializer}
    model, sites = case.tensorrt()
    assert lint(model) == []
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert 0 < sum(node.op_type == "QuantizeLinear" for node in model.graph) <= 3 * sites


@pytest.fixture(scope="module")
def placements(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Where the CUDA provider puts the nodes of the files that the test before wrote."""
    if reason := cuda_stubs.unavailable():
        pytest.skip(reason)
    env = cuda_stubs.build(tmp_path_factory.mktemp("stubs"))
    files = sorted(map(str, folder.glob("*.cuda.onnx")))
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.cuda_worker"],
        input=json.dumps(files), env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {Path(row["path"]).name.removesuffix(".cuda.onnx"): row for row in found}


@pytest.mark.parametrize("path", [*ZOO, *SHIPPED], ids=lambda p: p.stem)
def test_cuda_takes_every_node_without_a_copy(path: Path, placements: Mapping[str, Any]):
    if path.stem not in placements:
        pytest.skip("was not lowered in this run")
    found = placements[path.stem]
    assert "error" not in found, found["error"]
    assert found["copies"] == []
    assert {op for op, _ in found["nodes"].get("CPUExecutionProvider", [])} <= SIZE_OPERATORS
    assert "CUDAExecutionProvider" in found["nodes"]
    if path.stem in FUSED:
        assert "Attention" in found["operators"]
