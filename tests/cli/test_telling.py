"""What a command tells: shares in percent, its version, whole names, `-q` and `-v`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

import lwqc
import lwqc.cli.demo
from lwqc.cli import telling
from lwqc.cli.completion import FORMATS
from lwqc.cli.pipeline.document import Gates
from lwqc.decide.structural import branch_amount, prune_options
from lwqc.errors import InputError
from lwqc.model.extensions import TARGETS
from lwqc.model.journey import JOURNEYS, Journey, duration_text
from lwqc.plans.bounds import BYTES, Bound
from lwqc.plans.goals import Goals
from lwqc.plans.option_texts import parse_shares
from lwqc.plans.options import PruningSources
from lwqc.plans.recipe import find, named, source_text
from lwqc.plans.spelled_out import spelled_out
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.metrics.named import NAMED

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
SIZE = Bound("size", BYTES, "a size such as 20MB")
LONG = "a_layer_with_a_very_long_name." * 6


def test_a_bound_may_be_in_percent():
    assert SIZE.read("30%") == SIZE.read("0.3") == SIZE.read(" 30 % ")
    assert SIZE.read("100%").value == 1
    for text in ("130%", "0%", "%", "3%%", "30%MB"):
        with pytest.raises(InputError, match="size"):
            SIZE.read(text)


def test_shares_by_group_may_be_in_percent():
    assert parse_shares(["a=30%", "b=0.3"]) == {"a": 0.3, "b": 0.3}
    with pytest.raises(InputError, match="expected GROUP=share"):
        parse_shares(["a=%"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "--ratio", "20%", "--no-verify"],
        ["drop", "--branches", "50%", "--recipe", "finercut", "--no-verify"],
        ["lower", "--max-drop", "1%"],
    ],
    ids=lambda a: a[0],
)
def test_a_share_in_percent_is_the_same_number(run, tmp_path, arguments):
    command, *options = arguments
    plain = [f"{float(o[:-1]) / 100:g}" if o.endswith("%") and o != "50%" else o for o in options]
    plans = []
    for number, own in enumerate((options, plain)):
        plan = tmp_path / f"{number}.json"
        code, _, err = run(command, DIGITS, "-o", tmp_path / "o.onnx", *own, "--plan-out", plan)
        assert code == 0, err
        plans.append(json.loads(plan.read_text()))
    assert plans[0] == plans[1]


def test_a_share_in_percent_is_the_same_number_in_python():
    @spelled_out(PruningSources)
    def taken(**options):
        return options

    found = taken(ratio="20%", max_ratio="90%", max_class_drop=0.05, max_drop=None, round_to=8)
    assert found == {
        "ratio": 0.2, "max_ratio": 0.9, "max_class_drop": 0.05, "max_drop": None, "round_to": 8
    }  # fmt: skip
    assert prune_options(find("spa-l1"), groups={"*": "20%"}).groups == {"*": 0.2}
    assert branch_amount("50%") == branch_amount(0.5) == {"share": 0.5}
    assert branch_amount("3") == branch_amount(3) == {"count": 3}
    assert lwqc.compress(DIGITS, recipe="w8", max_drop="1%").goals.max_drop == 0.01
    with pytest.raises(InputError, match=r"max-drop '1%%': expected a share such as 0\.3 or 30%"):
        lwqc.compress(DIGITS, max_drop="1%%")
    with pytest.raises(InputError, match="max-drop 101%: must be between 0 and 1"):
        Goals(max_drop="101%")


def test_files_hold_shares_in_percent(tmp_path):
    for name, key in (("spqr-columns", "columns"), ("finercut", "share"), ("evit", "share")):
        text = source_text(name)
        number = re.search(rf"^{key} = ([0-9.]+)$", text, re.MULTILINE)
        assert number is not None
        percent = f'{key} = "{100 * float(number.group(1)):g}%"'
        (tmp_path / "r.toml").write_text(text.replace(number.group(0), percent))
        assert find(str(tmp_path / "r.toml")) == named()[name]
    (tmp_path / "r.toml").write_text(text.replace(number.group(0), 'share = "1%%"'))
    with pytest.raises(InputError, match="'1%' is not a finite number"):
        find(str(tmp_path / "r.toml"))
    assert Gates(max_drop="1%", max_size="30%").goals == Goals(max_drop=0.01, max_size=0.3)


def test_what_is_no_share_is_not_read_in_percent(run, tmp_path):
    code, _, err = run("bench", DIGITS, "--seconds", "5%")
    assert code == 2
    assert "'5%' is not a finite number" in err


def test_the_version_is_told(run):
    assert run("--version") == (0, f"lwqc {lwqc.__version__}\n", "")


def test_names_are_whole_where_the_output_is_no_terminal(tmp_path):
    """In a process of its own: pytest replaces the streams that are looked at."""
    proto = onnx.load(DIGITS)
    for tensor in proto.graph.initializer:
        for node in proto.graph.node:
            node.input[:] = [LONG + n if n == tensor.name else n for n in node.input]
        tensor.name = LONG + tensor.name
    model = tmp_path / "long.onnx"
    onnx.save(proto, model)
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-m", "lwqc.cli", "inspect", model],
        capture_output=True, text=True, encoding="utf-8",
        env={**environment, "PYTHONIOENCODING": "utf-8"}, check=True,
    )  # fmt: skip
    assert all(LONG + t.name.removeprefix(LONG) in done.stdout for t in proto.graph.initializer
               if t.name.endswith("weight"))  # fmt: skip
    assert max(map(len, done.stdout.splitlines())) < 2000


def test_kernels_are_called_as_the_docs_call_them(run, tmp_path):
    page = tmp_path / "o.html"
    line = ["quantize", DIGITS, "-o", tmp_path / "o.onnx", "--bits", 4, "--details"]
    _, text, _ = run(*line, "--report", page)
    docs = (Path(__file__).parents[2] / "docs" / "index.md").read_text()
    assert '"Unpacked at load": ' in docs
    assert f"the whole report is {page}" in text
    assert "4 bits in blocks of 32, " in " ".join(text.split())
    for told in (text, page.read_text()):
        assert "unpacked at load" in " ".join(told.split())
        assert "Folded" not in told


def test_a_quiet_command_tells_errors_and_what_was_asked_for(run, tmp_path):
    line = ["quantize", DIGITS, "-o", tmp_path / "o.onnx", "-q"]
    assert run(*line) == (0, "", "")
    code, text, err = run(*line, "--json")
    assert (code, err) == (0, "")
    assert json.loads(text)["output"] == str(tmp_path / "o.onnx")
    code, text, err = run(*line, "--max-drop", "0")
    assert (code, text) == (3, "")
    assert "constraint not met" in err
    assert run("quantize", "none.onnx", "-o", tmp_path / "o.onnx", "-q")[2].startswith("lwqc: ")
    assert run("quantize", DIGITS, "-o", tmp_path / "o.onnx")[1] != ""  # and the next one speaks


MODULE = "def model():\n    import onnx\n    return onnx.load('digits.onnx')\n"
BUILD = 'model = "digits.onnx"\n[[step]]\nrun = "lower"\noutput = "o.onnx"\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The demo model, a module that returns it, and a build of it."""
    (tmp_path / "digits.onnx").write_bytes(DIGITS.read_bytes())
    (tmp_path / "some_digits.py").write_text(MODULE)
    (tmp_path / "build.toml").write_text(BUILD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_that_write_are_quiet_and_those_that_show_only_show(run, folder):
    for line in (
        ["convert", "some_digits:model", "-o", "c.onnx"],
        ["opt", "digits.onnx", "-p", "clean", "-o", "p.onnx"],
        ["run", "build.toml"],
    ):
        assert run(*line, "-q") == (0, "", "")
        assert "".join(run(*line)[1:]) != ""
    two = ["digits.onnx", "o.onnx"]
    for line in (["verify", *two], ["bench", *two, "--seconds", "0.01"], ["inspect", two[0]]):
        code, text, err = run(*line, "-q")
        assert (code, err) == (0, "")
        assert text
    assert run("recipes", "-q")[1].split() == list(named())
    assert {"clean", "fuse-attention"} <= set(run("passes", "-q")[1].split())


def test_stages_are_told_where_that_is_asked_for(run, folder):
    told = run("convert", "some_digits:model", "-o", "c.onnx", "-v")[2]
    assert told.index("converting: 0 of 1") < told.index("checking: 0 of 1")
    told = run("opt", "digits.onnx", "-p", "clean", "-o", "p.onnx", "-v")[2]
    assert "running passes: 0 of " in told
    assert "fuse-attention: nothing" in told
    assert "deciding: 0 of 1" in run("run", "build.toml", "-v")[2]
    assert "deciding: 0 of 1" in run("verify", "digits.onnx", "o.onnx", "-v")[2]
    assert len(run("inspect", "digits.onnx", "-v")[1]) > len(run("inspect", "digits.onnx")[1])
    assert named()["gptq"].source in run("recipes", "-v")[1]
    assert "    Matches: " in run("passes", "-v")[1]


def test_a_verbose_command_tells_its_stages_and_sites(run, tmp_path):
    code, text, err = run("quantize", DIGITS, "-o", tmp_path / "o.onnx", "--bits", "mixed",
                          "--avg-bits", "5", "-v")  # fmt: skip
    assert code == 0
    assert "sensitivity: " in err
    assert "Sites" in text


def test_stages_are_told_at_their_start_and_every_few_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(telling.time, "monotonic", lambda: now[0])
    report = telling.plain_lines(Journey(), verbose=True)
    for second in range(8):
        now[0] = float(second)
        report("encoding", second, 8)
        report("inner\x1b[2J", second, 2)
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == ["0.0", "0.0", "3.0", "6.0"]
    assert "\\x1b" in told[1]


def test_lines_that_nobody_asked_for_are_rare(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.undo()  # of what all tests have
    monkeypatch.setattr(telling.time, "monotonic", lambda: now[0])
    report = telling.plain_lines(Journey(), verbose=False)
    for second in range(25):
        now[0] = float(second)
        report("deciding" if second < 12 else "checking", second, 25)
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == ["10.0", "20.0"]
    assert "deciding 10 of 25, about" in told[0]
    assert told[1].endswith(" s left")


@pytest.mark.parametrize("width", ["50", "60"])
def test_tables_are_as_wide_as_is_asked(run, width):
    code, text, err = run("inspect", DIGITS, "--width", width)
    assert code == 0, err
    assert max(map(len, text.splitlines())) == int(width)
    assert run("inspect", DIGITS, "--width", "3")[2].startswith("lwqc: --width 3: expected 20")
    assert max(map(len, run("inspect", DIGITS, "--sites")[1].splitlines())) != int(width)


def test_a_shell_is_told_names(run, monkeypatch):
    monkeypatch.setenv("_LWQC_COMPLETE", "complete_bash")
    for words, known in (
        ("lwqc compress m.onnx --recipe gp", named()),
        ("lwqc lower m.onnx --target cpu-a", TARGETS.names()),
        ("lwqc verify a b --metric word", NAMED),
    ):
        names = {name for name in known if name.startswith(words.split()[-1])}
        assert names
        assert asked(run, monkeypatch, words) == names


def asked(run, monkeypatch, words):
    """What bash gets for the last word of a line."""
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    return set(run()[1].split())


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("prune m --recipe spa", {"spa-l1", "spa-l2", "spa-lamp"}),
        ("drop m --recipe e", {"evit", "evit-w8"}),
        ("quantize m --method gptq-", {"gptq-order", "gptq-refit"}),
        ("quantize m --method b", {"brecq"}),
        ("prune m --score w", {"wanda"}),
        ("drop m --score ablation", {"ablation", "ablation-once"}),
        ("prune m --by m", {"macs"}),
        ("prune m --scope l", {"local"}),
        ("drop m --kind a", {"attention", "any"}),
        ("compress m --effort h", {"high"}),
        ("plan m --effort l", {"low"}),
        ("quantize m --activations d", {"dynamic"}),
        ("quantize m --ranges p", {"percentile"}),
        ("quantize m --format vq5", {"vq5x2"}),
        ("opt m --passes fuse-a", {"fuse-activations", "fuse-attention"}),
        ("opt m -p clean,fuse-at", {"clean,fuse-attention"}),
        ("passes nan", {"nan-guards"}),
        ("recipes spqr", {"spqr-columns"}),
    ],
)
def test_a_shell_is_told_names_of_each_option(run, monkeypatch, words, names):
    monkeypatch.setenv("_LWQC_COMPLETE", "complete_bash")
    assert asked(run, monkeypatch, f"lwqc {words}") == names


