// The packed results are saved as soon as their link arrives.
watch("value", () => element.querySelector("a[download]")?.click());
