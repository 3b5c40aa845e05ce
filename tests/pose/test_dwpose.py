"""DWPose's decoding, proven with small ONNX networks whose outputs follow from their input."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from animate_jax.errors import UserError
from animate_jax.pose import dwpose
from animate_jax.pose.estimate import estimate_keypoints, estimate_picture

CELLS = 80 * 80 + 40 * 40 + 20 * 20


def save(path, nodes, constants, inputs, outputs):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def row(cell, stride, box, scores):
    """A YOLOX row for the box (centre x, y, width, height) in network pixels."""
    x, y, width, height = box
    coded = [x / stride - cell[0], y / stride - cell[1]]
    return [*coded, *np.log([width / stride, height / stride]), *scores, *[0] * 79]


def save_detector(path):
    """Two people overlapped by a weaker box each, a weak person and a bicycle.

    The probability of an object is the blue value at pixel (10, 10), so that only BGR input, with
    the picture at the top left, shows them; the last person's is the grey of the padding.
    """
    table = np.zeros((1, CELLS, 85), np.float32)
    table[..., 4] = 0
    table[0, 25 * 80 + 37] = row((37, 25), 8, (300, 200, 120, 260), (1, 0.9))
    table[0, 25 * 80 + 38] = row((38, 25), 8, (304, 204, 118, 256), (1, 0.8))
    table[0, 6400 + 10 * 40 + 5] = row((5, 10), 16, (90, 170, 60, 180), (1, 0.6))
    table[0, 8000 + 3 * 20 + 3] = row((3, 3), 32, (500, 100, 40, 90), (1, 0.25))
    table[0, 8000 + 4 * 20 + 4] = [*row((4, 4), 32, (400, 300, 40, 90), (1, 0))[:6], 0.9, *[0] * 78]
    others = np.ones((1, CELLS, 85), np.float32)
    others[..., 4] = 0
    constants = {
        "table": table,
        "others": others,
        "objects": 1 - others,
        "begin": np.array([0, 0, 10, 10], np.int64),
        "end": np.array([1, 1, 11, 11], np.int64),
        "pad_begin": np.array([0, 0, 639, 639], np.int64),
        "pad_end": np.array([1, 1, 640, 640], np.int64),
        "one": np.array([1], np.int64),
        "full": np.array(1 / 255, np.float32),
        "grey": np.array(1 / 114, np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["image", "begin", "end"], ["blue"]),
        helper.make_node("Slice", ["image", "pad_begin", "pad_end"], ["padding"]),
        helper.make_node("Reshape", ["blue", "one"], ["blue1"]),
        helper.make_node("Reshape", ["padding", "one"], ["padding1"]),
        helper.make_node("Mul", ["blue1", "full"], ["is_blue"]),
        helper.make_node("Mul", ["padding1", "grey"], ["is_grey"]),
        helper.make_node("Mul", ["is_blue", "is_grey"], ["certainty"]),
        helper.make_node("Mul", ["objects", "certainty"], ["scaled"]),
        helper.make_node("Add", ["scaled", "others"], ["factors"]),
        helper.make_node("Mul", ["table", "factors"], ["out"]),
    ]
    return save(path, nodes, constants, {"image": [1, 3, 640, 640]}, {"out": [1, CELLS, 85]})


def save_pose_network(path):
    """SimCC scores that are the brightest red of every column and row, two bins per pixel."""
    nodes, constants, outputs = [], {"red": np.array(0, np.int64)}, {}
    nodes.append(helper.make_node("Gather", ["image", "red"], ["plane"], axis=1))
    constants["doubled"] = np.array([1, 1, 2], np.float32)
    for name, axis, bins in (("x", 1, 576), ("y", 2, 768)):
        constants[f"shape_{name}"] = np.array([1, 1, bins // 2], np.int64)
        constants[f"points_{name}"] = np.array([1, 133, bins], np.int64)
        nodes += [
            helper.make_node("ReduceMax", ["plane"], [f"max_{name}"], axes=[axis], keepdims=0),
            helper.make_node("Reshape", [f"max_{name}", f"shape_{name}"], [f"line_{name}"]),
            helper.make_node(
                "Resize",
                [f"line_{name}", "", "doubled"],
                [f"bins_{name}"],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
            helper.make_node("Expand", [f"bins_{name}", f"points_{name}"], [f"simcc_{name}"]),
        ]
        outputs[f"simcc_{name}"] = [1, 133, bins]
    return save(path, nodes, constants, {"image": [1, 3, 384, 288]}, outputs)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return save_detector(folder / "det.onnx"), save_pose_network(folder / "pose.onnx")


@pytest.fixture(scope="module")
def model(networks):
    return dwpose.load_dwpose(*networks)


@pytest.fixture
def frame():
    """320 x 240: blue, with one red dot inside each person's box."""
    picture = np.zeros((240, 320, 3), np.uint8)
    picture[..., 2] = 255
    picture[139:142, 129:132] = (255, 0, 255)
    picture[79:82, 49:52] = (255, 0, 255)
    return picture


