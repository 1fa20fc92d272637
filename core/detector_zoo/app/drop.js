// A drop zone: a file is dropped, chosen or pasted, goes to the server byte for byte, and its place there is told to
// the page as an "upload" event. Gradio runs this with `element`, `upload` and `trigger`.
const zone = element.querySelector(".zoo-drop");
const input = zone.querySelector("input");
const status = zone.querySelector("[role=status]");
const picture = zone.querySelector("img");
const limit = Number(zone.dataset.limit);
let shown = null;
let given = 0;

function size(bytes) {
  return bytes < 1e6 ? Math.max(1, Math.round(bytes / 1e3)) + " kB" : (bytes / 1e6).toFixed(1) + " MB";
}

function reason(error) {
  // Gradio puts its own words in front of the server's refusal, which is JSON.
  const refusal = /\{"error": \{.*\}\}/s.exec(error.message || error);
  return refusal ? JSON.parse(refusal[0]).error.message : error.message || error;
}

async function take(file, pasted) {
  const turn = ++given;
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  picture.src = shown;
  picture.hidden = false;
  picture.alt = zone.dataset.what + ": " + file.name;
  zone.classList.add("zoo-full");
  if (file.size > limit) {
    status.textContent = file.name + " is larger than the limit of " + size(limit) + ".";
    return;
  }
  status.textContent = "Uploading " + file.name + " …";
  try {
    const stored = await upload(file);
    if (turn !== given) return;  // another has been given while this one was on its way
    status.textContent = (pasted ? "Pasted: " : "") + file.name + ", " + size(file.size);
    trigger("upload", {path: stored.path, name: file.name, pasted: pasted});
  } catch (error) {
    if (turn !== given) return;
    status.textContent = file.name + " could not be uploaded: " + reason(error);
  }
}

// What a browser cannot show (TIFF, a damaged file) the server may still read, or name what is wrong with it.
picture.addEventListener("error", () => { picture.hidden = true; });
input.addEventListener("change", () => {
  if (input.files.length) take(input.files[0], false);
  input.value = "";
});
for (const name of ["dragenter", "dragover"]) {
  zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("zoo-over"); });
}
for (const name of ["dragleave", "drop"]) {
  zone.addEventListener(name, () => zone.classList.remove("zoo-over"));
}
zone.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0], false);
});
if (zone.dataset.paste) {
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) take(new File([file], "pasted-" + file.name, {type: file.type}), true);
  });
}
// The example pictures come this way: from the server, and back to it as they are.
zone.addEventListener("zoo-take", (event) => take(event.detail, false));
