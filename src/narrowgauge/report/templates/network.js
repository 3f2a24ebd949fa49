// The network along its depth: cost of each layer, cumulative SQNR, what is left float. A slider walks through it,
// so that keyboard, touch and screen reader have the same as the pointer.

function startNetwork() {
  const place = document.getElementById("network-charts");
  if (!place) return;
  const stops = networkStops();
  const slider = document.getElementById("layer");
  const { cursors, select } = networkCursor(stops, slider);
  slider.max = stops.length - 1;
  slider.value = d3.maxIndex(stops, (stop) => stop.layer?.cost ?? -1);
  slider.addEventListener("input", select);
  drawIn(place, (width) => {
    cursors.length = 0;
    const drawn = [drawCosts(stops, width), drawNoise(stops, width)].filter((plot) => plot !== null);
    for (const plot of drawn) cursors.push(cursorOf(plot));
    queueMicrotask(select);
    return [networkLegend(stops), ...drawn];
  });
  const follow = (event) => {
    const [cursor] = cursors;
    if (!cursor) return;
    const depth = cursor.invert(event.clientX - cursor.plot.getBoundingClientRect().left);
    slider.value = d3.leastIndex(stops, (stop) => Math.abs(stop.depth - depth));
    select();
  };
  place.addEventListener("pointermove", follow);
  place.addEventListener("pointerdown", follow);
  const table = document.getElementById("network-table");
  fillWhenOpened(table.parentElement, table, () => tableOf("Cost and SQNR along the network",
    ["Node", "Operator", "Cost", "Saved if float", "SQNR of its output", "Left float because"],
    stops.map((stop) => [stop.node, stop.operator, stop.layer?.costText ?? "–", stop.layer?.savedText ?? "–",
      stop.value?.text ?? "–", stop.reason])));
}

// One stop for each node that has a cost or a value, in the network's order.
function networkStops() {
  const stops = new Map();
  const stop = (one) => {
    if (!stops.has(one.depth)) {
      stops.set(one.depth, { depth: one.depth, node: one.node || one.name, operator: one.operator, reason: "" });
    }
    return stops.get(one.depth);
  };
  for (const layer of data.layers) {
    const at = stop(layer);
    if (!at.layer || layer.cost > at.layer.cost) at.layer = layer;
  }
  for (const value of data.values) {
    const at = stop(value);
    at.operator ||= value.operator;
    at.reason ||= value.reason;
    if (!at.value || (value.sqnr ?? Infinity) < (at.value.sqnr ?? Infinity)) at.value = value;
  }
  return d3.sort(stops.values(), (one) => one.depth);
}

function networkCursor(stops, slider) {
  const cursors = [];
  const text = document.getElementById("layer-text");
  const select = () => {
    const stop = stops[slider.value];
    if (!stop) return;
    for (const cursor of cursors) cursor.move(stop.depth);
    slider.setAttribute("aria-valuetext", stopWords(stop));
    const links = data.tensors.filter((tensor) => tensor.node === stop.node && tensor.node)
      .flatMap((tensor, place) => [place ? ", " : " Tensors: ", tensorLink(tensor.name)]);
    text.replaceChildren(element("strong", {}, stop.node), ` ${stopWords({ ...stop, node: "" })}`, ...links);
  };
  return { cursors, select };
}

function stopWords(stop) {
  const layer = stop.layer && stop.layer.cost !== null
    ? ` Adds ${stop.layer.costText} of the error at the output; left float, ${stop.layer.savedText} goes away.` : "";
  const value = stop.value ? ` SQNR of its output: ${stop.value.text}.` : "";
  const reason = stop.reason ? ` Left float: ${stop.reason}.` : "";
  return `${stop.node} ${stop.operator || "layer"}.${layer}${value}${reason}`.trim();
}

function networkLegend(stops) {
  const entries = [];
  if (stops.some((stop) => stop.layer)) entries.push(["accent", "error that the layer or value adds by itself"], ["clip", "error that goes away if it is left float", "ring"]);
  if (stops.some((stop) => stop.reason)) entries.push(["island", "left float"]);
  return legend(...entries);
}

const depthDomain = (stops) => [stops[0].depth - 0.7, stops[stops.length - 1].depth + 0.7];

function islands(stops) {
  return Plot.rectX(stops.filter((stop) => stop.reason), {
    x1: (stop) => stop.depth - 0.5, x2: (stop) => stop.depth + 0.5, fill: "var(--island)",
  });
}

const NETWORK_FRAME = { marginLeft: 52, marginRight: 10, marginTop: 22 };

function drawCosts(stops, width) {
  const known = stops.filter((stop) => stop.layer && stop.layer.cost !== null);
  if (!known.length) return null;
  const thick = Math.max(2, Math.min(16, (0.55 * width) / stops.length));
  return Plot.plot({
    ...NETWORK_FRAME, width, height: 190, marginBottom: 8,
    x: { domain: depthDomain(stops), axis: null },
    y: { label: "share of the output’s error", grid: true, tickFormat: percentTick, ticks: 5, nice: true },
    marks: [
      islands(stops),
      Plot.ruleX(known, {
        x: "depth", y1: 0, y2: (stop) => stop.layer.cost, stroke: "var(--accent)", strokeWidth: thick,
      }),
      Plot.dot(known, {
        x: "depth", y: (stop) => stop.layer.saved, r: Math.max(2, Math.min(4, thick / 2)), stroke: "var(--clip)",
        strokeWidth: 1.5,
      }),
      Plot.ruleY([0], { stroke: "var(--soft)" }),
    ],
  });
}

function drawNoise(stops, width) {
  const known = stops.filter((stop) => stop.value && stop.value.sqnr !== null);
  if (!known.length) return null;
  return Plot.plot({
    ...NETWORK_FRAME, width, height: 176, marginBottom: 36,
    x: { domain: depthDomain(stops), label: "node, in the network’s order", tickFormat: "d" },
    y: { label: "SQNR, dB", grid: true, nice: true, ticks: 5 },
    marks: [
      islands(stops),
      Plot.lineY(known, { x: "depth", y: (stop) => stop.value.sqnr, stroke: "var(--soft)", strokeWidth: 1.2 }),
      Plot.dot(known, { x: "depth", y: (stop) => stop.value.sqnr, r: 2, fill: "var(--ink)" }),
    ],
  });
}

// A line through a chart at the selected place.
function cursorOf(plot) {
  const scale = plot.scale("x");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const height = Number(plot.getAttribute("height"));
  for (const [name, value] of Object.entries({ y1: 18, y2: height - 8, stroke: "var(--ink)", "stroke-width": 1 })) {
    line.setAttribute(name, value);
  }
  plot.append(line);
  return {
    plot,
    invert: scale.invert,
    move: (depth) => {
      line.setAttribute("x1", scale.apply(depth));
      line.setAttribute("x2", scale.apply(depth));
    },
  };
}
