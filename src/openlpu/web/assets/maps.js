// Maps: the chips of a system and their links, the floor plan of a chip, and what takes the rows of its SRAM.
let chosenChip = 0;
const sramCanvas = document.getElementById("sram"), sramPointed = document.getElementById("sram-pointed");

// Slots in use: a cycle of each instruction; of a link, as long as each vector that it sends takes.
const SEND = data.instructions.findIndex(([name]) => name === "send");
function taken(track, chip) {
  track.taken ??= track.unit === "c2c" ? track.op.reduce((sum, op) => sum + (op === SEND), 0) * chip.linkSlot : track.cycle.length;
  return track.taken;
}
const shareOf = (track, chip) => taken(track, chip) / chip.cycles;
// From the card to the full colour; a square root, because most units rest most of the time.
const heat = (share, most) => `rgb(${colour("heat")} / ${most ? (0.06 + 0.94 * Math.sqrt(share / most)).toFixed(3) : 0.06})`;

// --- chips and links -------------------------------------------------------------------------------------------
// The largest share of any queue of a chip.
function busiestQueue(chip) {
  const made = program(chip);
  made.busiest ??= Math.max(...made.tracks.map((track) => taken(track, chip)));
  return made.busiest / chip.cycles;
}
function chipUse(chip) {
  const made = program(chip);
  made.use ??= made.tracks.reduce((sum, track) => sum + track.cycle.length, 0) / made.tracks.length;
  return made.use / chip.cycles;
}

// Words on a shade: dark on light ones, light on dark ones.
const ink = (share, most) => most && Math.sqrt(share / most) > (dark() ? 0.7 : 0.8) ? `fill:${dark() ? "#101113" : "#ffffff"}` : "";

// Chips that begin together: those of a stage.
function perStage() {
  const next = data.chips.findIndex((chip) => chip.start !== data.chips[0].start);
  return next > 1 && data.chips.length % next === 0 ? next : 1;
}

// Where chips stand: up to eight around an ellipse, so that a full mesh can be seen; more in columns, one for each
// stage, or in rows of nodes of eight where a stage is one chip or all.
function standing(many, group) {
  if (many <= 8) {
    const wide = 118, tall = 50, width = 760, height = many > 2 ? 340 : tall + 30;
    const at = (i) => {
      const turn = (i + 0.5) / many * 2 * Math.PI - Math.PI / 2;
      return [width / 2 + (width - wide - 20) / 2 * Math.sin(turn + Math.PI / 2), height / 2 + (height - tall - 20) / 2 * -Math.cos(turn + Math.PI / 2)];
    };
    return { wide, tall, width, height, at };
  }
  if (group > 1) {
    const stages = many / group, bands = Math.ceil(stages / 36), across = Math.ceil(stages / bands);
    const pitch = Math.min(130, 1160 / across), tall = 22, step = 32;
    const at = (i) => {
      const stage = Math.floor(i / group), down = Math.floor(stage / across) * (group + 1) + i % group;
      return [10 + pitch * (stage % across + 0.5), 30 + step * down];
    };
    return { wide: pitch - Math.min(18, pitch * 0.2), tall, width: 20 + pitch * across, height: 30 + step * bands * (group + 1) - step / 2, at };
  }
  const perRow = 8 * Math.max(1, Math.round(Math.sqrt(many / 24))), pitch = 1160 / perRow;
  const tall = Math.max(20, Math.min(44, pitch * 0.6)), gap = Math.min(18, pitch * 0.16), rows = Math.ceil(many / perRow);
  const at = (i) => [10 + pitch * (i % perRow + 0.5), 40 + tall / 2 + Math.floor(i / perRow) * (tall + 2 * gap)];
  return { wide: pitch - gap, tall, width: 1180, height: rows * (tall + 2 * gap) + 60, at };
}