def test_formats_that_a_shell_is_told_are_some():
    assert [str(WeightFormat.parse(name)) for name in FORMATS] == list(FORMATS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_shells_call_the_command(run, monkeypatch, shell):
    monkeypatch.setenv("_LWQC_COMPLETE", f"source_{shell}")
    code, text, _ = run()
    assert code == 0
    assert "_LWQC_COMPLETE=complete_" + shell in text
    assert re.search(r"(complete|compdef|_lwqc_completion)\b.*\blwqc\b", text)


def test_a_name_that_is_near_is_offered(run, tmp_path):
    np.savez(tmp_path / "d.npz", imag=np.zeros((2, 1, 8, 8), np.float32))
    for command, option, wrong, right in (
        ("compress", "--recipe", "gtpq", "gptq"),
        ("compress", "--metric", "top-1", "top1"),
        ("compress", "--target", "cpu-vni", "cpu-vnni"),
        ("compress", "--effort", "hihg", "high"),
        ("compress", "--preprocess", "siz=8", "size"),
        ("compress", "--preprocess", "letterbx", "letterbox"),
        ("compress", "--preprocess", "layout=nhcw", "nhwc"),
        ("compress", "--shape", "btch=2", "batch"),
        ("compress", "--weight-outputs", "logit=2", "logits"),
        ("compress", "--kv-cache", "int4", "int8"),
        ("compress", "--data", tmp_path / "d.npz", "image"),
        ("quantize", "--bits", "mixd", "mixed"),
        ("quantize", "--activations", "dynamik", "dynamic"),
        ("quantize", "--ranges", "min-max", "minmax"),
        ("quantize", "--method", "gtpq", "gptq"),
        ("prune", "--by", "mac", "macs"),
        ("prune", "--score", "wnda", "wanda"),
        ("prune", "--normalise", "men", "mean"),
        ("prune", "--scope", "globl", "global"),
        ("prune", "--compensate", "refti", "refit"),
        ("drop", "--score", "similarty", "similarity"),
        ("drop", "--kind", "atention", "attention"),
        ("drop", "--measure", "angulr", "angular"),
        ("lower", "--floats", "float61", "float16"),
    ):
        line = [command, DIGITS, "-o", tmp_path / "o.onnx", option, wrong]
        line += ["--branches", "1"] if command == "drop" else []
        code, _, err = run(*line)
        assert code == 2
        assert f"did you mean '{right}'?" in err, (option, err)
    assert "did you mean clean?" in run("opt", DIGITS, "-o", tmp_path / "o.onnx", "-p", "clan")[2]
    assert "did you mean 'memory'?" in run("--limit", "memry=1GB", "inspect", DIGITS)[2]


def test_commands_and_options_that_are_near_are_offered(run):
    """What typer says: by its own words."""
    assert re.search("Did you mean .*'compress'", run("compres", DIGITS)[2])
    assert re.search("Possible options: .*--max-size", run("compress", DIGITS, "--max-sice", 1)[2])


def test_output_goes_to_its_own_stream_while_a_terminal_shows_progress(tmp_path):
    """stderr is a terminal, stdout is a file: what machines read is in the file alone.

    Python tells what it imports: the first line is there before the runtime is loaded.
    """
    pty = pytest.importorskip("pty", reason="pseudo terminals are of POSIX")
    ours, theirs = pty.openpty()
    out = tmp_path / "out.json"
    line = ["quantize", str(DIGITS), "-o", str(tmp_path / "o.onnx"), "--json"]
    with out.open("w") as file:
        child = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "lwqc.cli", *line],
            stdout=file, stderr=theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        )  # fmt: skip
        os.close(theirs)
        drawn = b""
        with suppress(OSError):  # the other side is closed
            while read := os.read(ours, 1 << 16):
                drawn += read
        assert child.wait() == 0
    os.close(ours)
    assert json.loads(out.read_text())["output"].endswith("o.onnx")
    assert b"checking" in drawn
    assert drawn.index(b"opening") < drawn.index(b"onnxruntime")
    assert b'"output"' not in drawn


