"""Detections of every layout, mean average precision, and boxes in tables and in COCO's JSON."""

import json

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.runtime.data import open_data
from lwqc.runtime.metrics.boxes import Found, overlaps, reader, suppressed
from lwqc.runtime.metrics.named import metric_of
from lwqc.runtime.metrics.precision import mean_average_precision
from tests.sources import flat, net, save_image

BOXES = np.array([[10, 20, 30, 60], [100, 100, 200, 150], [10, 20, 31, 61]], np.float32)
CENTRES = np.concatenate(((BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]), 1)
SCORES = np.array([[0.9, 0.0], [0.1, 0.7], [0.8, 0.0]], np.float32)
ROWS = np.concatenate((CENTRES, SCORES), 1)
WHOLE = np.concatenate((CENTRES, np.ones((3, 1), np.float32), SCORES), 1)
CLASSES, BEST = np.array([0, 1, 0]), np.array([0.9, 0.7, 0.8], np.float32)
LISTED = np.concatenate((BOXES, BEST[:, None], CLASSES[:, None]), 1).astype(np.float32)


def found(*rows):
    """Of rows class, score, left, top, right, bottom."""
    array = np.array(rows, np.float64).reshape(-1, 6)
    return Found(array[:, 0].astype(int), array[:, 1], array[:, 2:])


@pytest.mark.parametrize(
    ("outputs", "options", "kept"),
    [
        ({"y": ROWS.T[None]}, {}, 2),  # YOLOv8
        ({"y": ROWS[None].repeat(3, 0)}, {}, 2),  # RT-DETR as Ultralytics writes it
        ({"y": WHOLE[None]}, {"objectness": True}, 2),  # YOLOv5
        ({"y": LISTED[None]}, {}, 3),  # with suppression in the graph
        ({"b": BOXES[None], "s": SCORES[None]}, {}, 2),
        ({"b": CENTRES[None], "s": SCORES[None]}, {"boxes": "cxcywh"}, 2),
        ({"b": BOXES, "l": CLASSES, "s": BEST}, {}, 3),  # torchvision
        ({"b": BOXES[None], "s": BEST[None], "c": CLASSES[None].astype(np.float32)}, {}, 3),
    ],
    ids=["v8", "rows", "v5", "listed", "two", "centres", "torchvision", "tensorflow"],
)
def test_layouts(outputs, options, kept):
    read = reader(outputs, **options)
    assert read is not None
    one = read(outputs, 0.5)[0]
    assert one.classes.tolist() == ([0, 1] if kept == 2 else [0, 0, 1])
    np.testing.assert_allclose(one.boxes[0], BOXES[0])
    np.testing.assert_allclose(one.boxes[-1], BOXES[1])
    assert len(read(outputs, 0.85)[0].scores) == 1


def test_a_hundred_of_each_class_are_judged():
    """As pycocotools 2.0 has it: its largest number of detections is by image and category."""
    rows = np.zeros((1, 330, 6), np.float32)
    rows[0, :, :4] = np.arange(330)[:, None] * 20 + [0, 0, 10, 10]
    rows[0, :, 4] = np.linspace(0.99, 0.6, 330)
    rows[0, :150, 5], rows[0, 150:, 5] = 1, 2
    read = reader({"y": rows})
    assert read is not None
    kinds = read(({"y": rows}), 0.5)[0].classes
    assert np.bincount(kinds).tolist() == [0, 100, 100]


@pytest.mark.parametrize(
    "array", [np.eye(3, dtype=np.float32), np.full((1, 3, 8), 0.2, np.float32)], ids=["2d", "0..1"]
)
def test_what_is_no_detector(array):
    assert reader({"y": array}) is None
    assert reader({"y": array, "z": ROWS[None]}, "y") is None


def test_overlaps_and_suppression():
    np.testing.assert_allclose(
        overlaps(
            np.array([[0, 0, 2, 2.0]]), np.array([[1, 1, 3, 3], [5, 5, 6, 6], [1, 1, 1, 1.0]])
        ),
        [[1 / 7, 0, 0]],
    )
    same = np.array([[0, 0, 2, 2], [0, 0, 2, 2.1], [9, 9, 10, 10]])
    assert suppressed(np.array([0, 0, 0]), same, 0.7).tolist() == [0, 2]
    assert suppressed(np.array([0, 1, 0]), same, 0.7).tolist() == [0, 1, 2]


