"""The import name: `from codeseg import Segmenter`; public names are loaded on first use.

In: a name that docs/api.md documents. Out: the object. Importing codeseg alone loads no torch.
"""

import importlib
import os
from typing import Any

# Torch reads these when it loads, which is later in every command, Ray worker and user's program.
# Under load, threads that spin while they wait for each other are 10 to 20 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

PUBLIC = {
    "Segmenter": "model.inference.segmenter",
    "Segmentation": "model.results.segmentation",
    "Segment": "model.results.segmentation",
    "read_words": "model.inference.vocabulary",
    "PredictionSettings": "model.inference.settings",
    "WordSegments": "model.inference.word_segments",
    "rgb_pixels": "model.pictures.pixels",
    "load_model": "model.checkpoint",
    "load_checkpoint": "model.checkpoint",
    "save_checkpoint": "model.checkpoint",
    "push_to_hub": "model.checkpoint",
    "CoDe": "model.code.codecomposition",
    "CoDeConfig": "model.code.config",
    "Recipe": "stages.training.recipes",
    "TrainConfig": "stages.training.recipes",
    "resolve": "stages.training.recipes",
    "fit": "stages.training.loop",
    "FeatureStream": "pipeline.stream.batches",
    "Batch": "model.code.batch",
    "Position": "pipeline.stream.collate",
    "Storage": "pipeline.engine.storage",
    "Ledger": "pipeline.engine.ledger",
    "ShardRecord": "pipeline.engine.ledger",
    "load_manifest": "pipeline.manifests",
    "Manifest": "pipeline.manifests",
    "load_benchmark": "pipeline.benchmark.manifest",
    "Benchmark": "pipeline.benchmark.manifest",
    "BenchmarkData": "pipeline.benchmark.manifest",
    "Audit": "pipeline.audit.database",
    "Finding": "pipeline.audit.database",
}
"""Public name -> the module that defines it."""

__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name's module on first use."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'codeseg' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"codeseg.{PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *PUBLIC})
