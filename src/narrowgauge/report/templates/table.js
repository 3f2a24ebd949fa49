// The table of tensors: sorted by its head, filtered by name, kind and operator.

function startTable() {
  const table = document.getElementById("tensor-table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    // Numbers begin with the largest, texts with the first of the alphabet; the second click turns that round.
    const first = head.dataset.kind === "number" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", direction);
    body.append(...sorted(rows, column, head.dataset.kind, direction));
  }));
  const fields = ["search", "kind", "operator"].map((name) => document.getElementById(name));
  const filter = () => filterRows(rows, ...fields.map((field) => field.value));
  fields.forEach((field) => field.addEventListener("input", filter));
  body.addEventListener("click", (event) => {
    const link = event.target.closest("tr").querySelector("a");
    if (!event.target.closest("a") && !getSelection().toString()) link.click();
  });
  filter(); // a browser may remember what was typed
}

function sorted(rows, column, kind, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  const key = (row) => {
    const cell = row.cells[column];
    if (kind === "text") return cell.textContent.trim();
    return cell.dataset.value === "" ? NaN : Number(cell.dataset.value.replace("inf", "Infinity"));
  };
  const compare = kind === "text"
    ? (a, b) => sign * a.localeCompare(b, "en", { numeric: true })
    : (a, b) => (Number.isNaN(a) || Number.isNaN(b)  // what is unknown comes last, whichever way
      ? Number.isNaN(a) - Number.isNaN(b)
      : a === b ? 0 : sign * (a < b ? -1 : 1));
  return rows.map((row) => [key(row), row]).sort(([a], [b]) => compare(a, b)).map(([, row]) => row);
}

function filterRows(rows, text, kind, operator) {
  const wanted = text.trim().toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const fits = row.cells[0].textContent.toLowerCase().includes(wanted)
      && (!kind || row.dataset.kind === kind) && (!operator || row.dataset.operator === operator);
    row.hidden = !fits;
    shown += fits;
  }
  const noun = rows.length === 1 ? "tensor" : "tensors";
  const count = shown === rows.length ? `${shown} ${noun}` : `${shown} of ${rows.length} ${noun}`;
  document.getElementById("count").textContent = count;
  document.getElementById("none").hidden = shown > 0;
}
