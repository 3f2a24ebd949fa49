// A tensor's details, opened by the address #tensor=NAME.

const tensorsByName = new Map(data.tensors.map((tensor) => [tensor.name, tensor]));

function startDetails() {
  const dialog = document.getElementById("tensor");
  dialog.addEventListener("close", () => {
    if (nameInAddress() !== null) history.replaceState(null, "", location.pathname + location.search);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });
  addEventListener("hashchange", showNamed);
  // The address of the tensor that is shown already changes nothing, so links open by themselves.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-tensor]");
    if (link && nameInAddress() === link.dataset.tensor) showNamed();
  });
  showNamed();
}

function nameInAddress() {
  if (!location.hash.startsWith("#tensor=")) return null;
  try {
    return decodeURIComponent(location.hash.slice("#tensor=".length));
  } catch {
    return null; // a lone percent sign
  }
}

function showNamed() {
  const dialog = document.getElementById("tensor");
  const tensor = tensorsByName.get(nameInAddress());
  if (!tensor) {
    dialog.close();
    return;
  }
  dialog.replaceChildren(details(tensor));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function details(tensor) {
  return element("div", { class: "detail" },
    detailBar(tensor),
    element("h2", { id: "tensor-name" }, tensor.name || "(no name)"),
    element("p", { class: "lead" }, tensor.role),
    tensor.words.length ? element("p", {}, tensor.words.join(" ")) : null,
    tensor.distribution ? distributionFigure(tensor) : null,
    tensor.split !== null ? splitFigure(tensor) : null,
    tensor.channels ? channelFigure(tensor) : null,
    element("div", { class: "columns" }, ...tensor.facts.map(factGroup)),
    tensor.remedies.length ? remedyTable(tensor) : null,
  );
}

function detailBar(tensor) {
  const names = [...document.querySelectorAll("#tensor-table tbody tr:not([hidden]) th a")].map((a) => a.dataset.tensor);
  const place = names.indexOf(tensor.name);
  const step = (title, name) => {
    const button = element("button", { type: "button", disabled: name === undefined }, title);
    button.addEventListener("click", () => {
      location.hash = `#tensor=${encodeURIComponent(name)}`;
    });
    return button;
  };
  const close = element("button", { type: "button", autofocus: true }, "Close");
  close.addEventListener("click", () => document.getElementById("tensor").close());
  const before = place < 0 ? undefined : names[place - 1];
  return element("div", { class: "detail-bar" }, step("Previous", before), step("Next", names[place + 1]), close);
}

function factGroup([title, facts]) {
  const rows = facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return element("div", {}, element("h3", {}, title), element("dl", { class: "facts" }, ...rows));
}

function remedyTable(tensor) {
  const rows = tensor.remedies.map(([method, gain, sqnr, detail]) => [method, gain, sqnr, detail]);
  const titles = ["What was tried", "Takes away of the output’s error", "SQNR with it", ""];
  const table = tableOf("Remedies that were tried", titles, rows);
  const region = { class: "scroll", tabindex: "0", role: "region", "aria-label": "Remedies" };
  return element("div", {}, element("h3", {}, "Remedies, measured"), element("div", region, table));
}

function splitFigure(tensor) {
  const percent = (share) => (share > 0 && share < 1e-5 ? "under 0.001%" : d3.format(".3~p")(share));
  const [clipping, rounding] = [percent(tensor.split), percent(1 - tensor.split)];
  const bar = element("div", { class: "split", role: "img", "aria-label": `rounding ${rounding}, clipping ${clipping}` },
    element("i", { style: `--share: ${tensor.split}` }));
  const text = legend(["accent", `rounding ${rounding}`], ["clip", `clipping ${clipping}`]);
  return element("div", {}, element("h3", {}, "Its error, split"), text, bar);
}

// ------------------------------------------------------------------------------------------------ distribution

function bins({ edges, density }) {
  const at = edges.length === 2 && density.length !== 1
    ? (place) => edges[0] + ((edges[1] - edges[0]) * place) / density.length
    : (place) => edges[place];
  return density.map((value, place) => ({
    low: at(place), high: at(place + 1), share: value === EMPTY_BIN ? 0 : 10 ** (value / 100),
  }));
}

// A bin that an end of the range falls into is drawn in two colours.
function cut(bin, range) {
  if (!range) return [{ ...bin, beyond: false }];
  const ends = [bin.low, ...range.filter((end) => bin.low < end && end < bin.high), bin.high];
  return d3.pairs(ends).map(([low, high]) => ({
    low, high, share: bin.share, beyond: (low + high) / 2 < range[0] || (low + high) / 2 > range[1],
  }));
}

function distributionFigure(tensor) {
  const all = bins(tensor.distribution);
  const place = element("div", { class: "charts", role: "img", "aria-label": distributionWords(tensor, all) });
  drawIn(place, (width) => {
    const drawn = drawDistribution(tensor, all, width);
    note.textContent = `${drawn.note}${tensor.sampled ? " The picture is of the elements that calibration counted." : ""}`;
    return [drawn.plot];
  });
  const note = element("p", { class: "fine" });
  const table = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Distribution" });
  const asTable = element("details", { class: "as-table" }, element("summary", {}, "The same as a table"), table);
  fillWhenOpened(asTable, table, () => tableOf("Distribution", ["From", "To", "Share of the elements"],
    all.filter((bin) => bin.share > 0).map((bin) => [short(bin.low), short(bin.high), d3.format(".2~%")(bin.share)])));
  return element("div", {}, element("h3", {}, "Distribution"),
    rangeLegend("elements within the range", tensor.range, all.some((bin) => cut(bin, tensor.range).some(isClipped))),
    place, note, asTable);
}

const isClipped = (part) => part.beyond && part.share > 0;

const colorOf = (part) => `var(--${part.beyond ? "clip" : "accent"})`;

function rangeLegend(inside, range, clipped) {
  const entries = [["accent", inside]];
  if (clipped) entries.push(["clip", "clipped"]);
  if (range) entries.push(["range", "representable range"]);
  return legend(...entries);
}

const short = (value) => (Number.isFinite(value) ? d3.format(".4~g")(value) : "–");

function distributionWords(tensor, all) {
  const seen = `Elements from ${short(all[0].low)} to ${short(all[all.length - 1].high)}`;
  return tensor.range ? `${seen}; representable are ${tensor.range.map(short).join(" to ")}.` : `${seen}.`;
}

function drawDistribution(tensor, all, width) {
  const { range } = tensor;
  const shares = all.map((bin) => bin.share).filter((share) => share > 0);
  const floor = d3.min(shares) / 2;
  const top = d3.max(shares) * 1.6;
  const bottom = floor / (top / floor) ** 0.09; // room for the levels below the bars
  const ends = [all[0].low, all[all.length - 1].high, ...(range ?? [])];
  let [low, high] = d3.extent(ends);
  if (low === high) [low, high] = [low - 0.5, high + 0.5]; // a tensor of one number
  const parts = all.filter((bin) => bin.share > 0).flatMap((bin) => cut(bin, range));
  const powers = d3.range(Math.ceil(Math.log10(floor)), Math.log10(top)).map((power) => 10 ** power);
  const rug = levels(tensor, (width - 84) / (high - low));
  const plot = Plot.plot({
    width, height: Math.min(300, 120 + width / 4), marginLeft: 76, marginRight: 8, marginTop: 24, marginBottom: 36,
    x: { domain: [low, high], label: "value", tickFormat: "~g" },
    y: { type: "log", domain: [bottom, top], label: "share of the elements", ticks: powers, tickFormat: percentTick, grid: true },
    marks: [
      range ? Plot.rect([range], { x1: "0", x2: "1", y1: bottom, y2: top, fill: "var(--range)" }) : null,
      Plot.rect(parts, {
        x1: "low", x2: "high", y1: floor, y2: "share", fill: colorOf, stroke: colorOf, strokeWidth: 0.4,
      }),
      range ? Plot.ruleX(range, { stroke: "var(--ink)", strokeDasharray: "3,3", y1: bottom, y2: top }) : null,
      Plot.ruleX(rug.places, { y1: bottom, y2: floor * 0.9, stroke: "var(--ink)", strokeWidth: 1 }),
    ],
  });
  return { plot, note: rug.note };
}

// Where levels lie; of many, every second, fourth, ... is drawn.
function levels(tensor, pixelsPerUnit) {
  if (!tensor.range || !tensor.levels) return { places: [], note: "Each tensor gets its own range at run time." };
  if (tensor.unequal) {
    const marks = tensor.places ? " The marks below are levels." : "";
    return { places: tensor.places ?? [], note: `${tensor.unequal}${marks}` };
  }
  if (tensor.step === null) {
    return { places: [], note: "The scales differ, and with them the levels: the outermost range is shown." };
  }
  const every = 2 ** Math.max(0, Math.ceil(Math.log2(4 / (tensor.step * pixelsPerUnit))));
  const step = `one step is ${short(tensor.step)}`;
  if (every > tensor.levels / 4) {
    return { places: [], note: `${tensor.levels} levels, too close to be drawn: ${step}.` };
  }
  const places = d3.range(0, tensor.levels, every).map((level) => tensor.range[0] + level * tensor.step);
  const which = every === 1 ? "each" : `every ${every}th`.replace("2th", "2nd");
  return { places, note: `The marks below are levels (${which} of the ${tensor.levels}); ${step}.` };
}

// ---------------------------------------------------------------------------------------------------- channels

function channelFigure(tensor) {
  const { axis, index, low, high, rangeLow, rangeHigh } = tensor.channels;
  const rows = index.map((channel, place) => ({
    channel, low: low[place], high: high[place],
    from: rangeLow[Math.min(place, rangeLow.length - 1)], to: rangeHigh[Math.min(place, rangeHigh.length - 1)],
  }));
  const widest = d3.greatest(rows, (row) => row.high - row.low);
  const narrowest = d3.least(rows, (row) => row.high - row.low);
  const text = `Channel ${widest.channel} is the widest, ${short(widest.low)} to ${short(widest.high)}; `
    + `channel ${narrowest.channel} the narrowest, ${short(narrowest.low)} to ${short(narrowest.high)}.`;
  const place = element("div", { class: "charts", role: "img", "aria-label": text });
  drawIn(place, (width) => [drawChannels(rows, width)]);
  const table = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Ranges per channel" });
  const asTable = element("details", { class: "as-table" }, element("summary", {}, "The same as a table"), table);
  const titles = ["Channel", "Smallest", "Largest", "Representable from", "to"];
  fillWhenOpened(asTable, table, () => tableOf("Ranges per channel", titles,
    rows.map((row) => [`${row.channel}`, ...[row.low, row.high, row.from, row.to].map(short)])));
  const title = axis === null ? "Ranges per channel" : `Ranges per channel (axis ${axis})`;
  return element("div", {}, element("h3", {}, title),
    rangeLegend("from smallest to largest number", rows[0].to !== undefined, rows.some((row) => beyond(row).length)),
    place, element("p", { class: "fine" }, text), asTable);
}

// What lies below and above a channel's representable range.
function beyond({ channel, low, high, from, to }) {
  return [{ channel, low, high: Math.min(high, from) }, { channel, low: Math.max(low, to), high }]
    .filter((part) => part.low < part.high);
}

function drawChannels(rows, width) {
  const every = Math.ceil(rows.length / Math.max(4, Math.floor(width / 60)));
  const inset = Math.min(3, width / rows.length / 5);
  return Plot.plot({
    width, height: 220, marginLeft: 52, marginRight: 8, marginTop: 24, marginBottom: 36,
    x: {
      type: "band", domain: rows.map((row) => row.channel), label: "channel", padding: 0.1,
      ticks: rows.filter((_, place) => place % every === 0).map((row) => row.channel),
    },
    y: { label: "value", grid: true, tickFormat: "~g" },
    marks: [
      Plot.barY(rows, { x: "channel", y1: "from", y2: "to", fill: "var(--range)" }),
      Plot.barY(rows, { x: "channel", y1: "low", y2: "high", fill: "var(--accent)", insetLeft: inset, insetRight: inset }),
      Plot.barY(rows.flatMap(beyond), { x: "channel", y1: "low", y2: "high", fill: "var(--clip)", insetLeft: inset, insetRight: inset }),
      Plot.ruleY([0], { stroke: "var(--soft)" }),
    ],
  });
}
