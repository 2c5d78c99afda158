// The timeline: rows of chips, units and queues over cycles, from the whole token to single cycles.
const LABELS = 176, AXIS = 26, CLOSEST = 90;  // pixels: names at the left, cycles on top, a cycle at its widest
const view = { from: 0, to: data.cycles, open: new Set(["chip 0"]), chosen: 0, pointer: null, colour: "unit" };
const canvas = document.getElementById("timeline"), scroller = document.getElementById("scroller");
const overview = document.getElementById("overview"), pointed = document.getElementById("pointed");
const UNITS = ["mem", "vxm", "mxm", "sxm", "c2c"], SIDED = new Set(["mem", "mxm", "sxm", "c2c"]);

// --- rows ------------------------------------------------------------------------------------------------------
// Instructions of several queues as one, ascending: cycles, and the operator of each.
function merged(tracks) {
  const total = tracks.reduce((sum, track) => sum + track.cycle.length, 0), keys = new Float64Array(total);
  const operators = new Uint16Array(total);
  let n = 0;
  for (const track of tracks) {
    operators.set(track.operator, n);
    for (let i = 0; i < track.cycle.length; i++) keys[n + i] = track.cycle[i] * 2 ** 24 + n + i;
    n += track.cycle.length;
  }
  keys.sort();
  const cycle = new Uint32Array(total), operator = new Uint16Array(total);
  for (let i = 0; i < total; i++) {
    cycle[i] = Math.floor(keys[i] / 2 ** 24);
    operator[i] = operators[keys[i] % 2 ** 24];
  }
  return { cycle, operator, slots: tracks.reduce((sum, track) => sum + track.slots, 0) };
}

// The units of a program, each with its queues; queues that do nothing are left out, their slots are not.
function groups(made) {
  if (made.groups) return made.groups;
  const found = new Map();
  for (const track of made.tracks) {
    const unit = track.unit.split(".")[0], side = SIDED.has(unit) ? (track.west ? " west" : " east") : "";
    const name = (unit === "c2c" ? "Links" : unit.toUpperCase()) + side;
    if (!found.has(name)) found.set(name, { name, unit, tracks: [] });
    found.get(name).tracks.push(track);
  }
  made.groups = [...found.values()].map((group) => ({ ...group, all: merged(group.tracks), tracks: group.tracks.filter((t) => t.cycle.length) }));
  made.groups = made.groups.filter((group) => group.tracks.length);
  made.groups.sort((a, b) => UNITS.indexOf(a.unit) - UNITS.indexOf(b.unit));
  made.all = merged(made.tracks);
  return made.groups;
}

function rows() {
  const out = [{ id: "path", kind: "path", name: "Critical path", height: 44 }, { id: "operators", kind: "operators", name: "… by operator", height: 34 }];
  data.chips.forEach((chip, index) => {
    const id = `chip ${index}`, units = groups(program(chip)), several = data.chips.length > 1;
    if (several) out.push({ id, kind: "sum", name: chip.name, chip, index, unit: "icu", all: program(chip).all, height: 26, opens: true, depth: 0 });
    if (several && !view.open.has(id)) return;
    for (const unit of units) {
      const unitId = `${id} ${unit.name}`;
      out.push({ id: unitId, kind: "sum", name: unit.name, chip, index, unit: unit.unit, all: unit.all, height: 26, opens: true, depth: several ? 1 : 0 });
      if (view.open.has(unitId))
        for (const track of unit.tracks) {
          const peer = chip.peers[track.name];
          out.push({ id: `${id} ${track.name}`, kind: "track", name: peer ? `${track.name} → ${peer}` : track.name, chip, index, unit: track.unit, track, height: 17, depth: several ? 2 : 1 });
        }
    }
  });
  let y = 0;
  for (const row of out) { row.y = y; y += row.height; }
  return out;
}

let shown = rows();

// --- drawing ---------------------------------------------------------------------------------------------------
function drawTimeline() {
  view.chosen = Math.min(view.chosen, shown.length - 1);
  const total = shown[shown.length - 1].y + shown[shown.length - 1].height + AXIS;
  scroller.style.height = Math.min(520, total + 2) + "px";
  const [g, width, height] = prepared(canvas);
  document.getElementById("room").style.height = Math.max(0, total - height) + "px";
  const scale = (width - LABELS) / (view.to - view.from);
  g.save();
  g.beginPath();
  g.rect(LABELS, 0, width - LABELS, height);
  g.clip();
  drawGrid(g, width, height, scale);
  for (const row of shown) {
    const y = AXIS + row.y - scroller.scrollTop;
    if (y + row.height < AXIS || y > height) continue;
    g.save();
    g.beginPath();
    g.rect(LABELS, Math.max(y, AXIS), width - LABELS, row.height);
    g.clip();
    if (row.kind === "path") drawPath(g, y + 5, row.height - 10, width, scale, LABELS, view.from, view.to);
    else if (row.kind === "operators") drawOperators(g, y + 4, row.height - 8, width, scale);
    else if (row.kind === "sum") drawSum(g, row, y, width, scale);
    else drawTrack(g, row, y, width, scale);
    g.restore();
  }
  drawPointer(g, height);
  g.restore();
  drawLabels(g, height);
  drawOverview();
  document.getElementById("window").textContent =
    `cycles ${count(view.from)} – ${count(view.to)}  ·  ${seconds(view.to - view.from)} of ${seconds(data.cycles)}`;
}

