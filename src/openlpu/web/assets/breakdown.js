// Tables with bars: a token's time by kind and by operator, units, energy, splits.  A table's foot is the sum of its rows.
function table(caption, heads, rows, foot) {
  const made = element("table", {}, element("caption", {}, caption));
  const cells = (tag, row) => row.map((cell) => cell instanceof Node ? cell : element(tag, tag === "th" ? { scope: "col" } : {}, cell));
  made.append(element("thead", {}, element("tr", {}, ...cells("th", heads))));
  const body = element("tbody");
  for (const row of rows) body.append(element("tr", row.chosen ? { class: "chosen" } : {}, ...cells("td", row.cells || row)));
  made.append(body);
  if (foot) made.append(element("tfoot", {}, element("tr", {}, ...cells("td", foot))));
  return made;
}
function named(name, fill, mono) {
  const cell = element("td", {}, element("span", { class: "key", style: `background:${fill}`, "aria-hidden": "true" }));
  cell.append(mono ? element("code", {}, name) : name);
  return cell;
}
const bar = (share, fill) =>
  element("td", { class: "bar", "aria-hidden": "true" }, element("i", { style: `width:${100 * share}%;background:${fill}` }));

function sums(column, label) {
  const found = new Map();
  for (let i = 0; i < column.length; i++) found.set(label(column[i]), (found.get(label(column[i])) || 0) + data.path.cycles[i]);
  return [...found].sort((a, b) => b[1] - a[1]);
}

function drawBreakdown() {
  const kinds = sums(data.path.kind, (k) => data.kinds[k]);
  const operators = sums(data.path.operator, (o) => short[o]);
  const strip = document.getElementById("strip");
  strip.replaceChildren(...kinds.map(([name, cycles]) => element("i", {
    style: `flex:${cycles} 1 0;background:${kindColour(name)}`, title: `${name}: ${count(cycles)} cycles`,
  }, cycles / data.cycles > 0.08 ? `${name} ${percent(cycles / data.cycles)}` : cycles / data.cycles > 0.04 ? name : "")));
  strip.setAttribute("aria-label", kinds.map(([name, cycles]) => `${name} ${percent(cycles / data.cycles)}`).join(", "));
  for (const [id, caption, rows, fill] of [
    ["kinds", "By what happens", kinds, kindColour],
    ["operators", "By operator, over all layers", operators, (name) => hue(shortIndex.get(name))],
  ]) {
    const most = rows[0][1], total = rows.reduce((sum, row) => sum + row[1], 0);
    document.getElementById(id).replaceChildren(table(caption, ["", "cycles", "share", element("th", { class: "bar" })],
      rows.map(([name, cycles]) => [named(name, fill(name), id === "operators"), count(cycles), percent(cycles / total), bar(cycles / most, fill(name))]),
      ["together", count(total), percent(total / data.cycles), ""]));
  }
}

function drawUnits(chip) {
  const units = new Map();
  for (const track of program(chip).tracks) {
    const name = track.unit.toUpperCase(), row = units.get(name) || [0, 0];
    units.set(name, [row[0] + track.cycle.length, row[1] + track.slots]);
  }
  const rows = [...units].filter(([, [dispatches]]) => dispatches).map(([name, [dispatches, slots]]) => [name, dispatches, dispatches / slots / chip.cycles]);
  rows.sort((a, b) => b[2] - a[2]);
  const most = rows[0][2];
  document.getElementById("units").replaceChildren(table("Units in use", ["", "dispatches", "of its slots", element("th", { class: "bar" })],
    rows.map(([name, dispatches, share]) => [named(name, unitColour(name.toLowerCase())), count(dispatches), percent(share), bar(share / most, unitColour(name.toLowerCase()))]),
    ["together", count(rows.reduce((sum, row) => sum + row[1], 0)), "", ""]));
}