def test_boxes_come_back_in_frame_pixels(model, frame):
    boxes = dwpose.detect_boxes(model, frame)
    # The picture is enlarged twice; weak, doubled and other objects are gone.
    np.testing.assert_allclose(boxes, [[120, 35, 180, 165], [30, 40, 60, 130]], atol=1e-3)


def test_detector_sees_bgr(model, frame):
    assert len(dwpose.detect_boxes(model, np.ascontiguousarray(frame[..., ::-1]))) == 0


def test_points_come_back_in_frame_pixels(model, frame):
    people = dwpose.find_people(model, frame)
    for person, (x, y) in zip(people, ((130, 140), (50, 80)), strict=True):
        assert person.points.shape == (134, 3)
        # One network pixel is at most 0.57 frame pixels here.
        assert np.abs(person.points[:, :2] - (x, y)).max() < 1.3
        np.testing.assert_array_equal(person.points[:, 2], 1)


def test_wide_boxes_keep_the_aspect(model, frame):
    from PIL import Image

    for box in ((20, 60, 300, 160), (100, 10, 160, 230), (-40, 100, 160, 300)):
        points = dwpose._points(model, Image.fromarray(frame), np.array(box, np.float32))
        step = max((box[2] - box[0]) / 288, (box[3] - box[1]) / 384) * 1.25
        distances = [np.abs(points[:, :2] - dot).max() for dot in ((130, 140), (50, 80))]
        assert min(distances) < 1 + step


def test_simcc_takes_the_lower_maximum():
    along_x, along_y = np.zeros((2, 20)), np.zeros((2, 30))
    along_x[0, 7], along_y[0, 12] = 0.9, 0.4
    along_x[1, 19], along_y[1, 1] = -0.2, 1.7
    along_x[1, :19] = -1
    points, scores = dwpose.decode_simcc(along_x, along_y)
    assert points.tolist() == [[3.5, 6.0], [9.5, 0.5]]
    assert scores.tolist() == [0.4, 0.0]


def clip_keypoints(frames, networks, **options):
    """Of frames of 320x240, 8 a second."""
    det, pose = networks
    told = dict(backend="dwpose", fps=8, width=320, height=240, det=det, pose=pose, progress=False)
    return estimate_keypoints(frames, **told, **options)


def test_clip_and_picture(networks, frame):
    det, pose = networks
    keypoints = clip_keypoints([frame] * 3, networks)
    assert keypoints.points.shape == (3, 134, 3)
    assert np.abs(keypoints.points[1, 5, :2] - (130, 140)).max() < 1.3
    second = clip_keypoints([frame], networks, person=1)
    assert np.abs(second.points[0, 5, :2] - (50, 80)).max() < 1.3
    largest = estimate_picture(frame, "dwpose", det=det, pose=pose)
    assert np.abs(largest[5, :2] - (130, 140)).max() < 1.3
    with pytest.raises(UserError, match="no person"):
        estimate_picture(np.zeros_like(frame), "dwpose", det=det, pose=pose)


def test_whoever_fills_a_frame_is_taken_where_nobody_is_found(networks):
    det, pose = networks
    empty = np.zeros((240, 320, 3), np.uint8)
    close_up = empty.copy()  # no blue: the detector sees nobody
    close_up[139:142, 129:132] = 255, 0, 0
    alone = estimate_picture(close_up, "dwpose", det=det, pose=pose)
    assert np.abs(alone[30, :2] - (130, 140)).max() < 2.5
    keypoints = clip_keypoints([close_up, empty, close_up], networks)
    assert (keypoints.points[..., 2].max(1) > 0).tolist() == [True, False, True]
    assert np.abs(keypoints.points[2, 30, :2] - (130, 140)).max() < 2.5


def test_unfit_files_are_refused(tmp_path, networks, frame):
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(UserError, match="not a readable .onnx"):
        dwpose.load_dwpose(tmp_path / "text.onnx", networks[1])
    exchanged = dwpose.load_dwpose(networks[1], networks[0])
    with pytest.raises(UserError, match="not YOLOX's output"):
        dwpose.find_people(exchanged, frame)
