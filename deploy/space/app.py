"""The page of `codeseg app` as a Space: a model named by its settings -> a server on port 7860.

The Space's variables decide: CODESEG_RUN (a hub id, or a folder of the Space; unset:
ViT-B-16, fetched from the hub), CODESEG_METHOD (unset: the run's own).
"""

import os

from codeseg import Segmenter
from codeseg.stages.app import model_line
from codeseg.stages.browser.page import build
from codeseg.stages.browser.serve import serve

if __name__ == "__main__":
    run = os.environ.get("CODESEG_RUN") or None
    method = os.environ.get("CODESEG_METHOD")
    segmenter = Segmenter.open(run, {"method": method} if method else None)
    page = build(segmenter, model_line(run, segmenter.clip.name, segmenter.settings.method))
    serve(page, "0.0.0.0", 7860)  # inside the Space's container, behind its proxy
    page.block_thread()
