"""The training input: records to batches, by grain.

Sample n of a run is a function of the config and n: sets are shuffled anew in every epoch and mixed
by weight, each sample draws from a generator of its own, and batch b is samples b * batch_size
onwards. Which process makes a row, in how many threads, and where a run was interrupted changes
nothing. The position is therefore one number.

Threads make the samples: decoding, scaling and colour conversion, nearly all of the work, run in
FFmpeg without Python's lock, so that processes would only add copies, start-up and state.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial

import grain
import numpy as np

from animate_jax.data.config import DataConfig
from animate_jax.data.records import open_records
from animate_jax.data.sample import make_sample
from animate_jax.errors import UserError

FILLER = -1  # the three numbers of `record` in rows that fill up the last batch of validation


class Batches(grain.DatasetIterator):
    """Yields this process's rows of one batch after the other, as dicts of numpy arrays:

    reference uint8 (rows, height, width, 3), reference_keypoints float32 (rows, 134, 3), frames
    uint8 (rows, frames, height, width, 3), keypoints float32 (rows, frames, 134, 3), record int32
    (rows, 3): number of the set, of the record in it, and of the first frame. They are the given
    `shards` of `shard_count` equal parts of the batch, one after the other.

    The state is {"next_batch": n}, the same on all processes and for any number of them; where a
    step takes one batch, n is the step. Works with `grain.checkpoint.CheckpointSave`.
    """

    def __init__(
        self,
        samples: grain.MapDataset,
        config: DataConfig,
        shards: Sequence[int],
        shard_count: int,
    ):
        super().__init__()
        self._next_batch = 0
        self._running = []  # the iterator that is under way, if any
        # Also where nobody closes it: grain's threads must end before Python's modules do.
        weakref.finalize(self, _close, self._running)
        if config.batch_size % shard_count:
            raise UserError(
                f"a batch of {config.batch_size} cannot be split into {shard_count} parts;"
                " make config.data.batch_size a multiple of that"
            )
        size = config.batch_size // shard_count
        rows = [shard * size + row for shard in shards for row in range(size)]
        self._config, self._rows = config, len(rows)
        self._samples = grain.MapDataset.source(_Rows(samples, config.batch_size, rows))

    def __len__(self) -> int:
        """Batches in all; of training, as good as infinite."""
        return len(self._samples) // self._rows

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._running:
            self._running.append(iter(self._from(self._next_batch)))
        batch = next(self._running[0])
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, int]) -> None:
        _close(self._running)
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Stops the threads."""
        _close(self._running)
        self._closed = True

    def _from(self, batch):
        workers, prefetch = self._config.workers, self._config.prefetch
        ahead = max(workers, prefetch * self._rows) if workers else 0
        dataset = self._samples[batch * self._rows :]
        dataset = dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)
        )
        dataset = dataset.batch(self._rows, drop_remainder=True)
        if workers:
            dataset = grain.experimental.ThreadPrefetchIterDataset(
                dataset, prefetch_buffer_size=prefetch
            )
        return dataset


def training_batches(
    config: DataConfig,
    *,
    shards: Sequence[int] = (0,),
    shard_count: int = 1,
    sources: Sequence | None = None,
) -> Batches:
    """Endless batches, shuffled and mixed by weight.

    sources: the records of each set where they are not to be opened from their paths; anything with
    `len(source)` and `source[i]`. Raises UserError for sets that are missing or empty.
    """
    sources = _open_sets(config, sources)
    seeds = np.random.SeedSequence(config.seed).generate_state(len(sources) + 1).tolist()
    places = [
        grain.MapDataset.source(_Places(number, len(source))).shuffle(seed=seed).repeat()
        for number, (source, seed) in enumerate(zip(sources, seeds))
    ]
    mixed = grain.MapDataset.mix(places, [one.weight for one in config.sets])
    samples = mixed.random_map(partial(_sample, config, sources), seed=seeds[-1])
    return Batches(samples, config, shards, shard_count)


def validation_batches(
    config: DataConfig,
    *,
    shards: Sequence[int] = (0,),
    shard_count: int = 1,
    sources: Sequence | None = None,
) -> Batches:
    """One sample of every record, in order; the same ones whenever it is called.

    Weights count for nothing. The last batch is filled up from the beginning, with FILLER in
    `record`, for means over real rows only. sources and errors as in training_batches.
    """
    sources = _open_sets(config, sources)
    places = grain.MapDataset.concatenate(
        [
            grain.MapDataset.source(_Places(number, len(source)))
            for number, source in enumerate(sources)
        ]
    )
    count = len(places)
    full = -(-count // config.batch_size) * config.batch_size
    samples = places.repeat(-(-full // count))[:full]
    samples = samples.random_map(partial(_sample, config, sources), seed=config.seed)
    samples = samples.map_with_index(partial(_mark_filler, count))
    return Batches(samples, config, shards, shard_count)


class _Places:
    """Set and record number of every record of a set."""

    def __init__(self, number, length):
        self._number, self._length = number, length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return self._number, index


class _Rows:
    """A process's rows of every batch, as one source."""

    def __init__(self, samples, batch_size, rows):
        self._samples, self._batch_size, self._rows = samples, batch_size, rows

    def __len__(self):
        return len(self._samples) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        batch, row = divmod(index, len(self._rows))
        return self._samples[batch * self._batch_size + self._rows[row]]


def _close(running):
    while running:
        running.pop().close()


def _open_sets(config, sources):
    if sources is None:
        sources = [open_records(one.path, one.split) for one in config.sets]
    for one, source in zip(config.sets, sources, strict=True):
        if not len(source):
            raise UserError(f"{one.path}: {one.split} holds no records; write some, or remove it")
    return sources


def _sample(config, sources, place, rng):
    number, index = place
    sample = make_sample(sources[number][index], config, rng)
    sample["record"] = np.array([number, index, sample.pop("first")], np.int32)
    return sample


def _mark_filler(count, index, sample):
    if index >= count:
        sample["record"][:] = FILLER
    return sample
