"""A segmenter -> the Gradio page: its parts, and which action a click runs.

Pictures travel inside events as text, so Gradio's own file components, with their uploads, caches
and downloads, are not used at all.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from codeseg.model.pictures.overlay import OPACITY
from codeseg.stages.browser import view as app_view
from codeseg.stages.browser.actions import NO_PICTURE, UNTRAINED, Actions, Session
from codeseg.stages.browser.inputs import MAX_BYTES, MAX_WORDS
from codeseg.stages.browser.serve import PlainBlocks

if TYPE_CHECKING:
    from codeseg.model.inference.segmenter import Segmenter

HERE = Path(__file__).parent
# One request at a time on the network; painting what is kept does not wait for it.
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
PAINT: dict[str, Any] = {"concurrency_id": "paint", "concurrency_limit": 2}
WAITING = 32  # requests in the queue; further ones are told to come back
FORGET_AFTER = 3600  # seconds


def told(action: Callable[..., Any], outputs: int) -> Callable[..., tuple[Any, ...]]:
    """Return an action and its message line: a user's mistake changes nothing else on the page.

    Args:
        action: returns one value, or a tuple of `outputs` values.
        outputs: how many it fills.
    """

    def run(*sent: Any) -> tuple[Any, ...]:
        try:
            made = action(*sent)
        except ValueError as error:
            line = " ".join(str(error).split())
            return (*(gr.skip() for _ in range(outputs)), app_view.alert(line))
        return (*(made if outputs > 1 else (made,)), "")

    return run


def build(segmenter: "Segmenter", model_line: str) -> PlainBlocks:
    """Make the page.

    Args:
        segmenter: what every action runs on.
        model_line: which model it is, for the head of the page.
    """
    actions = Actions(segmenter)
    page = PlainBlocks(title="codeseg", analytics_enabled=False, fill_width=True)
    with page:
        session = gr.State(Session(), time_to_live=FORGET_AFTER)
        gr.HTML(
            "<h1>codeseg</h1><p>Segment a picture by any words. "
            f"<small>{app_view.text(model_line)}</small></p>",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                drop = gr.HTML(
                    html_template=(HERE / "drop.html").read_text(),
                    js_on_load=(HERE / "drop.js").read_text(),
                    elem_id="drop",
                    limit=MAX_BYTES,
                )
                examples = gr.HTML(
                    app_view.thumbnails(actions.examples),
                    js_on_load=(HERE / "examples.js").read_text(),
                    elem_id="examples",
                )
                words = gr.Dropdown(
                    choices=_known_words(),
                    label="Words",
                    info=f"type any words, Enter after each; at most {MAX_WORDS}",
                    multiselect=True,
                    allow_custom_value=True,
                    elem_id="words",
                )
                go = gr.Button("Segment", variant="primary", elem_id="segment")
                background = gr.Checkbox(
                    True, label="Background: leave out what no word fits", elem_id="background"
                )
                threshold = gr.Slider(
                    0,
                    1,
                    segmenter.settings.background_threshold,
                    step=0.01,
                    label="Threshold of the background",
                    elem_id="threshold",
                )
                opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity", elem_id="opacity")
            with gr.Column(scale=3, min_width=320):
                message = gr.HTML("", elem_id="message")
                with gr.Tab("Segments"):
                    view = _view("view", app_view.hint(NO_PICTURE))
                    save = gr.Button("Download label map and masks", elem_id="save")
                    link = gr.HTML("", js_on_load=(HERE / "link.js").read_text(), elem_id="link")
                with gr.Tab("Caption"):
                    caption = gr.Textbox(label="Caption of the picture", elem_id="caption")
                    nouns = gr.Dropdown(
                        label="Its nouns",
                        choices=[],
                        multiselect=True,
                        allow_custom_value=True,
                        elem_id="nouns",
                    )
                    cut = gr.Button(
                        "Cut words and regions together",
                        interactive=actions.decomposes,
                        elem_id="cut",
                    )
                    figure = gr.HTML(
                        "" if actions.decomposes else app_view.hint(UNTRAINED), elem_id="figure"
                    )
                with gr.Tab("Compare"):
                    with gr.Row():
                        left, right = (
                            gr.Dropdown(actions.methods, value=name, label="Method", elem_id=side)
                            for side, name in zip(
                                ("left", "right"), _two(actions.methods), strict=True
                            )
                        )
                    both = gr.Button("Compare on the words", elem_id="compare")
                    pair = _view("pair", "")

        sliders: list[Any] = [background, threshold, opacity]

        def take(event: gr.EventData) -> tuple[Any, ...]:
            return told(actions.take, 2)(event._data)

        def pick(event: gr.EventData) -> tuple[Any, ...]:
            return told(actions.pick, 5)(event._data)

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        drop.picture(take, [], [session, view, message], **MODEL, **quiet)
        examples.example(
            pick, [], [session, view, words, caption, nouns, message], **PAINT, **quiet
        )
        go.click(
            told(actions.segment, 2),
            [session, words, *sliders],
            [session, view, message],
            **MODEL,
            **quiet,
        )
        for slider in sliders:
            slider.change(
                told(actions.paint, 1),
                [session, *sliders],
                [view, message],
                trigger_mode="always_last",
                **PAINT,
                **quiet,
            )
        cut.click(
            told(actions.decompose, 1),
            [session, caption, nouns],
            [figure, message],
            **MODEL,
            **quiet,
        )
        both.click(
            told(actions.compare, 1),
            [session, words, left, right, *sliders],
            [pair, message],
            **MODEL,
            **quiet,
        )
        save.click(told(actions.pack, 1), [session, *sliders], [link, message], **PAINT, **quiet)
    page.queue(max_size=WAITING, api_open=False, default_concurrency_limit=1)
    return page


def _view(name: str, content: str) -> gr.HTML:
    return gr.HTML(
        content,
        js_on_load=(HERE / "legend.js").read_text(),
        elem_id=name,
        elem_classes="seg",
    )


def _known_words() -> list[str]:
    from codeseg.pipeline.storybook.scenes import CLASSES

    return list(CLASSES)


def _two(methods: Sequence[str]) -> tuple[str, str]:
    """Return the two methods compared at first: plain CLIP and this model's best."""
    return "maskclip", "code" if "code" in methods else "naclip"