function drawEnergy() {
  const energy = data.energy, fills = { static: "waiting", SRAM: "mem", streams: "hops", MXM: "mxm", ALUs: "vxm", links: "c2c" };
  const dynamic = Object.entries(energy.dynamic);
  dynamic.sort((a, b) => b[1] - a[1]);
  const alone = [["static", energy.staticAlone], ...dynamic], full = [["static", energy.staticFull], ...dynamic];
  const total = (rows) => rows.reduce((sum, row) => sum + row[1], 0);
  const several = data.chips.length > 1;
  const rows = alone.map(([name, joules], i) => {
    const fill = colour(fills[name]);
    const cells = [named(name, fill), withUnit(joules, "J"), percent(joules / total(alone))];
    if (several) cells.push(withUnit(full[i][1], "J"), percent(full[i][1] / total(full)));
    return [...cells, bar(joules / total(alone), fill)];
  });
  const heads = ["", several ? "one request alone" : "joules", "share", ...(several ? ["pipeline full", "share"] : []), element("th", { class: "bar" })];
  const foot = ["together", withUnit(total(alone), "J"), "100.0 %", ...(several ? [withUnit(total(full), "J"), "100.0 %"] : []), ""];
  document.getElementById("energy").replaceChildren(table("By what was worked", heads, rows, foot));
  document.getElementById("energy-note").textContent =
    `A model by instruction with constants of ${energy.process}, not a measurement: ${withUnit(energy.wattsAlone, "W")} a chip on average for one request alone` +
    (several ? `, ${withUnit(energy.wattsFull, "W")} with a request in every chip` : "") +
    ". The first LPU’s published power is 185 W on average, 215 W by design, 300 W at most.";
}

function drawSplits() {
  if (!data.splits.length) return;
  document.getElementById("splits-section").hidden = false;
  const heads = Object.keys(data.splits[0]).filter((name) => name !== "chosen");
  const number = (value) => Number.isInteger(value) || value >= 1000 ? count(value) : three(value);
  const text = (value) => typeof value === "number" ? number(value) : value === true ? "yes" : value === false ? "no" : String(value ?? "");
  const cell = (row, name) => name === "why not" ? element("td", { class: "why" }, row.chosen ? "chosen" : text(row[name])) : text(row[name]);
  document.getElementById("splits").replaceChildren(table("Splits", heads.map((name) => name === "why not" ? "" : name),
    data.splits.map((row) => ({ chosen: row.chosen, cells: heads.map((name) => cell(row, name)) }))));
}

function drawHead() {
  const about = Object.entries(data.about).filter(([name]) => name !== "title");
  document.getElementById("title").textContent = data.about.title;
  document.getElementById("subtitle").textContent = about.map(([name, value]) => `${name} ${value}`).join("  ·  ");
  const chips = data.chips.length, joules = data.energy.staticAlone + Object.values(data.energy.dynamic).reduce((a, b) => a + b, 0);
  let fullest = 0, instructions = 0;
  for (const chip of data.chips) {
    const { slices, words } = program(chip).chip;
    fullest = Math.max(fullest, data.memories[chip.memory].count.reduce((a, b) => a + b, 0) / (slices * words));
    instructions += program(chip).tracks.reduce((sum, track) => sum + track.cycle.length, 0);
  }
  const figures = [
    [`Time of a ${data.what}`, count(data.cycles), "cycles"], [`At ${clock / 1e6} MHz`, ...scaled(data.cycles / clock, "s")],
    ["One request", count(clock / data.cycles), `${data.what}s/s`],
    ...(chips > 1 ? [["Pipeline full", count(clock / data.interval), `${data.what}s/s`]] : []),
    [`Energy of a ${data.what}`, ...scaled(joules, "J")], ["SRAM in use", percent(fullest), chips > 1 ? "of the fullest chip" : ""],
    ["Instructions", count(instructions), ""],
  ];
  document.getElementById("figures").replaceChildren(...figures.map(([name, value, unit]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, unit)))));
  document.getElementById("footer").textContent =
    "Made by openlpu from the compiled program. Times are exact cycles of the schedule, known before it runs.";
}
