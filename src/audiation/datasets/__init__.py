"""Data sets: the official download as it comes -> tracks with annotations. One file per data set."""

from audiation.datasets.base import DATASETS, Dataset, DatasetInfo, Skipped, Track

__all__ = ["DATASETS", "Dataset", "DatasetInfo", "Skipped", "Track"]
