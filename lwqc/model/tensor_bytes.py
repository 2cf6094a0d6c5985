"""Read tensors from their files into private memory, whole, by rows or in chunks.

External tensors are read rather than mapped: mapped pages that were touched count as resident
memory for as long as the model is open.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.weights import static_shape

_CHUNK = 1 << 22
_SMALL = 1 << 16  # bytes that are evaluated sooner than a thread is woken for it
_READY = (ir.ExternalTensor, ir.serde.TensorProtoTensor, ir.Tensor)


def read_array(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """A tensor's values; those of an external tensor in memory of our own.

    Raises InputError if the data file is gone or has shrunk since the model was loaded.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    shape = static_shape(tensor)
    return _decoded(_read(tensor, 0, int(tensor.nbytes)), tensor.dtype, shape)


def read_rows(tensor: ir.TensorProtocol, start: int, stop: int) -> NDArray[Any]:
    """Rows [start, stop) along axis 0; of an external tensor only those are read.

    Raises ValueError when the range is not within the tensor.
    """
    shape = static_shape(tensor)
    if not shape or not 0 <= start <= stop <= shape[0]:
        raise ValueError(f"rows [{start}, {stop}) are not within shape {list(shape)}")
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()[start:stop]
    row, bits = math.prod(shape[1:]), tensor.dtype.bitwidth
    # Rows of 2- and 4-bit values can begin within a byte: read whole bytes, then cut.
    first = start * row * bits // 8
    last = -(-stop * row * bits // 8)
    skip = start * row - first * 8 // bits
    count = (last - first) * 8 // bits
    values = _decoded(_read(tensor, first, last - first), tensor.dtype, (count,))
    return values[skip : skip + (stop - start) * row].reshape(stop - start, *shape[1:])


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix [N, K] that lies in a data file, there as [K, N] if transposed.

    Slices of rows are read when they are asked for; InputError if the file is gone or has shrunk.
    """

    tensor: ir.ExternalTensor
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        first, second = static_shape(self.tensor)
        return (second, first) if self.transposed else (first, second)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Some rows in memory of their own."""
        start, stop, _ = rows.indices(self.shape[0])
        if not self.transposed:
            return read_rows(self.tensor, start, stop)
        return _read_columns(self.tensor, start, stop).T


def _read_columns(tensor: ir.ExternalTensor, start: int, stop: int) -> NDArray[Any]:
    """Columns [start, stop) of a matrix of numbers of whole bytes."""
    rows, columns = static_shape(tensor)
    found = np.empty((rows, stop - start), tensor.dtype.numpy().newbyteorder("<"))
    width, offset = found.itemsize, tensor.offset or 0
    try:
        with open(tensor.path, "rb", buffering=0) as file:
            for i, row in enumerate(found.view(np.uint8)):
                file.seek(offset + (i * columns + start) * width)
                if file.readinto(row) != row.nbytes:
                    raise _cut_short(tensor)
    except OSError as error:
        raise _unreadable(tensor, error) from error
    return found


def _cut_short(tensor: ir.ExternalTensor) -> InputError:
    return InputError(f"{tensor.path}: tensor {tensor.name}: the file was cut short since")


def _unreadable(tensor: ir.ExternalTensor, error: OSError) -> InputError:
    return InputError(f"{tensor.path}: tensor {tensor.name}: cannot be read: {error.strerror}")


def _read(tensor: ir.ExternalTensor, start: int, size: int) -> NDArray[np.uint8]:
    """Bytes [start, start + size) of an external tensor."""
    try:
        raw = np.fromfile(tensor.path, np.uint8, size, offset=(tensor.offset or 0) + start)
    except OSError as error:
        raise _unreadable(tensor, error) from error
    if len(raw) != size:
        raise _cut_short(tensor)
    return raw


def _decoded(raw: NDArray[np.uint8], dtype: ir.DataType, shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype.bitwidth >= 8:
        return raw.view(dtype.numpy().newbyteorder("<")).reshape(shape)
    proto = onnx.TensorProto(data_type=dtype.value, dims=shape, raw_data=raw.tobytes())
    return ir.serde.deserialize_tensor(proto).numpy()


def chunks(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """A tensor's bytes as stored; those of an external tensor a few megabytes at a time."""
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor.tobytes()
        return
    size = int(tensor.nbytes)
    for start in range(0, size, _CHUNK):
        yield _read(tensor, start, min(_CHUNK, size - start)).data


def evaluated(
    tensors: Iterable[ir.TensorProtocol], workers: int, in_flight_bytes: int
) -> Generator[Iterable[bytes | memoryview], None, None]:
    """The bytes of each tensor, in order, the next ones being evaluated meanwhile.

    Memory: at most `in_flight_bytes`, or one tensor if that is larger.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[ir.TensorProtocol, Future[bytes] | None]] = deque()
    held = 0
    try:
        for tensor in tensors:
            # What is read or copied in no time is not evaluated ahead, which would hold it.
            ready = isinstance(tensor, _READY) or tensor.nbytes <= _SMALL
            size = 0 if ready else int(tensor.nbytes)
            while waiting and held + size > in_flight_bytes:
                held -= _held(waiting[0])
                yield _result(waiting.popleft())
            held += size
            evaluate = None if size == 0 else pool.submit(tensor.tobytes)
            waiting.append((tensor, evaluate))
        while waiting:
            yield _result(waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _held(entry: tuple[ir.TensorProtocol, Future[bytes] | None]) -> int:
    return 0 if entry[1] is None else int(entry[0].nbytes)


def _result(entry: tuple[ir.TensorProtocol, Future[bytes] | None]) -> Iterable[bytes | memoryview]:
    tensor, evaluate = entry
    if isinstance(tensor, ir.ExternalTensor):
        return chunks(tensor)
    content = tensor.tobytes() if evaluate is None else evaluate.result()
    if len(content) != tensor.nbytes:
        raise ValueError(f"tensor {tensor.name}: {len(content)} bytes, expected {tensor.nbytes}")
    return [content]
