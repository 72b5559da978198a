"""A segmenter -> the Gradio page: its stock components and the action of each click.

In: pictures as files in the page's own folder (serve.py), words as text. Out: masks, shares and
files. Values arrive unprocessed: Gradio would open a picture before its header is checked.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from html import escape
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from warnings import catch_warnings

import gradio as gr
import numpy as np
from PIL import Image

from codeseg.model.inference.segmenter import Segmenter
from codeseg.model.inference.settings import PredictionSettings
from codeseg.model.inference.vocabulary import Thing, read_words
from codeseg.model.pictures.overlay import colors
from codeseg.model.pictures.pixels import Pixels, rgb_pixels
from codeseg.model.results.files import PACKAGES
from codeseg.model.results.segmentation import Segmentation
from codeseg.pipeline.nouns.tagger import NounTagger, resolve_tagger
from codeseg.pipeline.storybook.scenes import DEV_SEED, draw_scene
from codeseg.stages.browser.serve import FOLDER, PageBlocks
from codeseg.stages.pages.figures import css

MAX_PIXELS, MAX_SIDE = 50_000_000, 1024  # a phone's 48 megapixels pass; longer sides are shrunk
MAX_WORDS, MAX_TEXT = 20, 500  # number of words; characters of all of them, or of a caption
EXAMPLES, EXAMPLE_SIDE = (17, 196, 96, 9, 260), 560  # easy held-out scenes; pixels
load_tagger = cache(NounTagger)
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # one request at a time
SHOW = "() => innerWidth < 768 && setTimeout(() => window.{}.scrollIntoView(), 400)"  # on phones


def run_action(action: Callable[..., Any], *sent: Any) -> Any:
    """Run an action; show a user's mistake, and warnings, as messages on an unchanged page."""
    with catch_warnings(record=True, action="always", category=UserWarning) as warned:
        try:
            made = action(*sent)
        except ValueError as error:
            raise gr.Error(escape(" ".join(str(error).split())), print_exception=False) from None
    for warning in warned:
        gr.Warning(escape(str(warning.message)))
    return made


def read(picture: Any) -> Pixels:
    """Read an upload, whose path PageBlocks has checked; shrink its longer side to MAX_SIDE."""
    path = Path(str(picture.get("path")) if isinstance(picture, dict) else FOLDER)
    if not path.is_file():
        raise ValueError("choose a picture or an example first")
    image = Image.fromarray(rgb_pixels(path.read_bytes(), MAX_PIXELS))
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def split(sent: Any) -> tuple[Thing, ...]:
    """Return the things that a text names; refuse texts beyond the limits."""
    things = read_words(str(sent or "")[: MAX_TEXT + 1])
    if len(str(sent)) > MAX_TEXT or sum(map(len, things)) > MAX_WORDS:
        raise ValueError(f"at most {MAX_WORDS} words and {MAX_TEXT} characters: remove some")
    return things


def painted(result: Segmentation, title: str) -> Any:
    """Show a result: each segment in its color, with its share of the picture."""
    first = len(result.names) - len(result.segments)
    names = [f"{segment.text} {segment.area:.0%}" for segment in result.segments]
    masks = [(result.label_map == k) * 0.6 for k in range(first, len(result.names))]
    palette = dict(zip(names, map(css, colors(len(names))), strict=True))
    parts = list(zip(masks, names, strict=True))
    return gr.AnnotatedImage((result.pixels, parts), color_map=palette, label=title)


def propose(caption: Any, nouns: Any) -> str:
    """Return the typed nouns, or else those that the tagger finds in the caption."""
    with suppress(ImportError, ValueError):  # spaCy, or its English model, is not installed
        if not nouns:
            text = str(caption or "")[:MAX_TEXT].lower()
            return ", ".join(next(load_tagger(resolve_tagger().tagger).nouns([text])))
    return str(nouns)


def segment_by(segmenter: Segmenter, sent: Sequence[Any], method: str) -> Segmentation:
    """Segment the picture by a method with its own settings."""
    picture, typed, background, threshold = sent
    pixels, things, settings = read(picture), split(typed), segmenter.settings
    if method != settings.method:
        recorded = segmenter.recorded
        settings = PredictionSettings.for_clip(segmenter.clip, recorded=recorded, method=method)
    if settings.score == segmenter.settings.score:  # the slider applies only to this kind of score
        least = float(threshold)
        settings = replace(settings, background_threshold=least, probability_threshold=least)
    by = Segmenter(segmenter.clip, segmenter.trained, settings)
    return by.segment(pixels, things, background=bool(background))


def segment(segmenter: Segmenter, *sent: Any) -> tuple[Any, Any]:
    """Return the painted picture, and a zip of its files in every available format."""
    result = segment_by(segmenter, sent, segmenter.settings.method)
    folder = Path(mkdtemp(dir=FOLDER), "segments")
    result.save(folder, [name for name, needed in PACKAGES.items() if all(map(find_spec, needed))])
    packed = shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    shutil.rmtree(folder)
    return painted(result, "Segments"), gr.DownloadButton(value=packed, interactive=True)