def test_average_precision_by_hand():
    """Two things; found the first, then a false one, then the second: recall 1/2 at precision 1,
    recall 1 at 2/3, read at 51 and 50 of 101 recalls."""
    right = [found([0, 1, 0, 0, 2, 2]), found([0, 1, 5, 5, 9, 9])]
    mine = [found([0, 0.9, 0, 0, 2, 2], [0, 0.8, 50, 50, 60, 60]), found([0, 0.7, 5, 5, 9, 9])]
    assert mean_average_precision(mine, right) == pytest.approx((51 + 50 * 2 / 3) / 101)
    twice = [found([0, 0.9, 0, 0, 2, 2], [0, 0.8, 0, 0, 2, 2]), found([0, 0.7, 5, 5, 9, 9])]
    assert mean_average_precision(twice, right) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert mean_average_precision(right, right) == 1
    assert mean_average_precision([found(), found()], right) == 0
    loose = [found([0, 0.9, 0, 0, 2, 1.55]), found([0, 0.7, 5, 5, 9, 9])]  # 0.775: six of ten
    assert 0.5 < mean_average_precision(loose, right) < 1
    assert mean_average_precision(loose, right, (0.5,)) == 1
    other = [found([1, 1, 0, 0, 2, 2]), found([0, 1, 5, 5, 9, 9])]
    assert mean_average_precision(right, other) == pytest.approx(0.5 * 0.5, abs=0.01)


def detector(value="float[n, 6, 3]"):
    return net(f"float[n, 3, 40, 60] image, {value} given", f"{value} y", "y = Identity(given)")


def of_model(spec, *given):
    model = net("float[n, 6, 3] x", "float[n, 6, 3] y", "y = Identity(x)")
    data = [{"x": np.float32(one)} for one in given]
    return metric_of(spec, model, open_data(data, model))


def test_detection_agreement_compares_boxes():
    x = ROWS.T[None].copy()
    metric = of_model("detection-agreement", x, x)
    assert metric.name == "detection-agreement against the original"
    assert metric(lambda feeds: {"y": feeds["x"]}) == 1
    moved = x.copy()
    moved[0, :2, 1] += 500
    assert metric(lambda feeds: {"y": moved}) == pytest.approx(1 / 3)  # one of both, two of either
    assert of_model("detection-agreement,score=0.75", x)(lambda feeds: {"y": moved}) == 1
    weak = x * np.float32([1, 1, 1, 1, 0.3, 0.3])[:, None]
    with pytest.raises(
        InputError, match=r"no score is 0.5 or more, the best is 0.27; write detection-agreement,"
    ):
        of_model("detection-agreement", weak)(lambda feeds: {"y": feeds["x"]})


def test_precision_against_the_original():
    x = ROWS.T[None]
    metric = of_model("map", x)
    assert metric.name == "map against the original"
    assert metric(lambda feeds: {"y": feeds["x"]}) == 1
    assert metric(lambda feeds: {"y": feeds["x"] * np.float32(0)}) == 0
    shifted = x.copy()
    shifted[0, 0] += 4  # of 20 and 100 pixels: 2/3 and 0.92 are shared
    found = lambda feeds: {"y": shifted}  # noqa: E731
    assert of_model("map50", x)(found) == 1
    assert 0 < metric(found) < 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("map,score=2", "map: score=2"),
        ("map,color=3", "map: color=3: expected score=, overlap="),
        ("map,score", "'score': expected KEY=VALUE"),
        ("map=z", r"map: no outputs are boxes and scores .* gives y \[1, 6, 3\]"),
    ],
)
def test_what_is_no_option(spec, message):
    with pytest.raises(InputError, match=message):
        of_model(spec, ROWS.T[None])


@pytest.fixture
def images(tmp_path):
    pytest.importorskip("PIL", reason="images need pillow, of the extra lwqc[data]")
    for i in range(2):
        save_image(tmp_path / "images" / f"{i}.png", flat((0, 0, 0), 40, 120))
    return tmp_path / "images"


