"""Whether an execution provider of the installed runtime works on this machine."""

from __future__ import annotations

import ctypes
import os
from functools import cache

from lwqc.runtime.session import available_providers, installed_folder, provider_error

_LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}


@cache
def provider_problem(provider: str) -> str:
    """Why the provider cannot run a model here, in a plain sentence, or ""."""
    if provider not in available_providers():
        known = ", ".join(available_providers())
        return f"the installed onnxruntime has no {provider} (it has {known}); use onnxruntime-gpu"
    failed = provider_error(provider)
    if not failed:
        return ""
    # Only now: a library that the runtime could not load does not load here either, and says why.
    return f"{provider} does not load: {_library_error(provider) or failed}"


def _library_error(provider: str) -> str:
    path = installed_folder() / _LIBRARIES.get(provider, "")
    if os.name != "posix" or not path.is_file():
        return ""
    try:
        ctypes.CDLL(str(path), mode=os.RTLD_LAZY | os.RTLD_LOCAL)
    except OSError as error:
        return " ".join(str(error).split())
    return ""
