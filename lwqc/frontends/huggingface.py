"""Folders of Hugging Face's models to ONNX by optimum-onnx; extra `lwqc[hf]`."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.frontends.converting import converting
from lwqc.model import io
from lwqc.model.needed import needed
from lwqc.model.scratch import temporary_folder

_EXTRA = "hf"
_WHAT = "Hugging Face's models"
CONFIG = "config.json"


def load(path: Path, task: str = "") -> ir.Model:
    """A folder with config.json and weights. Nothing is downloaded, no code of the folder is run.

    task: as `optimum` names it, such as `feature-extraction`; by default that of the class which
    the folder names. Raises InputError, also for models that become several files.
    """
    exporters = needed("optimum.exporters.onnx", _WHAT, _EXTRA)
    task = task or _task(path)
    with temporary_folder() as folder:
        with converting(f"{path}: export"):
            exporters.main_export(
                str(path),
                output=str(folder),
                task=task,
                do_validation=False,
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
            )
        files = sorted(folder.glob("*.onnx"))
        if len(files) != 1:
            shown = ", ".join(f.name for f in files)
            raise InputError(
                f"{path}: becomes {shown or 'nothing'}: export it with `optimum-cli export onnx` "
                "and compress each of them"
            )
        model = io.load(files[0])
        del model.meta["lwqc_path"]
        return io.detached(model)


def _task(path: Path) -> str:
    transformers = needed("transformers", _WHAT, _EXTRA)
    tasks = needed("optimum.exporters.tasks", _WHAT, _EXTRA).TasksManager
    with converting(f"{path}: reading {CONFIG}"):
        config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True)
        names = list(config.architectures or ())
    known = getattr(transformers, names[0], None) if names else None
    if known is None:
        raise InputError(f"{path}: {CONFIG} names no class of transformers: give --task")
    with converting(f"{path}: finding its task (--task names one)"):
        return str(tasks.infer_task_from_model(known))
