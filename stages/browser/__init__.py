"""The Gradio page of `codeseg app`."""