function drawSystem() {
  const many = data.chips.length;
  if (many < 2) return;
  const group = perStage(), { wide, tall, width, height, at } = standing(many, group), index = new Map(data.chips.map((chip, i) => [chip.name, i]));
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "group", "aria-label": `${many} chips and their links` });
  const links = data.chips.flatMap((chip, from) => program(chip).tracks.filter((track) => index.has(chip.peers[track.name])).map((track) =>
    ({ from, to: index.get(chip.peers[track.name]), share: shareOf(track, chip) })));
  const most = Math.max(...links.map((link) => link.share), 0), busiest = Math.max(...data.chips.map(busiestQueue));
  const wires = svg("g", { "pointer-events": many > 8 ? "none" : "auto" });
  if (many <= 8) picture.append(wires);  // behind the chips; of many, over them
  for (const link of links) {
    const mine = link.from === chosenChip || link.to === chosenChip;
    if (many > 8 && !mine) continue;
    const [x1, y1] = at(link.from), [x2, y2] = at(link.to), bend = many > 8 ? 0.14 : 0.05;
    const line = svg("path", {
      d: `M${x1} ${y1} Q${(x1 + x2) / 2 + (y2 - y1) * bend} ${(y1 + y2) / 2 - (x2 - x1) * bend} ${x2} ${y2}`, fill: "none", stroke: colour("c2c"),
      "stroke-width": 1 + 4 * (most ? link.share / most : 0), "stroke-opacity": (link.share ? 0.8 : 0.3) * (mine ? 1 : 0.4),
    });
    line.append(svg("title", {}, `${data.chips[link.from].name} to ${data.chips[link.to].name}: ${percent(link.share)} of its slots`));
    wires.append(line);
  }
  data.chips.forEach((chip, i) => {
    const [cx, cy] = at(i), x = cx - wide / 2, y = cy - tall / 2, use = chipUse(chip), size = { x, y, width: wide, height: tall, rx: 6 };
    const label = `${chip.name}: ${percent(use)} of its dispatch slots, cycles ${count(chip.start)} to ${count(chip.start + chip.cycles)}`;
    const box = svg("g", { class: "chip", tabindex: 0, role: "button", "aria-pressed": i === chosenChip, "aria-label": label });
    box.append(svg("title", {}, label), svg("rect", { ...size, fill: colour("card") }), svg("rect", { ...size, fill: heat(use, busiest) }));
    const style = ink(use, busiest), word = { x: cx, "text-anchor": "middle", style };
    if (wide > 90) box.append(svg("text", { ...word, y: cy + (tall > 40 ? -4 : 4) }, chip.name));
    else if (wide > 24) box.append(svg("text", { ...word, y: cy + 4 }, chip.name.replace(/^chip /, "")));
    if (wide > 90 && tall > 40) box.append(svg("text", { ...word, y: cy + 13 }, percent(use)));
    const pick = () => {
      chosenChip = i;
      drawMaps();
      document.querySelectorAll("#system .chip")[i].focus();
    };
    box.addEventListener("click", pick);
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      pick();
    });
    picture.append(box);
  });
  if (many > 8) picture.append(wires);
  const note = `Chips are shaded by the share of dispatch slots in use, on the scale of the floor plan below; links are as thick as theirs`
    + `${most ? `, ${percent(most)} at most` : ""}${many > 8 ? ", those of the chosen chip only" : ""}.${many > 8 && group > 1 ? " A column is a stage." : ""} Choose a chip to see its floor plan and SRAM.`;
  document.getElementById("system").replaceChildren(element("p", { class: "quiet" }, note), picture);
}

