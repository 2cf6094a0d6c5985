import numpy as np
import onnx_ir as ir
import pytest

import lwqc
from lwqc.runtime.measure import Metric
from tests.build import model, normal


def feeds(count=3):
    return [{"x": normal(4, 96, seed=i)} for i in range(count)]


def net(**options):
    return model(
        [
            ("MatMul", ["x", "w1"], "h", {}),
            ("Relu", ["h"], "r", {}),
            ("MatMul", ["r", "w2"], "y", {}),
        ],
        {"w1": normal(96, 256, scale=0.1), "w2": normal(256, 64, seed=1, scale=0.1)},
        {"x": ["batch", 96]},
        ["y"],
        **options,
    )


def test_compress_saves_and_reports(tmp_path):
    report = lwqc.compress(net(), data=feeds(), max_size=0.2, effort="low").save(
        tmp_path / "small.onnx"
    )
    assert report.met
    assert report.output_bytes <= 0.2 * report.source_bytes
    assert 0 < report.drop < 0.05
    again = lwqc.verify(net(), tmp_path / "small.onnx", data=feeds())
    assert again["y"].drop == pytest.approx(report.drop, abs=1e-9)


def test_every_kind_of_source(tmp_path):
    built = net()
    lwqc.save(built, tmp_path / "m.onnx")
    for source in (built, ir.serde.serialize_model(built), tmp_path / "m.onnx"):
        done = lwqc.quantize(source, bits=4, data=feeds())
        assert set(done.plan.quantize) == {"w1", "w2"}
    with pytest.raises(lwqc.InputError, match="a dict is no model"):
        lwqc.compress({})


def test_a_torch_module_is_compressed(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")
    module = torch.nn.Sequential(torch.nn.Linear(96, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
    module.train()
    done = lwqc.compress(module, example_inputs=(torch.randn(4, 96),), recipe="w8a8-dynamic")
    report = done.save(tmp_path / "net.onnx")
    assert report.drop < 0.01
    assert module.training
    with pytest.raises(lwqc.InputError, match="example_inputs"):
        lwqc.compress(module)


def test_a_plan_made_once_is_applied_to_the_same_bytes(tmp_path):
    plan = lwqc.plan(net(), data=feeds(), recipe="w8a8-static")
    plan.save(tmp_path / "plan.json")
    for name, given in (("a", plan), ("b", tmp_path / "plan.json")):
        lwqc.apply(net(), given, data=feeds()).save(tmp_path / f"{name}.onnx", verify=False)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    other = net()
    other.graph.initializers["w1"].const_value = ir.tensor(normal(96, 256), name="w1")
    with pytest.raises(lwqc.InputError, match="the plan is for"):
        lwqc.apply(other, plan)


def test_what_is_no_plan_is_told(tmp_path):
    with pytest.raises(lwqc.InputError, match="plan: expected a Plan or the path of one, not dict"):
        lwqc.apply(net(), {"version": 2})
    with pytest.raises(lwqc.InputError, match=r"none\.json: cannot read the plan"):
        lwqc.apply(net(), tmp_path / "none.json")


def test_max_drop_holds_on_all_data_not_only_on_the_batches_of_the_search(tmp_path):
    # The last feeds are far larger than those that the search looks at.
    data = [*feeds(6), *({"x": normal(4, 96, seed=9) * 30} for _ in range(3))]
    report = lwqc.compress(net(), data=data, max_drop=0.002).save(tmp_path / "o.onnx")
    assert report.met
    assert report.drop <= 0.002


@pytest.mark.parametrize(
    ("higher", "before", "after", "drop"),
    [(True, 0.8, 0.6, 0.25), (True, 0.8, 0.9, -0.125), (False, 2.0, 2.5, 0.25)],
)
def test_the_drop_of_a_metric_has_a_direction(higher, before, after, drop):
    assert Metric("m", lambda run: 0.0, higher).drop(before, after) == pytest.approx(drop)


def test_a_metric_decides_instead_of_the_cosine(tmp_path):
    def negative_error(run):
        x = normal(4, 96, seed=5)
        return float(np.abs(run({"x": x})["y"]).mean())

    negative_error.higher_is_better = False
    report = lwqc.compress(net(), data=feeds(), metric=negative_error, avg_bits=4.5).save(
        tmp_path / "o.onnx"
    )
    assert report.metric == "negative_error"
    expected = (report.metric_after - report.metric_before) / report.metric_before
    assert report.drop == pytest.approx(expected)


def test_bench_times_side_by_side():
    first, second = lwqc.bench(net(), net(), data=feeds(), seconds=0.05)
    assert 0 < first.p10_ms <= first.median_ms <= first.p90_ms
    assert second.runs == first.runs
    with pytest.raises(lwqc.InputError, match="at least one model"):
        lwqc.bench()
