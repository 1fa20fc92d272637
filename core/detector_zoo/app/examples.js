// Example pictures take the way of any other file. Gradio runs this with `element` and `server`.
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-examples]");
  if (!button) return;
  for (const pair of button.dataset.examples.split(";")) {
    const [place, name] = pair.split("=");
    const bytes = Uint8Array.from(atob(await server.example_bytes(name)), (letter) => letter.charCodeAt(0));
    const file = new File([bytes], name, {type: name.endsWith(".png") ? "image/png" : "image/jpeg"});
    document.querySelector("#" + place + " .zoo-drop").dispatchEvent(new CustomEvent("zoo-take", {detail: file}));
  }
});
