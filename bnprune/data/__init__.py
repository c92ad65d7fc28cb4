"""Data sets: three splits that serve batches by sample index, exactly reproducible from any step."""

from bnprune.data.memory import MemorySplit
from bnprune.data.sets import NAMES, load_data, splits_of
from bnprune.data.splits import Batch, Split, Splits
from bnprune.data.stream import StreamSplit

__all__ = ["NAMES", "Batch", "MemorySplit", "Split", "Splits", "StreamSplit", "load_data", "splits_of"]
