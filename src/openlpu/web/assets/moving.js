// The timeline under a pointer and keys: what lies where, zooming, moving, opening rows.

// --- what is under the pointer ---------------------------------------------------------------------------------
function describe(row, cycle) {
  if (row.kind === "operators") {
    const run = runs.find(({ start, end }) => cycle >= start && cycle < end) || runs[runs.length - 1];
    return `${data.operators[run.operator]}: cycles ${count(run.start)} to ${count(run.end)}, ${count(run.end - run.start)} of them`;
  }
  if (row.kind === "path") {
    const i = Math.max(0, lower(data.path.start, cycle + 1) - 1), { start, cycles, kind, operator } = data.path;
    return `${data.kinds[kind[i]]} for ${data.operators[operator[i]]}: cycles ${count(start[i])} to ${count(start[i] + cycles[i])}, ${count(cycles[i])} of them`;
  }
  const own = cycle - row.chip.start, where = data.chips.length > 1 ? `${row.chip.name}, ` : "";
  if (row.kind === "sum") {
    const from = lower(row.all.cycle, own), here = lower(row.all.cycle, own + 1) - from;
    const what = here ? `, first for ${inModel(data.operators[row.all.operator[from]], row.chip)}` : "";
    return `${where}${row.name}, cycle ${count(cycle)}: ${here} of ${row.all.slots} slots${what}`;
  }
  const { cycle: times, op, operator } = row.track, reach = 4 * (view.to - view.from) / (canvas.clientWidth - LABELS);
  const i = lower(times, Math.max(0, own - reach));
  if (i === times.length || times[i] > own + reach) return `${where}${row.name}, cycle ${count(cycle)}: nothing`;
  const latency = program(row.chip).chip.latency[op[i]];
  const result = latency ? `, result in cycle ${count(times[i] + row.chip.start + latency)}` : "";
  return `${where}${row.name}: ${data.instructions[op[i]][0]} in cycle ${count(times[i] + row.chip.start)}${result}, for ${inModel(data.operators[operator[i]], row.chip)}`;
}

function rowAt(y) {
  const at = y - AXIS + scroller.scrollTop;
  return y < AXIS ? -1 : shown.findIndex((row) => at >= row.y && at < row.y + row.height);
}
const cycleAt = (x) => view.from + (x - LABELS) * (view.to - view.from) / (canvas.clientWidth - LABELS);

// --- moving ----------------------------------------------------------------------------------------------------
function show(from, to) {
  const least = Math.min(data.cycles, (canvas.clientWidth - LABELS) / CLOSEST);
  const span = Math.min(data.cycles, Math.max(least, to - from));
  const middle = (from + to) / 2;
  view.from = Math.min(Math.max(0, middle - span / 2), data.cycles - span);
  view.to = view.from + span;
  drawTimeline();
}
function zoom(factor, at = (view.from + view.to) / 2) {
  const least = Math.min(data.cycles, (canvas.clientWidth - LABELS) / CLOSEST), span = view.to - view.from;
  const real = Math.min(data.cycles, Math.max(least, span * factor)) / span;
  show(at - (at - view.from) * real, at + (view.to - at) * real);
}
function move(share) {
  const by = share * (view.to - view.from);
  show(view.from + by, view.to + by);
}
function closest() {
  const middle = view.pointer && view.pointer.x > LABELS ? cycleAt(view.pointer.x) : (view.from + view.to) / 2;
  show(middle, middle);
}
function toggle(row) {
  if (!row || !row.opens) return;
  if (!view.open.delete(row.id)) view.open.add(row.id);
  shown = rows();
  drawTimeline();
}
function choose(index) {
  view.chosen = Math.min(Math.max(0, index), shown.length - 1);
  const row = shown[view.chosen], height = scroller.clientHeight - AXIS;
  if (row.y < scroller.scrollTop) scroller.scrollTop = row.y;
  if (row.y + row.height > scroller.scrollTop + height) scroller.scrollTop = row.y + row.height - height;
  pointed.textContent = describe(row, Math.floor((view.from + view.to) / 2));
  drawTimeline();
}

const KEYS = {
  "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "_": () => zoom(2),
  "0": () => show(0, data.cycles), "1": closest, Home: () => show(0, view.to - view.from),
  End: () => show(data.cycles - (view.to - view.from), data.cycles),
  ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2), PageUp: () => move(-1), PageDown: () => move(1),
  ArrowUp: () => choose(view.chosen - 1), ArrowDown: () => choose(view.chosen + 1),
  Enter: () => toggle(shown[view.chosen]), " ": () => toggle(shown[view.chosen]),
};

function listenTimeline() {
  for (const [id, act] of [["zoom-in", () => zoom(0.5)], ["zoom-out", () => zoom(2)], ["earlier", () => move(-0.5)],
    ["later", () => move(0.5)], ["whole", () => show(0, data.cycles)], ["cycle", closest]])
    document.getElementById(id).addEventListener("click", act);
  document.getElementById("colour").addEventListener("change", (event) => {
    view.colour = event.target.value;
    drawTimeline();
  });
  canvas.addEventListener("keydown", (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  canvas.addEventListener("wheel", (event) => {
    if (event.offsetX < LABELS) return;  // over the names it scrolls the rows
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) move((event.deltaX || event.deltaY) / 800);
    else zoom(Math.exp(event.deltaY / 350), cycleAt(event.offsetX));
  }, { passive: false });
  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { x: event.offsetX, y: event.offsetY, from: view.from, to: view.to };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", (event) => {
    const still = held && Math.abs(event.offsetX - held.x) < 4 && Math.abs(event.offsetY - held.y) < 4;
    held = null;
    const index = rowAt(event.offsetY);
    if (!still || index < 0) return;
    view.chosen = index;
    if (event.offsetX < LABELS) toggle(shown[index]);
    else drawTimeline();
  });
  canvas.addEventListener("pointermove", (event) => {
    view.pointer = { x: event.offsetX, y: event.offsetY };
    if (held && held.x >= LABELS) {
      const by = (held.x - event.offsetX) * (held.to - held.from) / (canvas.clientWidth - LABELS);
      show(held.from + by, held.to + by);
      return;
    }
    const row = shown[rowAt(event.offsetY)];
    pointed.textContent = row && event.offsetX >= LABELS ? describe(row, Math.floor(cycleAt(event.offsetX))) : "";
    drawTimeline();
  });
  canvas.addEventListener("pointerleave", () => {
    view.pointer = null;
    drawTimeline();
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, drawTimeline);
  scroller.addEventListener("scroll", drawTimeline);
  overview.addEventListener("pointerdown", (event) => {
    const middle = event.offsetX / overview.clientWidth * data.cycles, half = (view.to - view.from) / 2;
    show(middle - half, middle + half);
  });
}
