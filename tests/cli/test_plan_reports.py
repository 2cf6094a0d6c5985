"""Plans and recipes for readers: summaries, differences, schemas, files to edit."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import lwqc
import lwqc.cli.demo
from lwqc.cli.report.plan_diff import plan_diff
from lwqc.cli.report.plan_text import plan_text
from lwqc.plans import schemas
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe, named, source_text
from lwqc.plans.schemas import schema_text
from lwqc.quant.formats import WeightFormat

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
DATA = "lwqc.cli.demo.digits:calibration"
DOCS = Path(lwqc.__file__).parents[1] / "docs"

PLAN = Plan.model_validate(
    {
        "source": {"digest": "abc", "name": "m.onnx"},
        "recipe": "r",
        "budgets": {"max_size": "0.25 of the original"},
        "data": {"digest": "def", "name": "d.npz", "feeds": 4, "shapes": {"x": [8, 96]}},
        "tools": {"lwqc": "0.1.0"},
        "clean": {"changes": ["fold-constants", "fuse-attention"]},
        "remove": [{"name": "block.3", "kind": "mlp", "compensate": "linear"}],
        "prune": {
            "units": [
                {"group": "g", "index": i, "slices": []} for i in (1, 2, 5)
            ] + [{"group": "h", "index": 0, "slices": []}],
            "compensate": "refit",
        },
        "quantize": {
            "w1": {"weight": "w8c", "activation": "static"},
            "w2": {"weight": "w4b32h", "activation": "dynamic", "method": "gptq"},
            "w3": {"weight": "w8c", "activation": "static"},
        },
        "kept_float": {"w4": "has only 3 weights"},
        "notes": ["something"],
    }
)  # fmt: skip

TEXT = """\
m.onnx (abc) for cpu, recipe r
asked for: max_size 0.25 of the original
made on d.npz (4 feeds, the first x [8, 96])
made with lwqc 0.1.0
steps, in this order:
  1. the graph is cleaned up: fold-constants, fuse-attention
  2. 1 branches are removed: block.3 (mlp); in their place: linear 1
  3. 4 channels of 2 groups are removed: g 3, h 1; compensation: refit, on the given inputs
  4. 3 sites are quantized:
     2 to 8 bits per channel (w8c), activations of 8 bits with ranges from the data: w1, w3
     1 to 4 bits in blocks of 32 (w4b32h), activations of 8 bits with the range of each run, later inputs take up the error of earlier ones (gptq): w2
stays float, or partly so:
  w4: has only 3 weights
notes:
  something
