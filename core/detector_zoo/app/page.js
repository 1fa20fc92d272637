// The opacity slider blends two layers that are on the page already: no request, no new score.
document.addEventListener("input", (event) => {
  if (!event.target.matches("#zoo-opacity")) return;
  document.documentElement.style.setProperty("--zoo-opacity", event.target.value / 100);
  document.querySelector("output[for=zoo-opacity]").textContent = event.target.value + " %";
});