def compare(segmenter: Segmenter, left: Any, right: Any, *sent: Any) -> list[Any]:
    """Return the painted pictures of two methods."""
    sides = (("Left", str(left)), ("Right", str(right)))
    return [painted(segment_by(segmenter, sent, how), f"{side}: {how}") for side, how in sides]


def decompose(segmenter: Segmenter, picture: Any, caption: Any, nouns: Any) -> tuple[Any, ...]:
    """Return a caption's nouns, its words by noun, and the picture's regions by noun."""
    pixels = read(picture)
    if not isinstance(caption, str) or not 0 < len(caption.strip()) <= MAX_TEXT:
        raise ValueError(f"type a caption of the picture, at most {MAX_TEXT} characters")
    things = split(propose(caption, nouns))
    names = [thing[0] for thing in things]
    found = segmenter.word_segments(caption, names)
    owners = [None if label < 0 else names[label] for label in found.labels]
    words: Any = [(f"{word} ", noun) for word, noun in zip(found.words, owners, strict=True)]
    palette = dict(zip(names, map(css, colors(len(names))), strict=True))
    view = painted(segmenter.segment(pixels, things), "Regions")
    return ", ".join(names), gr.HighlightedText(words, color_map=palette), view


def example(index: int) -> list[str]:
    """Draw a held-out scene into FOLDER; return its path, words, caption and no nouns."""
    scene, path = draw_scene(DEV_SEED, index, EXAMPLE_SIDE), FOLDER / f"scene-{index}.png"
    scene.image.save(path)
    names = dict.fromkeys([*(thing.name for thing in scene.things), *scene.grounds])
    return [str(path), ", ".join(names), scene.caption, ""]


def build(segmenter: Segmenter) -> PageBlocks:
    """Build the page of a segmenter."""
    code, settings, clip = segmenter.code, segmenter.settings, segmenter.clip.name
    taught = code is not None and code.config.masks and code.config.co_decomposition
    info = None if taught else "needs a trained model: codeseg app --run RUN"
    methods = list(segmenter.methods)
    model = f"{clip}, {'trained' if segmenter.trained else 'untrained'}, method {settings.method}"
    model += ": it knows drawn things only" if clip == "storybook" else ""
    page = PageBlocks(title="codeseg", delete_cache=(60, 3600))  # every 60 s, files older than 1 h
    with page:
        gr.Markdown(f"# codeseg\nSegment a picture by any words. Model: {escape(model)}.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(sources=["upload", "clipboard"], height=320, elem_id="picture")
                words = gr.Textbox(label="Words", placeholder="dog, red car, sofa/couch")
                go = gr.Button("Segment", variant="primary", elem_id="segment")
                with gr.Accordion("Background", open=False):
                    background = gr.Checkbox(True, label="Leave out what no word fits")
                    threshold = gr.Slider(0, 1, settings.least, label="Threshold")
                examples = gr.Column()
            with gr.Column(scale=3, min_width=320):
                with gr.Tab("Segments"):
                    view = gr.AnnotatedImage(label="Segments", elem_id="view")
                    save = gr.DownloadButton("Download", interactive=False, elem_id="save")
                with gr.Tab("Compare"):
                    with gr.Row():
                        left = gr.Dropdown(methods, value="maskclip", label="Left")
                        right = gr.Dropdown(methods, value=settings.method, label="Right")
                    both = gr.Button("Compare", elem_id="compare")
                    with gr.Row():
                        one = gr.AnnotatedImage(label="Left", elem_id="left", min_width=280)
                        two = gr.AnnotatedImage(label="Right", elem_id="right", min_width=280)
                with gr.Tab("Caption"):
                    caption = gr.Textbox(label="Caption", info=info, elem_id="caption")
                    nouns = gr.Textbox(label="Its nouns", elem_id="nouns")
                    cut = gr.Button("Take apart", interactive=taught, elem_id="cut")
                    sentence = gr.HighlightedText(label="Words", elem_id="sentence")
                    regions = gr.AnnotatedImage(label="Regions", elem_id="regions")
        with examples:
            inputs = [picture, words, caption, nouns]
            gr.Examples([*map(example, EXAMPLES)], inputs, visible_columns=[0], elem_id="examples")
        wanted, taken = [picture, words, background, threshold], [picture, caption, nouns]
        for triggers, action, sent, shown, target in (
            ([go.click, words.submit], segment, wanted, [view, save], "view"),
            ([both.click], compare, [left, right, *wanted], [one, two], "left"),
            ([cut.click], decompose, taken, [nouns, sentence, regions], "sentence"),
        ):
            run = partial(run_action, action, segmenter)
            done = gr.on(triggers, run, sent, shown, preprocess=False, **MODEL)
            done.success(None, js=SHOW.format(target))
        caption.blur(propose, [caption, nouns], nouns, **MODEL)
    page.queue(max_size=32, api_open=False)  # further requests are refused
    return page
