"""Folders of images as inputs: what is asked for, what is refused, and which numbers come out."""

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.runtime.data import data_sources, open_data
from lwqc.runtime.sources.folders import find
from tests.sources import flat, image_net, net, save_image

pytest.importorskip("PIL", reason="images need pillow, of the extra lwqc[data]")
RED = (255, 0, 51)


def opened(model, path, preprocess):
    data = open_data(path, model, preprocess=preprocess)
    return np.concatenate([next(iter(f.values())) for f in data]), data


def refused(model, path, preprocess, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        open_data(path, model, preprocess=preprocess).first()
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    for name, color in (("b/2.png", (0, 255, 0)), ("b/10.png", (9, 9, 9)), ("a/x.bmp", RED)):
        save_image(tmp_path / "images" / name, flat(color))
    return tmp_path / "images"


def test_pixels_become_numbers_in_the_order_of_names(folder):
    values, data = opened(image_net(), folder, "range=0..1,mean=0,0,0.2,std=0.5,1,1")
    assert values.shape == (3, 3, 4, 6)
    np.testing.assert_allclose(values[0, :, 0, 0], [2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(values[1, :, 0, 0], [9 / 255 / 0.5, 9 / 255, 9 / 255 - 0.2], 1e-5)
    np.testing.assert_allclose(values[2, :, 0, 0], [0, 1, -0.2], atol=1e-6)
    assert data.kind == "real"
    assert len(data) == 1
    assert data.labels().names == ("a", "b", "b")
    assert list(data.labels().numbers) == [0, 1, 1]


def test_what_was_found_out_is_recorded_and_gives_the_same(folder):
    values, data = opened(image_net(), folder, "mean=0.5,std=0.5,letterbox")
    assert data.preprocess == (
        "size=6x4,fit=letterbox,pad=114,resize=bilinear,color=rgb,layout=nchw,range=0..1,"
        "mean=0.5,std=0.5"
    )
    again, other = opened(image_net(), folder, data.preprocess)
    assert other.preprocess == data.preprocess
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("range=-1..1", (-1, 1)),
        ("range=0..255", (0, 255)),
        ("mean=127.5,std=127.5", (-1, 1)),
        ("mean=0.5,std=0.5", (-1, 1)),
    ],
)
def test_ranges(tmp_path, said, expected):
    save_image(tmp_path / "f" / "x.png", flat((0, 255, 0)))
    values, _ = opened(image_net(), tmp_path / "f", said)
    np.testing.assert_allclose(values[0, :2, 0, 0], expected, atol=1e-5)


def test_layouts_colours_and_types(folder):
    last, data = opened(image_net("batch, 4, 6, 3"), folder, "range=0..1,color=bgr")
    assert "layout=nhwc" in data.preprocess
    np.testing.assert_allclose(last[0, 0, 0], [0.2, 0, 1], atol=1e-6)
    gray, _ = opened(image_net("batch, 1, 4, 6"), folder, "range=0..1")
    assert gray.shape == (3, 1, 4, 6)
    plain, _ = opened(image_net("batch, 4, 6"), folder, "range=0..1")
    np.testing.assert_array_equal(plain, gray[:, 0])
    bytes_, _ = opened(image_net(dtype="uint8"), folder, None)
    assert bytes_.dtype == np.uint8
    assert bytes_[0, 0, 0, 0] == 255
    half, _ = opened(image_net(dtype="float16"), folder, "range=0..1")
    assert half.dtype == np.float16


def test_fits(tmp_path):
    wide = np.concatenate([flat((200, 0, 0), 8, 8), flat((0, 0, 200), 8, 8)], 1)
    save_image(tmp_path / "f" / "x.png", wide)
    any_size = image_net("batch, 3, h, w")
    boxed, _ = opened(any_size, tmp_path / "f", "size=8,letterbox,range=0..255,pad=7")
    assert boxed.shape == (1, 3, 8, 8)
    assert set(boxed[0, 0, [0, 1, 6, 7]].ravel()) == {7}
    assert boxed[0, 0, 4, 0] == 200
    top, _ = opened(any_size, tmp_path / "f", "size=8,letterbox-topleft,range=0..255,pad=7")
    assert top[0, 0, 0, 0] == 200
    assert set(top[0, 0, 4:].ravel()) == {7}
    cropped, _ = opened(any_size, tmp_path / "f", "size=8,crop,range=0..255,resize=nearest")
    assert cropped[0, 0, 0, 0] == 200
    assert cropped[0, 2, 0, -1] == 200
    stretched, _ = opened(any_size, tmp_path / "f", "size=8x4,range=0..255,resize=nearest")
    assert stretched.shape == (1, 3, 4, 8)


def test_a_camera_says_which_side_is_up(tmp_path):
    from PIL import Image

    picture = Image.fromarray(np.concatenate([flat((0, 0, 0), 4, 3), flat(RED, 4, 3)], 1))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "f").mkdir()
    picture.save(tmp_path / "f" / "x.png", exif=exif)
    values, _ = opened(image_net(), tmp_path / "f", "range=0..255")
    assert values[0, 0, 0, 0] == 255


