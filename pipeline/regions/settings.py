"""Resolve the settings of a root's regions and of the features they are made from. Light.

In: the command's options, ROOT's ledger/features/settings.json. Out: checked settings.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from codeseg.model.regions.config import CLIP, Grouping
from codeseg.pipeline.engine.stage import REGIONS
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.feature_settings import FeatureSettings


@dataclass(frozen=True)
class RegionSettings:
    """The settings that affect the regions of a root."""

    group_by: str = CLIP  # "clip", or a ViT of timm
    weights: str | None = None  # file of the ViT's weights; None = the hub's
    weights_sha256: str | None = None  # of that file
    views: int = 1  # V of the features
    grouping: Grouping = field(default_factory=Grouping)

    def fingerprint(self) -> str:
        """Return the fingerprint, which covers the weights' content but not their location."""
        return REGIONS.fingerprint(asdict(self))


def read_feature_settings(root: Storage) -> FeatureSettings:
    """Return the settings of the features that regions are made from.

    Raises:
        FileNotFoundError: there are no features.
        ValueError: the features have no stored views of the images.
    """
    settings = FeatureSettings.read(root)
    if settings.image_tokens == "none":
        raise ValueError(
            f"{root.uri} stores no fixed views to group into regions (--image-tokens none crops "
            f"each time); run `codeseg features {root.uri} --image-tokens int8`"
        )
    return settings


def weights_sha256(weights: str | None) -> str | None:
    """Return the SHA-256 of a weights file, so that different content makes regions stale.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if weights is None:
        return None
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"no weights file {weights}: give a file, or omit the option to use the hub's"
        )
    with Path(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
