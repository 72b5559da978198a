"""The page of `codeseg app` as a Space: a model named by its settings -> a server on port 7860.

The Space's variables decide: CODESEG_RUN (a hub id, or a folder of the Space), without it
CODESEG_CLIP (unset: ViT-B-16, fetched from the hub); CODESEG_METHOD (unset: the model's own).
"""

import os

from codeseg import Segmenter
from codeseg.stages.browser.page import build
from codeseg.stages.browser.serve import serve

if __name__ == "__main__":
    run, method = os.environ.get("CODESEG_RUN"), os.environ.get("CODESEG_METHOD")
    clip = None if run else os.environ.get("CODESEG_CLIP")
    page = build(Segmenter.open(run or None, {"method": method} if method else None, clip=clip))
    serve(page, "0.0.0.0", 7860)  # inside the Space's container, behind its proxy
    page.block_thread()
