// Attention of one sample: a table of heads, each a button; the weights of the one that is chosen as pictures.

const WEIGHT_COLORS = d3.range(256).map((level) => d3.rgb(d3.interpolateViridis(level / 255)));
const CHANGE_COLORS = d3.range(-127, 128).map((level) => d3.rgb(
  d3.interpolateRgb("#f4f4f1", level < 0 ? "#0a62a6" : "#b04808")(Math.abs(level) / 127),
));

function startAttention() {
  const place = document.getElementById("attention-heads");
  if (!place) return;
  const { heads, pictures } = data.attention;
  const shown = new Map();
  for (const picture of pictures) {
    const key = headKey(picture);
    shown.set(key, [...(shown.get(key) ?? []), picture]);
  }
  const panel = document.getElementById("attention-pictures");
  const buttons = new Map();
  const choose = (head, focus) => {
    for (const [other, button] of buttons) {
      button.setAttribute("aria-pressed", other === head);
      button.tabIndex = other === head ? 0 : -1;
    }
    if (focus) buttons.get(head).focus();
    panel.replaceChildren(...headFigures(head, shown.get(headKey(head))));
  };
  const most = d3.max(heads, (head) => head.moved) || 1;
  const cell = (head) => {
    if (!head) return element("td");
    if (!shown.has(headKey(head))) return element("td", {}, head.text);
    const button = element("button", {
      type: "button", "data-head": headKey(head), "aria-label": `${placeOf(head)}: ${head.text} moves`,
      style: `--share: ${(head.moved / most).toFixed(3)}`,
    }, head.text);
    button.addEventListener("click", () => choose(head));
    buttons.set(head, button);
    return element("td", {}, button);
  };
  const columns = d3.range(d3.max(heads, (head) => head.head) + 1);
  const attentions = d3.groups(heads, (head) => head.attention);
  place.append(element("table", {},
    element("caption", { class: "unseen" }, "Share of its weight that quantization moves, of each head. Buttons show the head."),
    element("thead", {}, element("tr", {}, ...["Attention", ...columns.map((head) => `Head ${head}`)]
      .map((title) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...attentions.map(([, members]) => element("tr", {},
      element("th", { scope: "row" }, capitalized(members[0].place)),
      ...columns.map((column) => cell(members.find((head) => head.head === column))))))));
  place.addEventListener("keydown", (event) => {
    const next = neighbour([...buttons.keys()], event);
    if (!next) return;
    event.preventDefault();
    choose(next, true);
  });
  const first = d3.greatest(buttons.keys(), (head) => head.moved);
  if (first) choose(first);
  const table = document.getElementById("attention-table");
  fillWhenOpened(table.parentElement, table, () => tableOf("Heads, the one that changes most first",
    ["Attention", "Head", "Weight that moves", "Written by"],
    d3.sort(heads, (head) => -head.moved).map((head) => [capitalized(head.place), `${head.head}`, head.text, head.node])));
}

const headKey = ({ attention, head }) => `${attention} ${head}`;
const capitalized = (text) => text[0].toUpperCase() + text.slice(1);
const placeOf = ({ place, head }) => `${capitalized(place)}, head ${head}`;

// Arrow keys go to the nearest head with a picture that way.
function neighbour(heads, event) {
  const current = heads.find((head) => headKey(head) === event.target.closest("button")?.dataset.head);
  const [rows, columns] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
  if (!current || (!rows && !columns)) return undefined;
  const along = (head) => rows * (head.attention - current.attention) + columns * (head.head - current.head);
  const beside = (head) => (rows ? head.head === current.head : head.attention === current.attention);
  return d3.least(heads.filter((head) => beside(head) && along(head) > 0), along);
}

// ---------------------------------------------------------------------------------------------------- pictures

function headFigures(head, pictures) {
  const place = element("div");
  const buttons = pictures.map((picture) => {
    const button = element("button", { type: "button" }, picture.shown === "matrix" ? "All queries and keys" : "Over the image");
    button.addEventListener("click", () => show(picture));
    return button;
  });
  const show = (picture) => {
    buttons.forEach((button, number) => button.setAttribute("aria-pressed", pictures[number] === picture));
    place.replaceChildren(...pictureFigures(head, picture));
  };
  show(pictures[0]);
  return [
    element("h3", {}, `${placeOf(head)}: ${head.text} of its weight moves`),
    element("p", { class: "fine" }, `Written by ${head.node}.`),
    buttons.length > 1 ? element("div", { class: "choices", role: "group", "aria-label": "What is shown" }, ...buttons) : "",
    place,
  ];
}

function pictureFigures(head, picture) {
  const { rows, columns, furthest } = picture;
  const { weights, changes } = attentionNumbers(picture);
  const rounded = weights.map((weight, place) => Math.max(0, weight + changes[place]));
  const top = Math.max(d3.max(weights), d3.max(rounded)) || 1;
  const weightColor = (weight) => WEIGHT_COLORS[Math.round(255 * Math.sqrt(weight / top))];
  const changeColor = (change) => CHANGE_COLORS[127 + Math.round((127 * change) / (furthest || 1))];
  const name = `${head.place}, head ${head.head}`;
  const figure = (title, colors, text) => pixelFigure(title, `${title} attention of ${name}: ${text}`, rows, columns, colors);
  const { sample } = data.attention;
  const places = tokenNames(picture);
  return [
    element("p", { class: "fine" }, shownWords(picture)),
    element("div", { class: "maps" },
      figure("Float", weights.map(weightColor), strongest(weights, places)),
      figure("Quantized", rounded.map(weightColor), strongest(rounded, places)),
      figure("Change", changes.map(changeColor), `at most ${short(furthest)}`),
      sample.rows ? pixelFigure("Sample", `The sample ${sample.name}`, sample.rows, sample.columns, sampleColors(sample)) : ""),
    element("div", { class: "ramps" },
      ramp(WEIGHT_COLORS, "0", short(top), "weight, colours by its root"),
      ramp(CHANGE_COLORS, short(-furthest), short(furthest), "change")),
    changeTable(places, weights, rounded, changes, name),
  ];
}

function attentionNumbers({ highest, furthest, weights, changes }) {
  return {
    weights: Array.from(bytesOf(weights), (level) => highest * (level / 255) ** 2),
    changes: Array.from(new Int8Array(bytesOf(changes).buffer), (level) => (furthest * level) / 127),
  };
}

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function sampleColors({ pixels }) {
  const bytes = bytesOf(pixels);
  return d3.range(bytes.length / 3).map((place) => d3.rgb(...bytes.subarray(3 * place, 3 * place + 3)));
}

function tokenNames({ shown, columns }) {
  const [row, column] = shown === "matrix" ? ["query", "key"] : ["row", "column"];
  return (place) => `${row} ${Math.floor(place / columns)}, ${column} ${place % columns}`;
}

function strongest(numbers, places) {
  const place = d3.maxIndex(numbers);
  return `most, ${short(numbers[place])}, at ${places(place)}`;
}

function shownWords({ shown, window: number, rows, columns }) {
  if (shown === "class token") return `What the class token looks at: its weights over the image’s ${rows} × ${columns} patches.`;
  if (shown === "mean of the queries") return `What is looked at: the mean of all queries’ weights over the image’s ${rows} × ${columns} patches.`;
  const where = number === null ? "" : ` of window ${number}, the one that changes most`;
  return `All weights${where}: queries from top to bottom, keys from left to right (${rows} × ${columns}).`;
}

function pixelFigure(title, text, rows, columns, colors) {
  const canvas = element("canvas", { role: "img", "aria-label": text, width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  colors.forEach(({ r, g, b }, place) => image.data.set([r, g, b, 255], 4 * place));
  context.putImageData(image, 0, 0);
  return element("figure", {}, canvas, element("figcaption", {}, title));
}

function ramp(colors, low, high, title) {
  const stops = d3.range(9).map((stop) => colors[Math.round((stop / 8) * (colors.length - 1))].formatHex());
  return element("p", { class: "fine" }, element("span", {}, low),
    element("i", { style: `background: linear-gradient(to right, ${stops.join(", ")})` }), element("span", {}, `${high} ${title}`));
}

function changeTable(places, weights, rounded, changes, name) {
  const table = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Largest changes" });
  const details = element("details", { class: "as-table" }, element("summary", {}, "The largest changes as a table"), table);
  const order = d3.sort(d3.range(changes.length), (place) => -Math.abs(changes[place])).slice(0, 12);
  fillWhenOpened(details, table, () => tableOf(`Largest changes of ${name}`, ["Place", "Float", "Quantized", "Change"],
    order.map((place) => [places(place), ...[weights, rounded, changes].map((numbers) => short(numbers[place]))])));
  return details;
}
