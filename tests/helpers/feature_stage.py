"""Run the whole features stage without Ray, and write weights of a small self-supervised ViT."""

import timm
import torch

from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features.plan import make_plan
from codeseg.pipeline.features.vocabulary import VocabularyWorker
from codeseg.pipeline.features.worker import FeaturesWorker

VIT = "test_vit"  # of timm, for tests


def save_vit(file):
    """Write random weights of VIT; returns the path."""
    torch.manual_seed(0)
    torch.save(timm.create_model(VIT, num_classes=0).state_dict(), file)
    return str(file)


def run_stage(root, options):
    """Make what is missing with a worker's options; returns the settings."""
    settings, storage = options["features"], Storage.open(root)
    work, ledger = make_plan(storage, settings), Ledger(storage)
    ledger.write_settings("vocabulary", settings.vocabulary())
    ledger.write_settings(settings.stage.table, settings.to_json())
    if work.vocabulary.pending:
        VocabularyWorker(str(root), options).process(0, work.vocabulary.inputs[0])
    worker = FeaturesWorker(str(root), options)
    for shard in work.features.pending:
        worker.process(shard, work.features.inputs[shard])
    return settings
