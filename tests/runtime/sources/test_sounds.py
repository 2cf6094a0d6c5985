"""Sounds in `.wav` files as inputs of a model."""

import numpy as np
import pytest
from scipy.io import wavfile

from lwqc.errors import InputError
from lwqc.runtime.data import open_data
from tests.sources import net

RATE = 1000


def model(shape="n, t", dtype="float"):
    return net(f"{dtype}[{shape}] x", f"{dtype}[{shape}] y", "y = Identity(x)")


def opened(net, path, preprocess):
    data = open_data(path, net, preprocess=preprocess)
    return [feeds["x"] for feeds in data], data


@pytest.fixture
def wave():
    return np.round(np.sin(np.arange(250) / 9) * 20000).astype(np.int16)


@pytest.fixture
def file(tmp_path, wave):
    wavfile.write(tmp_path / "s.wav", RATE, wave)
    return tmp_path / "s.wav"


def test_pieces_of_a_file(file, wave):
    (values,), data = opened(model(), file, f"rate={RATE},seconds=0.1")
    assert values.shape == (3, 100)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.ravel()[:250], wave / 32768, atol=1e-6)
    assert not values.ravel()[250:].any()
    assert data.preprocess == f"rate={RATE},samples=100"
    (again,), _ = opened(model("n, 1, 100"), file, f"rate={RATE}")
    np.testing.assert_array_equal(again[:, 0], values)
    (raw,), _ = opened(model(dtype="int16"), file, f"rate={RATE},samples=250")
    np.testing.assert_array_equal(raw[0], wave)


def test_whole_files_of_any_length(tmp_path, wave):
    for name, length in (("b/1.wav", 30), ("a/1.wav", 20)):
        (tmp_path / "d" / name).parent.mkdir(parents=True)
        wavfile.write(tmp_path / "d" / name, RATE, wave[:length])
    values, data = opened(model(), tmp_path / "d", f"rate={RATE}")
    assert [v.shape for v in values] == [(1, 20), (1, 30)]
    assert data.labels().names == ("a", "b")
    _, pieces = opened(model(), tmp_path / "d", f"rate={RATE},samples=10")
    assert pieces.labels().names == ("a", "a", "b", "b", "b")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_types_channels_and_rates(tmp_path, dtype):
    tone = np.sin(np.arange(2000) / 30)
    scale = {"u": 127, "i": np.iinfo(dtype).max if dtype != np.float32 else 1, "f": 1}
    kind = np.dtype(dtype).kind
    stored = tone * scale[kind] + (128 if kind == "u" else 0)
    wavfile.write(tmp_path / "s.wav", 2 * RATE, np.stack([stored, stored], 1).astype(dtype))
    ((values,),), _ = ((opened(model(), tmp_path / "s.wav", f"rate={RATE}"))[0],), None
    assert values.shape == (1, 1000)
    np.testing.assert_allclose(values[0, 50:-50], tone[::2][50:-50], atol=0.02)


@pytest.mark.parametrize(
    ("shape", "said", "pattern"),
    [
        ("n, t", None, "write rate=HERTZ"),
        ("n, 50", "rate=1000,samples=40", "40 samples do not fit; it takes samples=50"),
        ("n, t", "rate=1000,samples=40,seconds=1", "seconds and samples say the same"),
        ("n, 2, t", "rate=1000", "takes no sounds, which are"),
        ("n, t", "rate=1000,size=3", "size: says nothing about sounds"),
    ],
)
def test_what_does_not_fit(file, shape, said, pattern):
    with pytest.raises(InputError, match=pattern):
        opened(model(shape), file, said)


def test_damaged_files(tmp_path):
    for content in (b"", b"RIFF", b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + bytes(16)):
        (tmp_path / "s.wav").write_bytes(content)
        with pytest.raises(InputError, match=r"s\.wav: (cannot be read as a sound|holds no)"):
            opened(model(), tmp_path / "s.wav", "rate=1000")


def test_states_that_are_filled(file):
    """As voice detectors have them: sizes that no sample tells are given."""
    states = net(
        "float[n, t] x, float[2, ?, 3] state, int64 sr",
        "float[n, t] y, float[2, b, 3] last, int64 rate",
        "y = Identity(x)\n last = Identity(state)\n rate = Identity(sr)",
    )
    said = "rate=1000,samples=100,fill.state=0.5,fill.sr=1000,batch=1"
    with pytest.raises(InputError, match=r"fill\.state: write --shape state:1=SIZE"):
        open_data(file, states, preprocess=said)
    data = open_data(file, states, preprocess=said, shapes={"state:1": 1})
    assert [f["x"].shape for f in data] == [(1, 100)] * 3
    first = data.first()
    assert first["state"].shape == (2, 1, 3)
    assert first["state"].min() == 0.5
    assert first["sr"].shape == ()


def test_rates_that_no_sound_has(tmp_path, wave):
    wavfile.write(tmp_path / "s.wav", 2**30 + 1, wave)
    with pytest.raises(InputError, match="1073741825 samples a second cannot become 1000"):
        opened(model(), tmp_path / "s.wav", "rate=1000")