function drawGrid(g, width, height, scale) {
  let step = 1;
  for (let i = 0; step * scale < 90; i++) step *= i % 3 === 1 ? 2.5 : 2;  // 1 2 5 10 20 50 …
  g.fillStyle = colour("quiet");
  g.strokeStyle = colour("line");
  g.lineWidth = 1;
  for (let cycle = Math.ceil(view.from / step) * step; cycle <= view.to; cycle += step) {
    const x = Math.round(LABELS + (cycle - view.from) * scale) + 0.5;
    g.beginPath();
    g.moveTo(x, AXIS - 6);
    g.lineTo(x, height);
    g.stroke();
    g.fillText(count(cycle), x + 4, AXIS / 2);
  }
}

// What the token waits for: piece by piece, or where pieces are narrow, the share of each kind among a few pixels' cycles.
function drawPath(g, y, height, width, scale, left, from, to) {
  const { start, cycles, kind } = data.path, first = Math.max(0, lower(start, from + 1) - 1);
  let last = first;
  while (last < start.length && start[last] < to) last++;
  if (scale * (to - from) < 4 * (last - first)) {
    const bin = 8 / scale;
    for (let at = Math.floor(from / bin) * bin, i = first; at < to; at += bin) {
      const part = new Array(data.kinds.length).fill(0);
      while (i > first && start[i] > at) i--;
      for (; i < last && start[i] < at + bin; i++)
        part[kind[i]] += Math.max(0, Math.min(at + bin, start[i] + cycles[i]) - Math.max(at, start[i]));
      let up = y + height;
      part.forEach((cyclesOf, k) => {
        const tall = cyclesOf / bin * height;
        g.fillStyle = kindColour(data.kinds[k]);
        g.fillRect(left + (at - from) * scale, up - tall, 8.4, tall);
        up -= tall;
      });
    }
    return;
  }
  for (let i = first; i < last; i++) {
    const x = left + (start[i] - from) * scale, w = cycles[i] * scale;
    g.fillStyle = kindColour(data.kinds[kind[i]]);
    g.fillRect(x, y, Math.max(w - (w > 4 ? 1 : 0), 0.6), height);
    const seen = Math.max(x, left);
    if (x + w - seen > 34) write(g, data.kinds[kind[i]], seen, y + height / 2, Math.min(x + w, width) - seen);
  }
}

// The same path as runs of one operator.
const runs = [];
for (let i = 0; i < data.path.start.length; i++) {
  const before = runs[runs.length - 1];
  if (before && before.operator === data.path.operator[i]) before.end += data.path.cycles[i];
  else runs.push({ start: data.path.start[i], end: data.path.start[i] + data.path.cycles[i], operator: data.path.operator[i] });
}
function drawOperators(g, y, height, width, scale) {
  for (const run of runs) {
    if (run.end <= view.from || run.start >= view.to) continue;
    const x = LABELS + (run.start - view.from) * scale, w = (run.end - run.start) * scale, seen = Math.max(x, LABELS);
    g.fillStyle = operatorColour(run.operator);
    g.fillRect(x, y, Math.max(w - (w > 3 ? 1 : 0), 0.6), height);
    if (x + w - seen > 40) write(g, scale > 1 ? data.operators[run.operator] : short[run.operator], seen, y + height / 2, Math.min(x + w, width) - seen);
  }
}

function write(g, text, x, y, width) {
  g.save();
  g.beginPath();
  g.rect(x, y - 12, width - 2, 24);
  g.clip();
  g.fillStyle = dark() ? "#101113" : "#ffffff";
  g.fillText(shortened(g, text, width - 10), x + 6, y);
  g.restore();
}

// As much of a text as there is room for.
function shortened(g, text, room) {
  if (g.measureText(text).width <= room) return text;
  let keep = Math.floor(text.length * room / g.measureText(text).width);
  while (keep > 1 && g.measureText(text.slice(0, keep) + "…").width > room) keep--;
  return text.slice(0, keep) + "…";
}