// --- floor plan ------------------------------------------------------------------------------------------------
function drawFloor() {
  const chip = data.chips[chosenChip], made = program(chip), { positions } = made.chip, high = 252, top = 26;
  const units = new Map();  // queue -> tracks: both ports of a slice are one cell
  for (const track of made.tracks) {
    const queue = track.name.split(" ")[0];
    if (!units.has(queue)) units.set(queue, { queue, unit: track.unit.split(".")[0], position: track.position, west: track.west, use: [] });
    const cell = units.get(queue);
    cell.use.push(shareOf(track, chip));
  }
  const columns = new Map();
  for (const cell of units.values()) {
    const key = cell.unit === "c2c" ? (cell.west ? -1 : positions) : cell.position;
    cell.share = cell.use.reduce((a, b) => a + b, 0) / cell.use.length;
    if (!columns.has(key)) columns.set(key, []);
    columns.get(key).push(cell);
  }
  const most = Math.max(...[...units.values()].map((cell) => cell.share));
  const picture = svg("svg", { role: "img", "aria-label": `Floor plan of ${chip.name}: use of ${units.size} queues` });
  let x = 0;
  for (const key of [...columns.keys()].sort((a, b) => a - b)) {
    const cells = columns.get(key), unit = cells[0].unit, across = unit === "vxm" ? 2 : 1;
    const wide = unit === "vxm" ? 46 : unit === "c2c" ? 34 : 40, deep = Math.ceil(cells.length / across), tall = high / deep;
    if (unit !== "mem") picture.append(svg("text", { x: x + (wide * across) / 2, y: 14, "text-anchor": "middle" }, unit === "c2c" ? "links" : unit.toUpperCase()));
    cells.forEach((cell, i) => {
      const cx = x + (i % across) * wide, cy = top + Math.floor(i / across) * tall;
      const box = svg("g", {}, svg("title", {}, `${cell.queue}: ${percent(cell.share)} of its dispatch slots`));
      box.append(svg("rect", { x: cx, y: cy, width: wide - 2, height: tall - 2, rx: 3, fill: colour("card"), stroke: colour("line") }),
        svg("rect", { x: cx, y: cy, width: wide - 2, height: tall - 2, rx: 3, fill: heat(cell.share, most) }));
      if (tall > 14 && cell.share) {
        box.append(svg("text", { x: cx + wide / 2 - 1, y: cy + tall / 2 + 3, "text-anchor": "middle", style: ink(cell.share, most) }, (100 * cell.share).toFixed(1)));
      }
      picture.append(box);
    });
    if (unit === "mem") {
      const slices = cells.map((cell) => +cell.queue.slice(3));
      picture.append(svg("text", { x: x + wide / 2 - 1, y: top + high + 14, "text-anchor": "middle", class: "quiet" }, slices[0]));
    }
    x += wide * across + (unit === "mem" ? 0 : 4);
  }
  picture.append(svg("text", { x: 0, y: top + high + 14, class: "quiet" }, "first slice"));
  picture.setAttribute("viewBox", `0 0 ${x} ${top + high + 20}`);
  picture.setAttribute("width", x);
  document.getElementById("floor").replaceChildren(picture);
  document.getElementById("floor-title").textContent = `${chip.name}, ${made.chip.name}`;
  document.getElementById("floor-scale").textContent = `numbers are percent. The busiest has ${percent(most)}.`;
}

// --- SRAM ------------------------------------------------------------------------------------------------------
const kindOf = (memory, name) => memory.names[name].split(".")[0];
function sramKinds(memory) {
  const rows = new Map();
  for (let i = 0; i < memory.name.length; i++) {
    const kind = kindOf(memory, memory.name[i]);
    rows.set(kind, (rows.get(kind) || 0) + memory.count[i]);
  }
  return [...rows].sort((a, b) => b[1] - a[1]);
}
const sramView = () => document.querySelector("[name=rows]:checked").value;
const sramColour = (kinds, kind) => kind === "temporary" ? colour("temporary") : hue(kinds.findIndex(([name]) => name === kind));

// The rows on show: all, or those in use, which lie at both ends of the addresses.
function sramScale(memory, words) {
  if (sramView() === "all") return { bottom: words, top: words };
  let bottom = 1, top = words;
  for (let i = 0; i < memory.name.length; i++) {
    const end = memory.start[i] + memory.count[i];
    if (memory.start[i] < words / 2 || end - memory.start[i] > words / 2) bottom = Math.max(bottom, end);
    else top = Math.min(top, memory.start[i]);
  }
  return bottom >= top ? { bottom: words, top: words } : { bottom, top };
}

const SRAM_LEFT = 62, SRAM_GAP = 16, SRAM_FOOT = 24;
function sramGeometry(memory, chip, width, height) {
  const { bottom, top } = sramScale(memory, chip.words), gap = top < chip.words ? SRAM_GAP : 0;
  const rows = bottom + chip.words - top, scale = (height - SRAM_FOOT - 8 - gap) / rows, floor = height - SRAM_FOOT;
  const wide = (width - SRAM_LEFT - 10) / chip.slices;
  return {
    x: (slice) => SRAM_LEFT + slice * wide, wide, scale, floor, bottom, top, gap,
    y: (address) => floor - (address < bottom || !gap ? address : address - top + bottom) * scale - (address >= top && gap ? gap : 0),
  };
}

