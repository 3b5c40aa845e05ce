import json
import os

import pytest

from animate_jax.errors import UserError
from animate_jax.evaluation.protocol import read_protocol
from data_prep.layouts import find_videos


def touch(root, *names, content=b"x"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_folder_takes_videos_in_natural_order(tmp_path):
    names = ["take10.mp4", "take2.MOV", "a b/ünï côde.webm", "a b/deep/er/clip.mkv"]
    touch(tmp_path, *names, "photo.png", "notes.txt", ".hidden.mp4", ".trash/x.mp4", "mp4")
    videos = find_videos(tmp_path)
    assert [v.source for v in videos] == [names[3], names[2], names[1], names[0]]
    assert [v.path for v in videos] == [str(tmp_path / v.source) for v in videos]
    assert {(v.size, v.fps, v.split) for v in videos} == {(1, None, None)}


def test_results_below_the_videos_are_no_videos(tmp_path):
    touch(tmp_path, "a.mp4", "out/clips/a.mp4", "out/work/clips/a/b.mp4", "outside.mp4")
    videos = find_videos(tmp_path, without=tmp_path / "out")
    assert [v.source for v in videos] == ["a.mp4", "outside.mp4"]


def test_linked_folders_are_followed_once(tmp_path):
    touch(tmp_path, "far/a.mp4", "videos/b.mp4")
    os.symlink(tmp_path / "far", tmp_path / "videos" / "link")
    os.symlink(tmp_path / "videos", tmp_path / "videos" / "loop")
    assert [v.source for v in find_videos(tmp_path / "videos")] == ["b.mp4", "link/a.mp4"]


def test_keys_are_safe_and_differ(tmp_path):
    names = ["a b.mp4", "a_b.mp4", "a/b.mp4", "ü.mp4", "é.mp4", "a b.mov", "x" * 120 + ".mp4"]
    touch(tmp_path, *names)
    keys = [video.key for video in find_videos(tmp_path)]
    assert len(set(keys)) == len(names)
    assert all(key.isascii() and len(key) < 50 and not set(key) & set("/\\. ") for key in keys)


def test_names_that_are_not_unicode_can_be_written_down(tmp_path):
    names = [os.fsdecode(name) for name in (b"caf\xe9.mp4", b"caf\xe8.mp4")]
    touch(tmp_path, *names, *(f"train/{name}" for name in names))
    for layout, count in (("folder", 4), ("ubc-fashion", 2)):
        videos = find_videos(tmp_path, layout)
        assert all(os.path.isfile(video.path) and video.source.isascii() for video in videos)
        assert len({video.key for video in videos}) == count
    (tmp_path / "meta.json").write_text(json.dumps([{"video_path": f"{names[0]}"}]))
    (video,) = find_videos(tmp_path / "meta.json", "meta-json")
    assert video.source.encode() and video.key and os.path.isfile(video.path)


def test_ubc_fashion_keeps_its_split(tmp_path):
    touch(tmp_path, "train/91b.mp4", "train/91a.mp4", "test/A1.mp4", "train/sub/no.mp4", "no.mp4")
    videos = find_videos(tmp_path, "ubc-fashion")
    assert [(v.source, v.split) for v in videos] == [
        ("test/A1.mp4", "validation"),
        ("train/91a.mp4", "train"),
        ("train/91b.mp4", "train"),
    ]


def test_tiktok_takes_directories_of_frames(tmp_path):
    above, tmp_path = tmp_path, tmp_path / "TikTok_dataset"
    for folder in ("00010", "00002"):
        names = [f"{folder}/{kind}/000{i}.png" for kind in ("images", "masks") for i in (1, 2)]
        touch(tmp_path, *names, f"{folder}/densepose/1.png")
    videos = find_videos(tmp_path, "tiktok")
    assert [(v.source, v.path, v.fps, v.size) for v in videos] == [
        ("00002", str(tmp_path / "00002/images"), 30.0, 2),
        ("00010", str(tmp_path / "00010/images"), 30.0, 2),
    ]
    sources = [v.source for v in find_videos(above, "tiktok")]
    assert sources == ["TikTok_dataset/00002", "TikTok_dataset/00010"]


def test_meta_json_takes_paths_from_the_file_or_the_working_directory(tmp_path, monkeypatch):
    touch(tmp_path, "meta/beside.mp4", "here/there.mp4", "far.mp4")
    monkeypatch.chdir(tmp_path)
    names = ["beside.mp4", "here/there.mp4", str(tmp_path / "far.mp4"), "../gone.mp4"]
    entries = [{"video_path": name, "kps_path": "k.mp4"} for name in names]
    (tmp_path / "meta" / "all.json").write_text(json.dumps(entries))
    videos = find_videos("meta/all.json", "meta-json")
    assert [v.source for v in videos] == names
    places = ["meta/beside.mp4", "here/there.mp4", "far.mp4", "gone.mp4"]
    assert [os.path.abspath(v.path) for v in videos] == [str(tmp_path / p) for p in places]
    assert [v.size for v in videos] == [1, 1, 1, 0]
    assert all(not set(v.key) & set("/.") for v in videos)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[{", "not JSON"),
        ('{"video_path": "a.mp4"}', "not a list"),
        ('["a.mp4"]', "entry 0 has no video_path"),
        ('[{"video_path": "a.mp4"}, {"kps_path": "b.mp4"}]', "entry 1 has no video_path"),
        ('[{"video_path": 3}]', "entry 0 has no video_path"),
        ('[{"video_path": "a\\u0000b"}]', "entry 0 has no video_path"),
        ("[]", "holds no videos"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_malformed_meta_json(tmp_path, content, message):
    path = tmp_path / "meta.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        find_videos(path, "meta-json")


def test_places_without_videos(tmp_path):
    touch(tmp_path, "photo.png")
    with pytest.raises(UserError, match="there is no such directory"):
        find_videos(tmp_path / "gone")
    with pytest.raises(UserError, match="is not a directory"):
        find_videos(tmp_path / "photo.png")
    with pytest.raises(UserError, match="holds no videos in the layout folder; expected files"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match="expected train/"):
        find_videos(tmp_path, "ubc-fashion")
    with pytest.raises(UserError, match="expected 00001/images"):
        find_videos(tmp_path, "tiktok")
    with pytest.raises(UserError, match="give the .json file itself"):
        find_videos(tmp_path, "meta-json")
    with pytest.raises(UserError, match="there is no such file"):
        find_videos(tmp_path / "gone.json", "meta-json")
    with pytest.raises(UserError, match="choose one of folder, meta-json"):
        find_videos(tmp_path, "laion")


def test_what_the_tiktok_protocol_tests_on_is_not_trained_on(tmp_path):
    names = ("00001", "00334", "00335", "00339", "00340", "00341", "dance")
    touch(tmp_path, *(f"{name}/images/1.png" for name in names))
    splits = {v.source: v.split for v in find_videos(tmp_path, "tiktok")}
    held = {name for name, split in splits.items() if split == "validation"}
    assert held == {"00335", "00339", "00340"} and set(splits.values()) == {None, "validation"}
    assert held > set(read_protocol("tiktok")["split"]["ids"]) & set(names)


def test_the_place_of_the_videos_is_none_for_results(tmp_path):
    touch(tmp_path, "a.mp4")
    with pytest.raises(UserError, match="is where the videos are"):
        find_videos(tmp_path, without=tmp_path)
