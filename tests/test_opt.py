"""`lwqc opt` and `lwqc passes`."""

import json
import re

import onnx
import onnx_ir as ir
import pytest

from lwqc.compile.plan_pipelines import pipelines_of
from lwqc.model import io
from lwqc.passes.cleanup import clean_up
from lwqc.passes.registry import BUILT_IN
from lwqc.plans.plan import CleanUp, Plan, Source
from lwqc.testing import model_of, to_text

NET = """g (float[n,4] x) => (float[n,4] y) {
    a = Relu(x)
    b = Relu(x)
    s = Add(a, b)
    p = Softmax(s)
    y = Identity(p)
}"""

SCRIPT = """
def relu(graph):
    for node in graph.nodes:
        node.op = "Relu" if node.op == "Softmax" else node.op
"""


@pytest.fixture
def net(tmp_path):
    io.save(model_of(NET), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_passes_run_in_order_and_the_result_is_saved(run, net, tmp_path):
    out = tmp_path / "out.onnx"
    code, _, err = run("opt", net, "-p", "join-equal,fold-constants", "-o", out, "--verify-each")
    assert code == 0, err
    assert "join-equal: 1 changes (Relu -1)" in err
    assert [n.op_type for n in onnx.load(out).graph.node] == ["Relu", "Add", "Softmax"]


def test_the_report_as_json(run, net, tmp_path):
    code, out, _ = run("opt", net, "-p", "simplify", "-o", tmp_path / "o.onnx", "--json")
    assert code == 0
    found = json.loads(out)
    assert [row["pass"] for row in found["passes"]][:2] == ["fold-constants", "global-pool"]
    assert found["refused"] == []


def test_looking_on(run, net, tmp_path):
    code, out, err = run(
        "opt", net, "-p", "global-pool,join-equal,fold-constants", "-o", tmp_path / "o.onnx",
        "--dump", tmp_path / "d", "--print-after", "join-equal", "--time-passes", "--limit", 2,
    )  # fmt: skip
    assert code == 0
    assert out.count("Relu") == 1
    assert "ms  global-pool: nothing" in err
    assert "fold-constants" not in err
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["02-join-equal.onnx"]


@pytest.mark.parametrize(
    ("options", "changes", "looked"),
    [
        (["join-equal", "--verify-each"], "changes: join-equal 1", "verified after each pass, the"),
        (["global-pool"], "no changes", "passes not verified, the file loads"),
        (["global-pool", "--no-verify"], "no changes", "not verified, the file was not loaded"),
    ],
)
def test_a_line_says_what_was_saved(run, net, tmp_path, options, changes, looked):
    out = tmp_path / "o.onnx"
    code, told, _ = run("opt", net, "-o", out, "-p", *options)
    assert code == 0
    assert told.startswith(f"saved {out} ({out.stat().st_size} bytes): {changes}; ")
    assert looked in told
    assert told.count("\n") == 1
    found = json.loads(run("opt", net, "-o", out, "-p", *options, "--json")[1])
    assert (found["output"], found["output_bytes"]) == (str(out), out.stat().st_size)
    assert found["verified_each"] is ("--verify-each" in options)


def test_bisect_finds_nothing_in_sound_passes(run, net):
    code, out, _ = run("opt", net, "-p", "clean", "--bisect")
    assert (code, out) == (0, "no pass moves the outputs\n")


def test_bisect_names_the_pass_and_ends_with_3(run, net, monkeypatch):
    monkeypatch.setattr("lwqc.passes.instruments.distance", lambda a, b: 0.5)
    code, out, _ = run("opt", net, "-p", "join-equal,clean", "--bisect", "--json")
    assert code == 3
    assert json.loads(out)["step"] == "join-equal"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "join-equl"], "no pass is called 'join-equl'; did you mean join-equal?"),
        (["-p", "clean"], "give -o for the result, or --bisect"),
        (["-p", "clean", "--bisect", "--tolerance", "-1"], "--tolerance -1: must not be negative"),
        (["-p", "join-equal", "--bisect", "--print-after", "clean"], "no pass of this pipeline"),
        (["-p", "bnb4", "--bisect"], "bnb4 is run by a step of a plan: it needs the formats"),
    ],
)
def test_bad_usage_ends_with_2_and_one_line(run, net, arguments, message):
    code, out, err = run("opt", net, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_result_is_not_written_over_the_model(run, net):
    before = net.read_bytes()
    code, _, err = run("opt", net, "-p", "clean", "-o", net)
    assert code == 2, err
    assert net.read_bytes() == before


def test_every_pass_is_listed_with_a_line(run):
    code, out, _ = run("passes")
    assert code == 0
    for name in BUILT_IN:
        assert f"\n  {name}: " in out
    assert "side-branch: needs the formats of sites" in out
    assert json.loads(run("passes", "--json")[1])[0]["kind"] == "passes"


def test_a_pass_is_described_in_full(run):
    code, out, _ = run("passes", "fuse-attention")
    assert code == 0
    assert "Refuses: opsets without Attention" in out
    assert "finite-masks: bool = false" in out
    code, _, err = run("passes", "fuse-atention")
    assert code == 2
    assert "did you mean fuse-attention" in err


@pytest.fixture
def clean_pays(monkeypatch):
    """Whatever times say: where they say otherwise, the graph stays as it is."""
    monkeypatch.setattr("lwqc.decide.base.no_slower", lambda relative: True)


@pytest.mark.usefixtures("clean_pays")
def test_compress_prints_the_pipelines_of_its_plan(run, net, tmp_path):
    code, _, err = run("compress", net, "-o", tmp_path / "c.onnx", "--no-quantize",
                       "--print-pipeline")  # fmt: skip
    assert code == 0, err
    assert "\nlower: " in err
    assert "insert-qdq,side-branch" in err
    code, _, err = run("compress", net, "-o", tmp_path / "e.onnx", "--print-pipeline",
                       "--pareto", 3, "--max-size", 0.5)  # fmt: skip
    assert (code, "leave out --pareto" in err) == (2, True)


@pytest.mark.usefixtures("clean_pays")
def test_compress_dumps_what_each_pass_leaves(run, net, tmp_path):
    out, folder = tmp_path / "c.onnx", tmp_path / "dump"
    code, _, err = run("compress", net, "-o", out, "--recipe", "clean", "--dump", folder)
    assert code == 0, err
    files = sorted(folder.iterdir())
    assert files
    assert all(re.fullmatch(r"\d\d-[a-z-]+\.onnx", file.name) for file in files)
    assert to_text(io.load(files[-1])) == to_text(io.load(out))
    code, _, err = run("compress", net, "-o", out, "--dump", out / "no")
    assert (code, "Not a directory" in err) == (2, True)
    code, _, err = run("compress", net, "-o", out, "--dump", folder,
                       "--pareto", 3, "--max-size", 0.5)  # fmt: skip
    assert (code, "leave out --pareto" in err) == (2, True)


def test_the_text_of_a_plan_does_what_the_plan_does(run, net, tmp_path):
    plan = Plan(source=Source(), clean=CleanUp(accept=("finite-masks",)), target="cpu-avx2")
    texts = pipelines_of(plan)
    assert list(texts) == ["clean", "merge", "lower"]
    assert "fuse-attention{finite-masks=true}" in texts["clean"]
    text = f"{texts['clean']},{texts['merge']}"
    code, _, err = run("opt", net, "-p", text, "-o", tmp_path / "o.onnx")
    assert code == 0, err
    done = clean_up(io.load(net), accept=("finite-masks",)).model
    assert to_text(io.load(tmp_path / "o.onnx")) == to_text(done)


def test_graphsurgeon_scripts_run_by_name(run, net, tmp_path, monkeypatch):
    (tmp_path / "surgery_of_mine.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    text = 'graphsurgeon{function="surgery_of_mine:relu"},join-equal'
    code, _, err = run("opt", net, "-p", text, "-o", tmp_path / "o.onnx")
    assert code == 0, err
    assert [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node] == [
        "Relu", "Add", "Relu", "Identity",
    ]  # fmt: skip
    for name, message in (("surgery_of_mine:none", "has no attribute none"), ("x", "expected mod")):
        code, _, err = run("opt", net, "-p", f"graphsurgeon{{function={name}}}", "--bisect")
        assert code == 2
        assert message in err


def test_a_rule_that_breaks_leaves_the_model_and_says_so(run, net, tmp_path, monkeypatch):
    def broken(*given, **options):
        raise ValueError("a rule broke")

    monkeypatch.setattr("onnxscript.optimizer.optimize_ir", broken)
    out = tmp_path / "o.onnx"
    code, text, err = run("opt", net, "-p", "fold-constants", "-o", out)
    assert code == 0
    assert "onnxscript's optimizer failed: a rule broke" in text + err
    assert run("inspect", net, "--against", out)[0] == 0


def test_a_pass_that_fails_is_one_line(run, net, tmp_path, monkeypatch):
    def broken(*given):
        raise ir.passes.PassError("it broke")

    monkeypatch.setattr("lwqc.passes.join_equal.JoinEqual.rewrite", broken)
    code, _, err = run("opt", net, "-p", "join-equal", "-o", tmp_path / "o.onnx")
    assert (code, err) == (1, "lwqc: it broke\n")
    assert run("opt", net, "-p", "join-equal", "--bisect")[0::2] == (1, err)
    assert not (tmp_path / "o.onnx").exists()