function drawSram() {
  const chip = data.chips[chosenChip], made = program(chip).chip, memory = data.memories[chip.memory], kinds = sramKinds(memory);
  const [g, width, height] = prepared(sramCanvas), map = sramGeometry(memory, made, width, height);
  g.fillStyle = colour("faint");
  for (let slice = 0; slice < made.slices; slice++) {
    g.fillRect(map.x(slice), map.y(map.bottom - 1) - map.scale, map.wide - 1, map.floor - map.y(map.bottom - 1) + map.scale);
    if (map.gap) g.fillRect(map.x(slice), map.y(made.words - 1) - map.scale, map.wide - 1, (made.words - map.top) * map.scale);
  }
  for (let i = 0; i < memory.name.length; i++) {
    const tall = Math.max(1, memory.count[i] * map.scale), y = map.y(memory.start[i]);
    g.fillStyle = sramColour(kinds, kindOf(memory, memory.name[i]));
    g.fillRect(map.x(memory.slice[i]), y - tall, map.wide - 1, tall);
  }
  g.fillStyle = colour("quiet");
  for (let slice = 0; slice < made.slices; slice += 4) g.fillText(slice, map.x(slice), map.floor + 12);
  g.textAlign = "right";
  const ticks = map.gap ? [0, map.bottom, map.top, made.words] : [0, made.words / 4, made.words / 2, 3 * made.words / 4, made.words];
  let before = Infinity;
  for (const row of new Set(ticks)) {
    const y = row === made.words ? map.y(row - 1) - map.scale : row === map.bottom && map.gap ? map.y(row - 1) - map.scale : map.y(row);
    const at = Math.min(Math.max(y, 8), map.floor - 4);
    if (before - at < 13) continue;  // would lie on the one below
    before = at;
    g.fillText(count(row), SRAM_LEFT - 8, at);
  }
  g.textAlign = "left";
  g.fillText("slice", 12, map.floor + 12);
  const used = kinds.reduce((sum, [, rows]) => sum + rows, 0), all = made.slices * made.words;
  document.getElementById("sram-note").textContent =
    `${chip.name}: ${count(used)} of ${count(all)} rows of ${made.lanes} bytes are in use, ${bytes(used * made.lanes)}.`;
  const most = kinds[0][1];
  document.getElementById("sram-table").replaceChildren(table("What takes the rows", ["", "rows", "of SRAM", "size", element("th", { class: "bar" })],
    kinds.map(([kind, rows]) => [named(kind, sramColour(kinds, kind)), count(rows), percent(rows / all), bytes(rows * made.lanes), bar(rows / most, sramColour(kinds, kind))]),
    ["together", count(used), percent(used / all), bytes(used * made.lanes), ""]));
}

function pointSram(event) {
  const chip = data.chips[chosenChip], made = program(chip).chip, memory = data.memories[chip.memory];
  const map = sramGeometry(memory, made, sramCanvas.clientWidth, sramCanvas.clientHeight);
  const slice = Math.floor((event.offsetX - SRAM_LEFT) / map.wide), reach = 2 / map.scale;
  const up = (map.floor - event.offsetY) / map.scale, high = map.bottom + map.gap / map.scale;
  const address = !map.gap || up < high ? up : up - high + map.top;
  let best = -1, far = reach;
  for (let i = 0; i < memory.name.length; i++) {
    if (memory.slice[i] !== slice) continue;
    const away = Math.max(memory.start[i] - address, address - memory.start[i] - memory.count[i], 0);
    if (away <= far) { best = i; far = away; if (!away) break; }
  }
  const where = slice >= 0 && slice < made.slices && address >= 0 && address < made.words;
  sramPointed.textContent = best >= 0
    ? `slice ${slice}, rows ${count(memory.start[best])} to ${count(memory.start[best] + memory.count[best] - 1)}: ${inModel(memory.names[memory.name[best]], chip)}`
    : where ? `slice ${slice}, row ${count(Math.floor(address))}: free` : "";
}

function drawMaps() {
  drawSystem();
  drawFloor();
  drawUnits(data.chips[chosenChip]);
  drawSram();
}
