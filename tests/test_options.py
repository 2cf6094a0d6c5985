"""Options are defined once: Python and the command line take the same."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import get_type_hints

import pytest

import lwqc
from lwqc.cli import app
from lwqc.compile.budget import find_budget
from lwqc.decide import budgets
from lwqc.decide.drop_layers import DropOptions
from lwqc.decide.parallel_layers import ParallelOptions
from lwqc.decide.prune_options import PruneOptions
from lwqc.decide.slice_streams import SliceOptions
from lwqc.errors import InputError
from lwqc.plans import options
from lwqc.plans.goals import BOUNDS, Goals
from lwqc.plans.spelled_out import flag_of
from tests.test_layers import FILES

# What recipes and allocators turn on, and builds check.
STEERING = {"max_size", "avg_bits", "max_latency"}
SECTIONS = {
    "compress": options.Compressing,
    "plan": options.Compressing,
    "quantize": options.Quantizing,
    "lower": options.Bounded,
    "prune": options.PruningSources,
    "drop_layers": options.DroppingSources,
}


@pytest.mark.parametrize(("name", "section"), SECTIONS.items())
def test_signatures_name_every_option_and_others_are_refused(name, section):
    function = getattr(lwqc, name)
    assert get_type_hints(section).keys() <= inspect.signature(function).parameters.keys()
    with pytest.raises(
        InputError, match=f"max_sice: {name} has no such option; expected one of .*target"
    ):
        function("there_is_none.onnx", max_sice=0.5)


@pytest.mark.parametrize(("name", "section"), SECTIONS.items())
def test_the_command_line_has_what_has_a_flag(name, section):
    import typer

    command = typer.main.get_command(app).commands[name.removesuffix("_layers")]
    flags = {n: flag_of(h) for n, h in get_type_hints(section, include_extras=True).items()}
    wanted = {flag.spelled or n: flag for n, flag in flags.items() if flag is not None}
    assert wanted.keys() <= {p.name for p in command.params}
    assert {p.name: p.help for p in command.params if p.name in wanted} == {
        n: flag.help for n, flag in wanted.items()
    } or name == "lower"  # which has a default of its own for the loss


def test_every_bound_is_a_file():
    """That file and the option are all that lwqc has of a budget."""
    files = {p.stem for p in Path(budgets.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == BOUNDS.keys()
    budgets.register_all()
    found = {option: find_budget(option) for option in BOUNDS}
    assert {option: budget.option for option, budget in found.items()} == {o: o for o in BOUNDS}
    assert all(budget.flag == f"--{o.replace('_', '-')}" for o, budget in found.items())
    for option in BOUNDS:
        users = [name for name, file in FILES.items() if option in _words(file.read_text())]
        assert (
            users == [f"lwqc.decide.budgets.{option}", "lwqc.plans.options"] or option in STEERING
        )


def _words(text):
    return set(re.findall(r"\w+", text))


def test_every_option_is_a_field_of_what_it_sets():
    def fields(*kinds):
        return {field.name for kind in kinds for field in dataclasses.fields(kind)}

    assert set(get_type_hints(options.Budgets)) == BOUNDS.keys() | fields(Goals) - {"bounds"}
    assert set(options.Pruning.__annotations__) == fields(PruneOptions, SliceOptions) - {"recipe"}
    dropping = fields(DropOptions, ParallelOptions) - {"recipe", "seed", "max_drop", "finer"}
    of_tokens = set(options.Shortening.__annotations__)
    assert set(options.Dropping.__annotations__) == dropping | of_tokens


def test_functions_outside_the_command_line_have_few_parameters():
    import ast

    many = [
        f"{module}: {node.name}"
        for module, file in FILES.items()
        if not module.startswith("lwqc.cli")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
        and len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) > 10
    ]
    assert many == []
