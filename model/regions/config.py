"""Settings of SCG (METHOD §9), checked. Light: what `--help` needs, no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

CLIP = "clip"  # the source of patch features that needs no second model

Method = Literal["kmeans", "spectral"]
Pool = Literal["max", "soft"]

MOST_REGIONS = 256  # region numbers are uint8


@dataclass(frozen=True)
class Grouping:
    """The settings that divide a picture into regions; refuses values that are out of range."""

    method: Method = "kmeans"
    regions: int = 16  # K: number of initial clusters and maximum number of final regions
    min_patches: int = 2  # smaller regions are merged into the most similar neighbor
    seed: int = 0  # of the initial centers of k-means

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise ValueError(f"unknown grouping method {self.method!r}: use one of {known}")
        if not 1 <= self.regions <= MOST_REGIONS:
            raise ValueError(f"regions must be 1 to {MOST_REGIONS}, not {self.regions}")
        if self.min_patches < 1:
            raise ValueError(f"min_patches must be at least 1, not {self.min_patches}")