def coco(path, boxes, images=("0.png", "1.png")):
    document = {
        "images": [{"id": i + 7, "file_name": name} for i, name in enumerate(images)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"image_id": 7 + i, "category_id": kind, "bbox": box, **more}
            for i, kind, box, more in boxes
        ],
    }
    path.write_text(json.dumps(document))
    return path


def boxes_of(images, said):
    model = net("float[n, 3, 40, 60] image", "float[n, 3, 40, 60] y", "y = Identity(image)")
    labels = open_data(images, model, preprocess=f"range=0..1,{said}").labels()
    assert labels is not None
    return [one.tolist() for one in labels.boxes]


@pytest.mark.parametrize(
    ("fit", "corners"),
    [
        ("stretch", [10, 10, 30, 20]),
        ("letterbox", [10, 15, 30, 20]),  # 60 x 20, with 10 above and below
        ("letterbox-topleft", [10, 5, 30, 10]),
        ("crop", [0, 10, 30, 20]),  # of 120 x 40 the middle 60
    ],
)
def test_boxes_move_with_the_pixels(images, tmp_path, fit, corners):
    """An image of 120 x 40 for an input of 60 x 40."""
    crowd = (0, 4, [0, 0, 9, 9], {"iscrowd": 1})
    file = coco(tmp_path / "b.json", [(0, 9, [20, 10, 40, 10], {}), crowd])
    assert boxes_of(images, f"boxes={file},{fit}") == [[[1, *corners]], []]


def test_tables_and_names_of_classes(images, tmp_path):
    table, classes = tmp_path / "b.csv", tmp_path / "c.txt"
    table.write_text("file,label,left,top,right,bottom\n1.png,dog,20,10,60,20\n")
    classes.write_text("dog\ncat\n")
    assert boxes_of(images, f"boxes={table}") == [[], [[0, 10, 10, 30, 20]]]
    file = coco(tmp_path / "b.json", [(1, 4, [20, 10, 40, 10], {})])
    assert boxes_of(images, f"boxes={file},classes={classes}") == [[], [[1, 10, 10, 30, 20]]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.csv", "file,label,left,top,right\n", "has no column bottom; expected file,label"),
        ("b.csv", "file,label,left,top,right,bottom\n0.png,a,1,2,x,4\n", "row 2"),
        ("b.csv", "file,label,left,top,right,bottom\n0.png,a,9,2,1,4\n", "ends before it begins"),
        ("b.csv", "file,label,left,top,right,bottom\nz.png,a,1,2,3,4\n", "names none of the im"),
        ("b.json", "{", "is no JSON"),
        ("b.json", "[]", "is not as COCO's annotations"),
        ("b.json", '{"images": [], "categories": []}', "KeyError"),
    ],
)
def test_bad_files_of_boxes(images, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        boxes_of(images, f"boxes={tmp_path / name}")


def test_precision_on_boxes_of_images(images, tmp_path):
    """What is found in shares of the sides is right in the first image alone."""
    file = coco(tmp_path / "b.json", [(0, 4, [20, 10, 40, 10], {}), (1, 4, [0, 0, 60, 20], {})])
    start = "c = Constant<value = float[1, 6, 1] {0.3333333, 0.375, 0.3333333, 0.25, 0.9, 0.1}>()\n"
    model = net(
        "float[1, 3, 40, 60] image", "float[1, 6, 1] y",
        f"{start} s = ReduceMin<keepdims=0>(image)\n y = Add(c, s)",
    )  # fmt: skip
    data = open_data(images, model, preprocess=f"range=0..1,boxes={file}")
    metric = metric_of("map,boxes=cxcywh", model, data)
    assert metric is not None
    assert metric.name == "map,boxes=cxcywh against the boxes"
    answer = np.float32([1 / 3, 0.375, 1 / 3, 0.25, 0.9, 0.1]).reshape(1, 6, 1)
    assert metric(lambda feeds: {"y": answer}) == pytest.approx(51 / 101)
    names = coco(tmp_path / "n.json", [(0, 4, [20, 10, 40, 10], {})])
    (tmp_path / "c.txt").write_text("a\nb\ncat\ndog\n")
    said = f"range=0..1,boxes={names},classes={tmp_path / 'c.txt'}"
    with pytest.raises(InputError, match="class 2: the model has 2 classes, from 0"):
        metric_of("map,boxes=cxcywh", model, open_data(images, model, preprocess=said))
