// What all charts share: the data, elements made of text (never of markup), drawing at the width there is.

const data = JSON.parse(document.getElementById("data").textContent);
const EMPTY_BIN = 1; // densities are hundredths of powers of ten, none above 0

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function tableOf(caption, titles, rows) {
  const head = titles.map((title) => element("th", { scope: "col" }, title));
  const body = rows.map(([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((cell) => element("td", {}, cell))),
  );
  return element(
    "table", {}, element("caption", { class: "unseen" }, caption),
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body),
  );
}

// A table that is made when it is first looked at.
function fillWhenOpened(details, place, make) {
  details.addEventListener("toggle", () => {
    if (details.open && !place.hasChildNodes()) place.append(make());
  });
}

function legend(...entries) {
  return element("p", { class: "legend" }, ...entries.map(([color, text, shape]) =>
    element("span", {}, element("i", { style: `--swatch: var(--${color})`, class: shape ?? null }), text)));
}

// Draw into a place, and again when its width changes. `draw(width)` returns elements.
function drawIn(place, draw) {
  let width = 0;
  const observer = new ResizeObserver(() => {
    const now = Math.floor(place.clientWidth - 2 * parseFloat(getComputedStyle(place).paddingLeft));
    if (!place.isConnected) observer.disconnect();
    else if (now > 0 && now !== width) {
      width = now;
      place.replaceChildren(...draw(width));
    }
  });
  observer.observe(place);
}

function tensorLink(name) {
  return element("a", { href: `#tensor=${encodeURIComponent(name)}`, "data-tensor": name }, name || "(no name)");
}

const percentTick = (share) => `${d3.format(".3~g")(100 * share)} %`;