def test_phases_are_shares_of_one():
    assert all(sum(phases.values()) == pytest.approx(1) for phases in JOURNEYS.values())
    assert all(next(iter(p)) == "opening" and list(p)[-1] == "checking" for p in JOURNEYS.values())


def followed(events, length):
    """(share, estimate) at each second of a command that reports `events`: second -> reports."""
    journey, found = Journey(), []
    for second in range(length + 1):
        for stage, done, total in events.get(second, ()):
            journey.report(stage, done, total, second)
        found.append((journey.share(second), journey.whole_s(second)))
    return found


def test_a_share_only_grows_and_moves_while_nothing_is_reported():
    begun = {5: [("deciding", 0, 1), ("cleaning up", 0, 1)]}
    shares = [share for share, _ in followed(begun, 60)]
    assert all(0 <= a < b < 1 for a, b in pairwise(shares))
    back = [("candidates", 3, 4), ("candidates", 1, 4), ("cleaning up", 0, 1), ("encoding", 1, 9)]
    shares = [share for share, _ in followed({5: back[:1], 6: back[1:]}, 20)]
    assert all(a < b for a, b in pairwise(shares))


@pytest.mark.parametrize("kind", JOURNEYS)
@pytest.mark.parametrize("slow", [0.6, 1, 1.5])
def test_the_whole_is_known_from_a_fifth_on(kind, slow):
    """Each phase in turn takes more or less than it usually does: within a factor of two."""
    for one in list(JOURNEYS[kind])[1:]:
        events, at = {}, 0.0
        for phase, share in JOURNEYS[kind].items():
            events.setdefault(round(at), []).append((phase, 0, 1))
            at += 400 * share * (slow if phase == one else 1)
        estimates = followed(events, round(at))[round(at * 0.2) + 1 :]
        assert all(0.5 < whole / at < 2 for _, whole in estimates), (one, at)


def test_durations_are_told_in_words():
    assert [duration_text(s) for s in (0.4, 59, 65, 7200)] == ["0 s", "59 s", "1:05", "2:00:00"]


def test_recipes_are_listed_by_command_with_what_they_need(run):
    text = run("recipes")[1]
    parts = {part.splitlines()[0].split(": ")[1]: part for part in text.strip().split("\n\n")}
    assert "  obspa  " in " ".join(parts["lwqc prune --recipe NAME"].split("\n")).replace(
        "   ", "  "
    )
    assert "needs --metric" in parts["lwqc drop --recipe NAME"]
    assert "needs --data, lwqc[torch]" in text
    names = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert sorted(names) == sorted(named())


def test_recipes_go_to_the_command_that_takes_them(run):
    from lwqc.cli.recipe_list import groups
    from lwqc.decide.structural import dropping_recipe, pruning_recipe

    _, _, channels, layers = groups().values()
    for recipe in channels:
        assert pruning_recipe(recipe.name, has_data=True).name == recipe.name
    for recipe in layers:
        assert dropping_recipe(recipe.name, has_data=True).name == recipe.name
