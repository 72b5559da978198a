// A dropped, pasted or chosen file goes to the server as its bytes in text; no file is uploaded.
const zone = element.querySelector(".zone");
const input = element.querySelector("input");

function send(file) {
  if (!file) return;
  if (file.size > props.limit) return trigger("picture", { size: file.size });
  const reader = new FileReader();
  reader.onload = () => trigger("picture", { picture: reader.result });
  reader.readAsDataURL(file);
}

input.addEventListener("change", () => {
  send(input.files[0]);
  input.value = ""; // the same file again is a change, too
});
for (const name of ["dragover", "dragleave", "drop"]) {
  zone.addEventListener(name, (event) => {
    event.preventDefault();
    zone.classList.toggle("over", name === "dragover");
    if (name === "drop") send(event.dataTransfer.files[0]);
  });
}
zone.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") input.click();
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  send(files.find((file) => file.type.startsWith("image/")));
});
