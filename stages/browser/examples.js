// A click on an example picture names its number.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-example]");
  if (button) trigger("example", { example: Number(button.dataset.example) });
});
