"""The promises of docs/security.md that no other test holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from lwqc.backends.provider_options import options_path, read_options
from lwqc.cli import app
from lwqc.errors import InputError
from lwqc.runtime.cluster import connected

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"trt_extra_plugin_lib_paths": "evil.so"}, "none that lwqc writes"),
        ({"trt_op_types_to_exclude": "x"}, "none that lwqc writes"),
        ({"trt_engine_cache_path": "/etc"}, "not a plain name"),
        ({"trt_timing_cache_path": "../x"}, "not a plain name"),
        ({"trt_fp16_enable": {}, "\x1b": 1}, "none that lwqc writes"),
    ],
)
def test_options_beside_a_model_load_no_libraries(tmp_path, options, what):
    model = tmp_path / "m.onnx"
    options_path(model).write_text(json.dumps({"provider": "tensorrt", "options": options}))
    with pytest.raises(InputError, match=what):
        read_options(model, "tensorrt")
    assert read_options(model, "cuda") == {}


def test_options_that_are_written_are_read(tmp_path):
    model = tmp_path / "m.onnx"
    written = {"trt_fp16_enable": "1", "trt_engine_cache_path": "m.engines",
               "trt_profile_min_shapes": "x:1x2"}  # fmt: skip
    options_path(model).write_text(json.dumps({"provider": "tensorrt", "options": written}))
    assert read_options(model, "tensorrt") == written


def test_a_cluster_takes_dasks_own_tls_settings(tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="needs lwqc[cluster]")
    import distributed

    for name in ("ca", "cert", "key"):
        (tmp_path / f"{name}.pem").touch()
    seen = []

    def client(address, **options):
        seen.append(options.get("security") or distributed.Security())
        raise OSError("enough is known")

    monkeypatch.setattr(distributed, "Client", client)
    settings = {
        "distributed.comm.require-encryption": True,
        "distributed.comm.tls.ca-file": str(tmp_path / "ca.pem"),
        "distributed.comm.tls.client.cert": str(tmp_path / "cert.pem"),
        "distributed.comm.tls.client.key": str(tmp_path / "key.pem"),
    }
    import dask

    with (
        dask.config.set(settings),
        pytest.raises(InputError, match="enough is known"),
        connected("tls://h:1"),
    ):
        pass
    assert seen[0].require_encryption
    assert seen[0].tls_client_cert == str(tmp_path / "cert.pem")


@pytest.mark.parametrize("require", [False, True])
def test_tls_that_is_not_set_up_is_one_line(require):
    pytest.importorskip("distributed", reason="needs lwqc[cluster]")
    import dask

    address = "tcp://127.0.0.1:9" if require else "tls://127.0.0.1:9"
    with (
        dask.config.set({"distributed.comm.require-encryption": require}),
        pytest.raises(InputError, match=f"--cluster {address}: no scheduler answers: ") as caught,
        connected(address),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_every_command_that_loads_code_can_refuse_it():
    for name, command in typer.main.get_command(app).commands.items():
        options = {parameter.name for parameter in command.params}
        loads = name == "run" or bool(options & {"data", "metric", "loss", "source"})
        assert ("no_user_code" in options) == loads, name