@pytest.mark.parametrize(
    ("model", "said", "pattern"),
    [
        (image_net(), None, r"input image \[batch, 3, 4, 6\]: write what pixels become, range="),
        (image_net(), "range=0..1,size=7", "size=7x7 does not fit; it takes size=6x4"),
        (image_net(), "range=0..1,color=gray", "takes 3 channels; color=gray has not"),
        (image_net(), "range=0..1,mean=1,2", "mean: has 2 numbers; expected 1 or 3"),
        (image_net(), "range=0..1,pad=3", "pad: is the margin of letterbox"),
        (image_net(), "range=0..1,rate=3", "rate: says nothing about images; for them there are"),
        (image_net("batch, 3, h, w"), "range=0..1", "write size=WIDTHxHEIGHT$"),
        (image_net("batch, 3, h, w"), None, "write size=WIDTHxHEIGHT; write what pixels become"),
        (image_net("batch, c, h, w"), "range=0..1", "write layout=nchw or layout=nhwc"),
        (image_net("batch, 5, 4, 6"), "range=0..1,layout=nchw", "takes 5 channels"),
        (image_net("batch, 6"), "range=0..1", "takes no images, which have 4 axes"),
        (image_net(dtype="int64"), "range=0..1", "images are floats or uint8"),
        (image_net(dtype="uint8"), "range=0..1", "takes bytes as they are"),
        (image_net("2, 3, 4, 6"), "range=0..1", "3 samples are not a multiple .* limit=2"),
        (image_net("2, 3, 4, 6"), "range=0..1,batch=3", "batch=3: the model takes batch=2"),
        (image_net(), "range=0..1,fill.z=0", "fill.z: the model has no such input"),
        (
            net("float[n, 3, 4, 6] a, float[n] b", "float[n] y", "y = Identity(b)"),
            "range=0..1",
            "images give one input, and the model asks for a, b: write fill.INPUT=NUMBER",
        ),
    ],
)
def test_what_does_not_fit_is_a_line_that_says_what_to_write(folder, model, said, pattern):
    refused(model, folder, said, pattern)


def test_inputs_that_are_the_same_for_all(folder):
    model = net("float[n, 3, 4, 6] a, float[n, 2] b", "float[n, 2] y", "y = Identity(b)")
    (feeds,) = open_data(folder, model, preprocess="range=0..1,fill.b=0.5")
    np.testing.assert_array_equal(feeds["b"], np.full((3, 2), 0.5, np.float32))


def test_damaged_and_other_files(folder, tmp_path):
    (folder / "notes.md").write_text("about")
    (folder / ".hidden.png").write_text("no image")
    assert (
        "1 files there are none of them"
        in open_data(folder, image_net(), preprocess="range=0..1").description
    )
    (folder / "a" / "y.png").write_bytes(b"\x89PNG no more than that")
    refused(image_net(), folder, "range=0..1", "y.png: cannot be read as an image")
    (folder / "a" / "y.wav").write_bytes(b"")
    refused(image_net(), folder, "range=0..1", "holds images and sounds: give a folder of one kind")
    (tmp_path / "empty").mkdir()
    refused(image_net(), tmp_path / "empty", "", "holds no .npz files, .npy files or any of .png")


def test_files_that_are_read_are_known(folder, tmp_path):
    (tmp_path / "p.toml").write_text('range = "0..1"\nclasses = "c.txt"\n')
    found = data_sources(str(folder), str(tmp_path / "p.toml"))
    assert {folder / "a/x.bmp", tmp_path / "p.toml", tmp_path / "c.txt"} <= set(found)


def test_samples_are_decoded_when_they_are_asked_for(tmp_path, monkeypatch):
    """And those that do not fit into the room for kept batches again each time."""
    from lwqc.runtime.sources import images, samples

    for i in range(6):
        save_image(tmp_path / "f" / f"{i}.png", flat((i, i, i)))
    decoded = []
    open_image = images.open_image
    monkeypatch.setattr(images, "open_image", lambda p: decoded.append(p) or open_image(p))
    monkeypatch.setattr(samples, "_KEPT", 2 * 3 * 4 * 6 * 4)
    data = open_data(tmp_path / "f", image_net(), preprocess="range=0..255,batch=2")
    assert len(decoded) == 2
    for _ in range(2):
        assert [f["image"][0, 0, 0, 0] for f in data] == [0, 2, 4]
    assert len(decoded) == 2 + 2 * 4
    assert [len(f["image"]) for f in open_data(tmp_path / "f", image_net(),
            preprocess="range=0..1,limit=3,batch=2")] == [2, 1]  # fmt: skip


def test_labels_of_a_table(folder, tmp_path):
    table, classes = tmp_path / "l.csv", tmp_path / "c.txt"
    table.write_text("file,label\na/x.bmp,dog\n2.png,cat\nb/10.png,dog\n")
    classes.write_text("cat\ndog\n")
    said = f"range=0..1,labels={table},classes={classes}"
    labels = open_data(folder, image_net(), preprocess=said).labels()
    assert labels.names == ("dog", "dog", "cat")
    assert list(labels.numbers) == [1, 1, 0]
    table.write_text("a/x.bmp,dog\n")
    with pytest.raises(InputError, match=r"l\.csv: has no row for b/10.png"):
        open_data(folder, image_net(), preprocess=said).labels()


def test_folders_are_found_in_one_order(folder):
    assert [f.name for f in find(folder).files] == ["x.bmp", "10.png", "2.png"]
