"""features/NNNNN.arrow -> regions/NNNNN.parquet (REGIONS): the part-like regions of each view.

The self-supervised ViT runs on a CPU or GPU, the grouping on a CPU. Grouping by the CLIP's own keys
needs no second model and no image, only the stored trunk tokens.
"""

import time
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from codeseg.model.align.backbone import Backbone
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.regions.config import CLIP, Grouping
from codeseg.model.regions.grouping import group_patches
from codeseg.model.regions.patch_features import clip_keys
from codeseg.pipeline import schema
from codeseg.pipeline.engine.ledger import ShardRecord
from codeseg.pipeline.engine.progress import SHARD_ROWS
from codeseg.pipeline.engine.stage import FEATURES, REGIONS, commit
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.regions.settings import RegionSettings, read_feature_settings
from codeseg.pipeline.stream.feature_table import Block
from codeseg.pipeline.stream.region_table import encode_map

PICTURES_A_STEP = 32  # views that go through the ViT together


class RegionsWorker:
    """A ShardWorker that divides the views of a features shard into regions."""

    READS: ClassVar[dict[str, tuple[str, ...]]] = {
        "features": ("key", "pixels", "image_tokens", "image_scales")
    }
    MEMORY: ClassVar[int] = 1_000_000_000

    def __init__(self, root_uri: str, settings: dict[str, Any]) -> None:
        self._root = Storage.open(root_uri)
        grouping = Grouping(**settings["grouping"])
        self._settings = RegionSettings(**{**settings, "grouping": grouping})
        self._features = read_feature_settings(self._root)
        clip = self._features.clip
        side = clip.image_size // clip.patch_size
        self._grid = (side, side)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._clip: FrozenClip | None = None
        if self._settings.group_by == CLIP:
            self._clip = FrozenClip.load(clip.model, clip.pretrained, self._device)
            if self._clip.weights_sha256 != clip.weights_sha256:
                raise ValueError(
                    f"the weights {clip.pretrained} of {clip.model} are not those the "
                    f"features were made with; {FEATURES.again(self._root)}"
                )
        else:
            self._vit = Backbone(self._settings.group_by, self._settings.weights)
            self._vit.to(self._device)

    def process(self, shard: int, input: str) -> ShardRecord:
        """Write the regions of one shard and commit its record.

        Raises:
            ValueError: a picture's features are not finite; names file and key.
        """
        start = time.perf_counter()
        table = pa.Table.from_pylist(list(self._rows(shard)), schema.REGIONS)
        return commit(
            self._root, REGIONS, shard, input, self._settings.fingerprint(),
            lambda sink: pq.write_table(table, sink),
            rows_in=table.num_rows, rejected={}, start=start,
            versions={"torch": torch.__version__, "numpy": np.__version__},
        )  # fmt: skip

    def _rows(self, shard: int) -> Iterator[dict[str, Any]]:
        """Yield a row of REGIONS for every view of a shard."""
        path = FEATURES.path(shard)
        reader = pa.ipc.open_file(self._root.open_input(path))
        views = self._settings.views
        for number in range(reader.num_record_batches):
            block = Block(reader.get_batch(number), self._features)
            for first in range(0, block.rows, PICTURES_A_STEP):
                rows = range(first, min(first + PICTURES_A_STEP, block.rows))
                SHARD_ROWS.count(len(rows))
                features = self._patch_features(block, slice(rows.start, rows.stop))
                for i, features_QD in enumerate(features):
                    key, view = block.key(rows[i // views]), i % views
                    try:
                        regions = group_patches(features_QD, self._grid, self._settings.grouping)
                    except ValueError as error:
                        raise ValueError(f"{self._root.uri}/{path}: {key}: {error}") from error
                    yield {"key": key, "view": view, "regions": encode_map(regions)}

    @torch.no_grad()
    def _patch_features(self, block: Block, rows: slice) -> Tensor:
        """Return the features (rows·V, Q, D) of some rows' views, row-major."""
        pictures = block.picture_R[rows]
        if self._clip is None:
            pixels_BHWC = torch.from_numpy(block.pixels_KVHWC[pictures]).flatten(0, 1)
            pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).to(self._device)
            features: Tensor = self._vit(pixels_BCHW, self._grid)
            return features
        tokens = torch.from_numpy(block.image_tokens_KVPD[pictures].astype(np.float32))
        if self._features.image_tokens == "int8":
            tokens = tokens * torch.from_numpy(block.image_scales_KVP[pictures])[..., None]
        return clip_keys(self._clip, tokens.flatten(0, 1).to(self._device))
