// The data of the page: base64 columns become typed arrays; names, numbers and colours for all that follows.
const data = JSON.parse(document.getElementById("data").textContent);

function column(text, Kind) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Kind(bytes.buffer);  // every machine that runs a browser is little-endian
}

for (const program of data.programs)
  for (const track of program.tracks) {
    track.cycle = column(track.cycle, Uint32Array);
    track.op = column(track.op, Uint8Array);
    track.operator = column(track.operator, Uint16Array);
    track.slots = 1;
  }
for (const memory of data.memories) {
  for (const name of ["slice", "start", "count"]) memory[name] = column(memory[name], Uint16Array);
  memory.name = column(memory.name, Uint32Array);
}
data.path.start = column(data.path.start, Uint32Array);
data.path.cycles = column(data.path.cycles, Uint32Array);
data.path.kind = column(data.path.kind, Uint16Array);
data.path.operator = column(data.path.operator, Uint16Array);

const program = (chip) => data.programs[chip.program];
const clock = program(data.chips[0]).chip.clock;

// Chips share programs, in which layers count from the chip's first: the name in the model.
const inModel = (name, chip) => name.replace(/^layers\.(-?\d+)/, (_, layer) => `layers.${+layer + chip.first}`);
// Layers do the same work again and again: their operators count together.
const short = data.operators.map((name) => name.replace(/^layers\.\d+\./, ""));

// --- numbers ---------------------------------------------------------------------------------------------------
const count = (n) => Math.round(n).toLocaleString("en-US");
const percent = (x) => (100 * x).toFixed(x < 0.0995 ? 2 : 1) + " %";
function three(value) {
  if (value === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(digits, 6));
}
function scaled(value, unit) {
  for (const [prefix, size] of [["k", 1e3], ["", 1], ["m", 1e-3], ["µ", 1e-6], ["n", 1e-9]])
    if (Math.abs(value) >= size) return [three(value / size), prefix + unit];
  return [three(value / 1e-12), "p" + unit];
}
const withUnit = (value, unit) => scaled(value, unit).join(" ");
const seconds = (cycles) => withUnit(cycles / clock, "s");
function bytes(n) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (n >= size) return three(n / size) + " " + unit;
  return n + " B";
}

// --- colours ---------------------------------------------------------------------------------------------------
let css = getComputedStyle(document.documentElement);
const colour = (name) => css.getPropertyValue("--" + name).trim();
const unitColour = (unit) => colour(unit.split(".")[0]);
const kindColour = (kind) => colour(kind.toLowerCase().split(".")[0]) || colour("icu");
const dark = () => document.documentElement.dataset.theme === "dark";

// Hues a golden angle apart, in the order in which things are first met: neighbours differ.
function hue(index) {
  const degrees = (index * 137.508 + 212) % 360;
  return `oklch(${dark() ? "0.76 0.11" : "0.54 0.13"} ${degrees.toFixed(1)})`;  // all as light, so words on them can be read
}
const shortIndex = new Map();
for (const name of short) if (!shortIndex.has(name)) shortIndex.set(name, shortIndex.size);
const operatorColour = (operator) => hue(shortIndex.get(short[operator]));

// --- small things for all pictures -----------------------------------------------------------------------------
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") made.style.cssText = value;
    else if (value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
// First index at which an ascending column is at least value.
function lower(values, value) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
// A canvas as large as its box, in device pixels.
function prepared(canvas) {
  const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(box.width * ratio));
  canvas.height = Math.max(1, Math.round(box.height * ratio));
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, box.width, box.height);
  context.font = '12px ui-sans-serif, system-ui, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif';
  context.textBaseline = "middle";
  return [context, box.width, box.height];
}
