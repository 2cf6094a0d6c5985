"""Gates of `lwqc run`: exit code 3 with what was reached, again and again until it holds."""

import json

import pytest

PLAIN = """
model = "model.onnx"
data = "data.npz"

[[step]]
run = "quantize"
bits = 4
output = "out.onnx"
"""


@pytest.fixture
def built(project):
    """One step with all gates met."""
    project.write(PLAIN + "[step.gates]\nmax_size = 0.5\nmax_drop = 0.2\nmax_latency = '1s'\n")
    code, text, error = project.run()
    assert code == 0, error
    lines = text.splitlines()
    assert "out.onnx: written" in lines
    assert any(line.startswith("  size: asked ") and line.endswith(": met") for line in lines)
    assert any(line.startswith("  drop: asked 0.2, reached 0.0") for line in lines)
    assert any(line.startswith("  latency: asked 1000, reached ") for line in lines)
    return project


def test_a_missed_gate_is_exit_code_3_with_what_was_reached(built):
    before = (built.folder / "out.onnx").read_bytes()
    size = (built.folder / "model.onnx").stat().st_size
    built.write(
        "[gates]\nmax_size = 0.9\nmax_drop = 0.0\n" + PLAIN.replace("[[step]]", "[[step]]", 1)
    )
    built.write(PLAIN.replace("[[step]]", "[gates]\nmax_size = 0.01\nmax_drop = 0.2\n\n[[step]]"))
    for _ in range(2):  # what was kept is judged like what was made
        code, text, error = built.run("--json")
        assert code == 3
        assert f"quantize: size: asked {0.01 * size:.6g}, reached {len(before)} bytes" in error
        (step,) = json.loads(text)["steps"]
        assert not step["ran"]  # a gate decides about a file and does not change it
        assert [gate["met"] for gate in step["gates"]] == [False, True]
    assert (built.folder / "out.onnx").read_bytes() == before


def test_a_gate_that_cannot_be_measured_is_not_met(project):
    project.write(
        PLAIN.replace("quantize", "lower").replace(
            "bits = 4", "target = 'cuda'\nallow_fallback = true"
        )
        + "[step.gates]\nmax_latency = 0.9\n"
    )
    code, _, error = project.run()
    if code == 0:
        pytest.skip("a GPU is here")
    assert code == 3
    assert "lower: latency: not measured: " in error


def test_a_bound_of_a_step_counts_like_a_gate_and_stops_no_other(project):
    project.write(
        PLAIN.replace("bits = 4", "bits = 4\nmax_drop = 0.0")
        + '\n[[step]]\nname = "after"\nrun = "lower"\nverify = false\n'
        + '\n[[step]]\nname = "compare"\nrun = "verify"\nmax_drop = 0.0\n'
    )
    for ran in (True, False):
        code, text, error = project.run("--json")
        assert code == 3
        assert "quantize: drop: asked 0, reached 0.0" in error
        assert "compare: drop: asked 0, reached 0.0" in error
        steps = json.loads(text)["steps"]
        assert [step["ran"] for step in steps] == [ran] * 3
        assert [bool(step["missed"]) for step in steps] == [True, False, True]
        assert not json.loads(text)["met"]


def test_gates_of_all_outputs_do_not_bind_what_is_on_the_way(project):
    project.write(
        PLAIN.replace("[[step]]", "[gates]\nmax_size = 0.5\n\n[[step]]").replace(
            'output = "out.onnx"', ""
        )
    )
    code, _, error = project.run()
    assert code == 0, error
