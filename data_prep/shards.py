"""Writes a tensorflow-datasets data set of clips in array_record shards, without TensorFlow.

tensorflow-datasets' own builders shuffle through TensorFlow's files beyond 1 GB and let protobuf
order the fields at random, so shards are written here, with its features and its serialiser: the
same records give the same bytes.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from animate_jax.data.records import NAME, VERSION, shard_name
from animate_jax.errors import UserError
from animate_jax.pose.keypoints import POINTS

SHARD_BYTES = 256 * 2**20
OPTIONS = "group_size:1"  # records are read singly


@dataclass(frozen=True)
class Record:
    """A record to come: `load()` gives the features, about `size` bytes of them."""

    name: str
    size: int
    load: Callable[[], dict]


def record_writers():
    """The packages that write records, as `write_shards` wants them; UserError without them."""
    try:
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.core import dataset_info, example_serializer, naming, splits
    except ImportError as error:
        raise UserError(
            f"writing records needs a package ({error}); install: pip install 'animate-jax[data]'"
        ) from error
    return tfds, ArrayRecordWriter, dataset_info, example_serializer, naming, splits


def write_shards(
    directory: Path,
    splits: dict[str, Sequence[Record]],
    *,
    shard_bytes: int = SHARD_BYTES,
    licence: str = "",
    written: Callable[[], None] = lambda: None,
) -> None:
    """Writes `directory`/animate_clips/1.0.0 with the splits that have records.

    Records are ordered by a hash of their names, so that neighbours come from anywhere. Shards hold
    at most `shard_bytes`, or one record. `written` is called after each. Raises UserError where
    tensorflow-datasets is missing, and OSError.
    """
    tfds, Writer, dataset_info, example_serializer, naming, tfds_splits = record_writers()
    target = directory / NAME / VERSION
    target.mkdir(parents=True)
    whole = tfds.features.Scalar(np.int32)
    features = tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "clip": tfds.features.Tensor(shape=(), dtype=np.object_),
            "keypoints": tfds.features.Tensor(shape=(None, POINTS, 3), dtype=np.float32),
            "frames": whole,
            "width": whole,
            "height": whole,
            "fps": tfds.features.Scalar(np.float32),
            "source": tfds.features.Text(),
            "licence": tfds.features.Text(),
        }
    )
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    template = naming.ShardedFileTemplate(
        dataset_name=NAME, data_dir=target, filetype_suffix="array_record"
    )
    infos = []
    for split, records in splits.items():
        if not records:
            continue
        shards, size = _shards(records, shard_bytes), 0
        for index, shard in enumerate(shards):
            path = target / shard_name(split, index, len(shards))
            writer = Writer(str(path), OPTIONS)
            for record in shard:
                example = serializer.get_tf_example(features.encode_example(record.load()))
                data = example.SerializeToString(deterministic=True)
                writer.write(data)
                size += len(data)
                written()
            writer.close()
        infos.append(
            tfds_splits.SplitInfo(
                name=split,
                shard_lengths=[len(shard) for shard in shards],
                num_bytes=size,
                filename_template=template.replace(split=split),
            )
        )
    identity = dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=str(target), module_name=__name__
    )
    info = dataset_info.DatasetInfo(
        builder=identity,
        features=features,
        description="Clips of one person with keypoints, for animate_jax.",
        license=licence,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds_splits.SplitDict(infos))
    info.write_to_directory(target)


def _shards(records: Iterable[Record], most: int) -> list[list[Record]]:
    shards, room = [], 0
    for record in sorted(records, key=lambda r: (_digest(r.name), r.name)):
        if not shards or record.size > room:
            shards.append([])
            room = most
        shards[-1].append(record)
        room -= record.size
    return shards


def _digest(name):
    return hashlib.sha256(name.encode()).hexdigest()
