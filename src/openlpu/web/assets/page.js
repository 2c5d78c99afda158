// Everything once, and again when the colours or the width change.
function drawAll() {
  css = getComputedStyle(document.documentElement);
  drawHead();
  drawBreakdown();
  drawTimeline();
  drawMaps();
  drawEnergy();
  drawSplits();
}

const system = matchMedia("(prefers-color-scheme: dark)");
function applyTheme() {
  const wanted = document.querySelector("[name=theme]:checked").value;
  document.documentElement.dataset.theme = wanted === "auto" ? (system.matches ? "dark" : "light") : wanted;
  drawAll();
}
system.addEventListener("change", applyTheme);
for (const choice of document.querySelectorAll("[name=theme]")) choice.addEventListener("change", applyTheme);
for (const choice of document.querySelectorAll("[name=rows]")) choice.addEventListener("change", drawSram);
sramCanvas.addEventListener("pointermove", pointSram);
sramCanvas.addEventListener("pointerleave", () => { sramPointed.textContent = ""; });
addEventListener("resize", drawAll);
listenTimeline();
applyTheme();