"""  # noqa: E501


def test_a_plan_as_text():
    assert plan_text(PLAN) == TEXT


def test_what_differs_between_plans():
    assert plan_diff(PLAN, PLAN) == []
    other = PLAN.model_dump(mode="json")
    other["budgets"] = {"avg_bits": "4"}
    other["quantize"]["w2"]["weight"] = "w8c"
    del other["quantize"]["w3"]
    other["remove"] = [{"name": "block.4", "kind": "mlp"}]
    other["prune"]["units"] = other["prune"]["units"][1:]
    other["clean"] = None
    assert plan_diff(PLAN, Plan.model_validate(other)) == [
        "budgets max_size: 0.25 of the original -> absent",
        "clean fuse: True -> absent",
        "clean merge: True -> absent",
        "clean copies: True -> absent",
        "clean experts: False -> absent",
        "clean folding: 262144 -> absent",
        "clean changes: fold-constants, fuse-attention -> absent",
        "remove block.3 name: block.3 -> absent",
        "remove block.3 kind: mlp -> absent",
        "remove block.3 keep_signature: False -> absent",
        "remove block.3 compensate: linear -> absent",
        "prune g: 3 channels (1, 2, 5) -> 2 channels (2, 5)",
        "quantize w2: w4b32h, dynamic activations, gptq -> w8c, dynamic activations, gptq",
        "quantize w3: w8c, static activations -> absent",
        "budgets avg_bits: absent -> 4",
        "remove block.4 name: absent -> block.4",
        "remove block.4 kind: absent -> mlp",
        "remove block.4 keep_signature: absent -> False",
        "remove block.4 compensate: absent -> none",
    ]


def test_no_difference_hides_behind_a_long_value():
    def scaled(last):
        scales = [*map(float, range(100)), last]
        return Plan.model_validate({"source": {}, "transforms": {"scales": {"s": scales}}})

    (line,) = plan_diff(scaled(1.0), scaled(2.0))
    assert line.startswith("transforms scales s: 0.0, 1.0")
    assert len(line) < 200


def test_the_command_prints_and_compares_plans(run, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    code, text, _ = run("plan", DIGITS, "--recipe", "w8", "--text", "-o", one)
    assert code == 0
    assert text == plan_text(Plan.load(one))
    assert run("plan", one, "--text")[1] == text
    assert run("plan", "--text", one)[1] == text
    assert run("plan", DIGITS, "--recipe", "w8", "--text")[1] == text
    assert run("plan", DIGITS, "--avg-bits", "5", "--recipe", "knapsack", "-o", two)[0] == 0
    code, text, _ = run("plan", "--diff", one, two)
    assert code == 0
    lines = text.splitlines()
    assert "recipe: w8 -> knapsack" in lines
    assert "budgets avg_bits: absent -> 5" in lines
    assert any(line.startswith("quantize ") and " -> w4b" in line for line in lines)
    assert run("plan", "--diff", one, one)[1] == "the plans are the same\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a model to plan for"),
        ([DIGITS], "-o says where the plan goes"),
        (["--text"], "give a model to plan for"),
        ([DIGITS, "--text", "--resume"], "give -o"),
        (["--diff", "missing.json", DIGITS], "missing.json: cannot read the plan"),
        (["missing.onnx", "--text"], "missing.onnx"),
    ],
)
def test_what_the_command_lacks_is_said(run, arguments, words):
    code, _, err = run("plan", *arguments)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert words in err


# Schemas


@pytest.mark.parametrize("of", ["plan", "recipe"])
def test_the_schema_that_is_shipped_is_that_of_the_code(run, of):
    command = {"plan": "plan", "recipe": "recipes"}[of]
    made = schema_text(of)
    assert run(command, "--schema")[1] == made
    for file in (Path(schemas.__file__).parent / f"{of}.json", DOCS / "schemas" / f"{of}.json"):
        assert file.read_text() == made, f"write it again: lwqc {command} --schema > {file}"


def test_the_schema_knows_formats_as_they_are_written():
    schema = json.loads(schema_text("plan"))
    pattern = schema["$defs"]["SiteEntry"]["properties"]["weight"]["pattern"]
    for name in ("w4b32h", "w8c", "w2b64ap", "nf4b64h", "fp8c"):
        assert re.search(pattern, name)
        assert str(WeightFormat.parse(name)) == name
    for wrong in ("w4", "int8", "w4b32hx", "xw8c"):
        assert not re.search(pattern, wrong)


# Recipes as files


@pytest.mark.parametrize("name", named())
def test_every_recipe_has_a_file_that_says_the_same(name):
    assert Recipe.model_validate(tomllib.loads(source_text(name))) == named()[name]


def test_a_recipe_is_saved_edited_and_used_and_its_comments_survive(run, tmp_path):
    file = tmp_path / "mine.toml"
    text = run("recipes", "w4", "--toml")[1]
    file.write_text("# mine\n" + text.replace('name = "w4"', 'name = "mine"  # was w4'))
    assert run("recipes", file, "--toml")[1] == file.read_text()
    assert json.loads(run("recipes", file)[1])[0]["name"] == "mine"
    made = tmp_path / "p.json"
    assert run("plan", DIGITS, "-o", made, "--recipe", file)[0] == 0
    assert Plan.load(made).recipe == "mine"
    assert run("recipes", "--toml")[0] == 2
    assert run("recipes", "nothing", "--toml")[0] == 2
