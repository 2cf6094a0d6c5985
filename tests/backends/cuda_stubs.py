"""Libraries that let onnxruntime-gpu build CUDA sessions on a machine without CUDA.

The CUDA provider needs a few shared libraries. For every symbol that it imports from one of them, a
C function is written that does nothing, or allocates from ordinary memory where the provider asks
for memory or a handle; gcc makes the libraries. Sessions then build, and the choice of kernels,
fusions and copies is the real one. Nothing may be run: no kernel computes anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import onnxruntime

CAPI = Path(onnxruntime.__file__).parent / "capi"
PROVIDER = CAPI / "libonnxruntime_providers_cuda.so"
_LOADED_LATER = "libcudnn.so.9"  # opened by name, with functions looked up one by one

# The list of all kernels asks every provider of the wheel, TensorRT's too.
_NEEDED_TO_LIST_KERNELS = {
    "libnvinfer.so.10": {
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getInferLibVersion",
        "getPluginRegistry",
    },
    "libnvonnxparser.so.10": {"createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL"},
}

_PRELUDE = """
#include <stdlib.h>
#include <string.h>
#define OUT(t) *(t *)
static int handle(void **p) { *p = calloc(1, 4096); return 0; }
"""
# What is not `int name(void) { return 0; }`. Integers are passed as long, which x86-64 allows.
_BODIES = {
    "cudaGetDeviceCount": "(int *n) { *n = 1; return 0; }",
    "cudaGetDevice": "(int *n) { *n = 0; return 0; }",
    "cudaRuntimeGetVersion": "(int *n) { *n = 13000; return 0; }",
    "cudaDriverGetVersion": "(int *n) { *n = 13000; return 0; }",
    "cudaDeviceGetAttribute": "(int *v, int a) { *v = a == 75 ? 9 : a == 76 ? 0 : 999; return 0; }",
    "cudaGetDeviceProperties": """(char *p) {
        memset(p, 0, 512); strcpy(p, "stub");
        OUT(size_t)(p + 288) = 80L << 30; OUT(size_t)(p + 296) = 48 << 10;
        OUT(int)(p + 304) = 65536; OUT(int)(p + 308) = 32; OUT(int)(p + 320) = 1024;
        for (int i = 0; i < 3; i++) OUT(int)(p + 324 + 4 * i) = 1024;
        for (int i = 0; i < 3; i++) OUT(int)(p + 336 + 4 * i) = 65535;
        OUT(size_t)(p + 352) = 64 << 10; OUT(int)(p + 360) = 9; OUT(int)(p + 364) = 0;
        for (int i = 0; i < 2; i++) OUT(int)(p + 384 + 4 * i) = 132;
        return 0; }""",
    "cudaMemGetInfo": "(size_t *f, size_t *t) { *f = *t = 64L << 30; return 0; }",
    "cudaMemcpy": "(void *d, void *s, size_t n) { memcpy(d, s, n); return 0; }",
    "cudaMemcpyAsync": "(void *d, void *s, size_t n) { memcpy(d, s, n); return 0; }",
    "cudaMemset": "(void *d, int v, size_t n) { memset(d, v, n); return 0; }",
    "cudaMemsetAsync": "(void *d, int v, size_t n) { memset(d, v, n); return 0; }",
    "cudaPointerGetAttributes": "(char *p) { memset(p, 0, 24); return 0; }",
    "cudnnGetVersion": "(void) { return 91400; }",
    "cudnnGetCudartVersion": "(void) { return 13000; }",
}
_ALLOCATES = {"cudaMalloc", "cudaMallocHost", "cudaHostAlloc", "cudaMallocFromPoolAsync"}
_RELEASES = {"cudaFree", "cudaFreeHost", "cudaFreeAsync"}
_TEXTS = re.compile(r"\w+(GetErrorString|GetErrorName|GetStatusName|GetStatusString)")
_HANDLES = re.compile(
    r"cuda(Stream|Event|MemPool)Create\w*|cublas(Lt)?Create\w*|cudnnCreate\w*"
    r"|cublasLt\w+Create|cudaLibraryLoadData|cudaLibraryGetKernel|__cudaGetKernel"
)


def unavailable() -> str:
    """Why no stub libraries can be made here, or ""."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "the installed onnxruntime has no CUDA provider"
    if not PROVIDER.exists():
        return f"{PROVIDER.name} is not a Linux library of this wheel"
    tools = [tool for tool in ("gcc", "readelf", "strings") if shutil.which(tool) is None]
    return f"{' and '.join(tools)} not found" if tools else ""


def build(folder: Path) -> dict[str, str]:
    """Write the libraries to a folder; returns the environment of processes that use them."""
    for library, symbols in _imports().items():
        source = folder / f"{library}.c"
        source.write_text(_PRELUDE + "\n".join(_function(s) for s in sorted(symbols)))
        versions = folder / f"{library}.map"
        versions.write_text(f"{library} {{ global: *; }};\n")
        command = ["gcc", "-shared", "-fPIC", "-w", "-O0", f"-Wl,-soname,{library}"]
        if not library.startswith(("libnv", "libcuda.")):  # those have no versions
            command += [f"-Wl,--version-script={versions}"]
        command += ["-o", str(folder / library), str(source)]
        subprocess.run(command, check=True, capture_output=True)
    known = os.environ.get("LD_LIBRARY_PATH", "")
    return {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{known}"}


def _imports() -> dict[str, set[str]]:
    """Symbols by the library that the provider takes them from."""
    found: dict[str, set[str]] = {}
    for line in _output("readelf", "-W", "-d", str(PROVIDER)).splitlines():
        needed = re.search(r"NEEDED.*\[(lib(cu|nv)[\w.]+)\]", line)
        if needed:
            found[needed[1]] = set()
    for line in _output("readelf", "-W", "--dyn-syms", str(PROVIDER)).splitlines():
        imported = re.search(r" UND (\w+)@(lib\w+\.so[.\d]*)", line)
        if imported and imported[2] in found:
            found[imported[2]].add(imported[1])
        unversioned = re.search(r" UND (cu[A-Z]\w+)$", line)
        if unversioned:
            found.setdefault("libcuda.so.1", set()).add(unversioned[1])
    found |= _NEEDED_TO_LIST_KERNELS
    names = _output("strings", "-n", "8", str(PROVIDER)).splitlines()
    found[_LOADED_LATER] = {n for n in names if re.fullmatch(r"cudnn[A-Z][A-Za-z0-9]*(_v\d)?", n)}
    return found


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _function(name: str) -> str:
    if name in _BODIES:
        return f"long {name}{_BODIES[name]}"
    if name in _ALLOCATES:
        return f"long {name}(void **p, size_t n) {{ *p = malloc(n + 256); return 0; }}"
    if name in _RELEASES:
        return f"long {name}(void *p) {{ free(p); return 0; }}"
    if _TEXTS.fullmatch(name):
        return f'char *{name}(void) {{ return "stub"; }}'
    if _HANDLES.fullmatch(name):
        return f"long {name}(void **p) {{ return handle(p); }}"
    if name == "__cudaRegisterFatBinary":
        return f"void *{name}(void) {{ static void *p; return &p; }}"
    return f"long {name}(void) {{ return 0; }}"