// A unit: per pixel, or per cycle where one is wider, the share of dispatch slots in use.
function drawSum(g, row, y, width, scale) {
  const { cycle, operator, slots } = row.all, start = row.chip.start, high = row.height - 5;
  const bin = Math.max(1, 2 / scale);
  let at = Math.max(start, Math.floor(view.from / bin) * bin), i = lower(cycle, at - start);
  g.fillStyle = unitColour(row.unit);
  while (i < cycle.length && start + cycle[i] < view.to) {
    at = start + Math.floor(cycle[i] / bin) * bin;
    const end = lower(cycle, at + bin - start), share = (end - i) / (slots * bin), tall = Math.max(1.5, Math.sqrt(Math.min(1, share)) * high);
    if (view.colour === "operator") g.fillStyle = operatorColour(operator[i]);
    const x = LABELS + (at - view.from) * scale, w = bin * scale;
    g.fillRect(x, y + 3 + high - tall, w - (w > 4 ? 1 : 0), tall);
    if (w > 26) {
      g.save();
      g.textAlign = "center";
      g.fillStyle = tall > 15 ? (dark() ? "#101113" : "#ffffff") : colour("quiet");
      g.fillText(end - i, x + w / 2, tall > 15 ? y + 4 + high - tall / 2 : y + 3 + (high - tall) / 2);
      g.restore();
      if (view.colour !== "operator") g.fillStyle = unitColour(row.unit);
    }
    i = Math.max(end, i + 1);
  }
}

function drawTrack(g, row, y, width, scale) {
  const { cycle, op, operator } = row.track, start = row.chip.start, bin = Math.max(1, 1 / scale);
  for (let i = lower(cycle, Math.floor(view.from - start)); i < cycle.length && start + cycle[i] < view.to;) {
    const x = LABELS + (start + cycle[i] - view.from) * scale, w = Math.max(scale, 1);
    g.fillStyle = view.colour === "unit" ? unitColour(row.unit) : operatorColour(operator[i]);
    g.fillRect(x, y + 2, w - (w > 4 ? 1 : 0), row.height - 4);
    if (w > 40) write(g, data.instructions[op[i]][0], x, y + row.height / 2, w);
    i = scale >= 1 ? i + 1 : Math.max(i + 1, lower(cycle, cycle[i] + bin));
  }
}

function drawPointer(g, height) {
  if (!view.pointer || view.pointer.x < LABELS) return;
  g.strokeStyle = colour("quiet");
  g.setLineDash([3, 3]);
  g.beginPath();
  g.moveTo(Math.round(view.pointer.x) + 0.5, AXIS - 6);
  g.lineTo(Math.round(view.pointer.x) + 0.5, height);
  g.stroke();
  g.setLineDash([]);
}

function drawLabels(g, height) {
  g.strokeStyle = colour("line");
  for (const [i, row] of shown.entries()) {
    const y = AXIS + row.y - scroller.scrollTop;
    if (y + row.height <= AXIS || y > height) continue;
    g.save();
    g.beginPath();
    g.rect(0, Math.max(AXIS, y), g.canvas.width, row.height + 1);
    g.clip();
    if (i === view.chosen && document.activeElement === canvas) {
      g.fillStyle = colour("faint");
      g.fillRect(0, y, LABELS - 6, row.height);
    }
    const x = 12 + 14 * (row.depth || 0);
    g.fillStyle = colour(row.opens || row.kind === "path" ? "text" : "quiet");
    g.font = `${row.kind === "track" ? 11 : 13}px ui-sans-serif, system-ui, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif`;
    g.fillText((row.opens ? (view.open.has(row.id) ? "▾ " : "▸ ") : "") + row.name, x, y + row.height / 2, LABELS - x - 8);
    if (row.kind !== "track") {
      g.beginPath();
      g.moveTo(0, Math.round(y + row.height) - 0.5);
      g.lineTo(g.canvas.width, Math.round(y + row.height) - 0.5);
      g.stroke();
    }
    g.restore();
  }
  g.beginPath();
  g.moveTo(LABELS - 0.5, 0);
  g.lineTo(LABELS - 0.5, height);
  g.moveTo(0, AXIS - 0.5);
  g.lineTo(g.canvas.width, AXIS - 0.5);
  g.stroke();
  g.fillStyle = colour("quiet");
  g.fillText("cycle", 12, AXIS / 2);
}

function drawOverview() {
  const [g, width, height] = prepared(overview), scale = width / data.cycles;
  for (const run of runs) {
    g.fillStyle = operatorColour(run.operator);
    g.fillRect(run.start * scale, 7, Math.max((run.end - run.start) * scale, 0.6), height - 14);
  }
  const x = view.from * scale, w = Math.max(3, (view.to - view.from) * scale);
  g.fillStyle = colour("page");
  g.globalAlpha = 0.72;
  g.fillRect(0, 0, x, height);
  g.fillRect(x + w, 0, width, height);
  g.globalAlpha = 1;
  g.strokeStyle = colour("text");
  g.lineWidth = 1.5;
  g.strokeRect(x + 0.75, 0.75, w - 1.5, height - 1.5);
}
