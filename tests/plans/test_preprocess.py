"""What `--preprocess` says, as a text, a file and a mapping."""

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwqc.errors import InputError
from lwqc.plans.preprocess import Preprocess

WHOLE = st.integers(1, 9999)
SIDES = st.tuples(WHOLE, WHOLE)
NUMBERS = st.lists(st.integers(1, 99).map(lambda n: n / 8), min_size=1, max_size=3).map(tuple)


@hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)  # on a busy machine
@given(
    st.builds(
        Preprocess,
        size=SIDES,
        fit=st.sampled_from(["", "crop", "letterbox"]),
        range=st.just((-1.0, 1.0)),
        mean=NUMBERS,
        std=NUMBERS,
        length=st.none() | WHOLE,
        columns=st.lists(st.sampled_from(["a", "b c"]), max_size=2, unique=True).map(tuple),
        fill=st.just((("h", 0.5),)),
    )
)
def test_the_text_says_all_of_it(settings):
    assert Preprocess.parse(settings.text) == settings


def test_a_file_and_a_mapping_say_the_same(tmp_path):
    text = "size=320x48,letterbox,mean=0.5,0.25,0.5,std=1,range=-1..1,fill.sr=16000,classes=c.txt"
    (tmp_path / "p.toml").write_text(
        "size = [320, 48]\nletterbox = true\nmean = [0.5, 0.25, 0.5]\nstd = 1\n"
        'range = [-1, 1]\nclasses = "c.txt"\nfill.sr = 16000\n'
    )
    read = Preprocess.read(text)
    found = Preprocess.read(tmp_path / "p.toml")
    assert found.classes == str(tmp_path / "c.txt")
    assert found.text.replace(str(tmp_path) + "/", "") == read.text
    mapping = {"size": "320x48", "fit": "letterbox", "mean": (0.5, 0.25, 0.5), "std": 1}
    mapping |= {"range": "-1..1", "fill": {"sr": 16000}, "classes": "c.txt"}
    assert Preprocess.read(mapping) == read == Preprocess.read(read)
    assert Preprocess.read(None).text == ""


@pytest.mark.parametrize(
    ("said", "pattern"),
    [
        ("sice=3", "'sice' is no key of it; expected one of size, fit"),
        ("size=big", "size=big: 'big' is not a whole number"),
        ("size=0", "expected WIDTHxHEIGHT in pixels"),
        ("boxed", "'boxed': is no key=value; expected one of stretch"),
        ("size=3,4", "'4': is no key=value"),
        ("size=3,size=4", "size: is given twice"),
        ("range=1..0", "expected LOW..HIGH, such as 0..1"),
        ("range=1", "expected LOW..HIGH"),
        ("std=0", "expected numbers above 0"),
        ("mean=nan", "'nan' is not a finite number"),
        ("layout=hwc", "expected one of nchw, nhwc"),
        ("limit=0", "expected a whole number above 0"),
        ("fill.x=a", "'a' is not a finite number"),
        ({"size": None}, "size: a NoneType is no value for it"),
        ({"size": True}, "size: a bool is no value for it"),
        ("no.toml", "no.toml: cannot read the preprocessing: No such file"),
    ],
)
def test_what_is_no_preprocessing(said, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        Preprocess.read(said)
    assert "\n" not in str(caught.value)
