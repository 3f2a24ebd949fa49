// The Pareto front of mixed precision, and the start of everything.

function startFront() {
  const place = document.getElementById("front-chart");
  if (!place) return;
  const { front } = data;
  const known = front.filter((choice) => choice.sqnr !== null);
  const chosen = front.filter((choice) => choice.chosen);
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${front.length} assignments from ${front[0].costText} (SQNR ${front[0].sqnrText}) `
    + `to ${front[front.length - 1].costText} (SQNR ${front[front.length - 1].sqnrText}).`);
  drawIn(place, (width) => [Plot.plot({
    width, height: 260, marginLeft: 52, marginRight: 16, marginTop: 22, marginBottom: 36,
    x: { label: front[0].unit === "bytes" ? "size of the weights" : "bit operations", tickFormat: "~s", nice: true, ticks: width / 90 },
    y: { label: "predicted SQNR, dB", grid: true, nice: true, ticks: 6 },
    marks: [
      Plot.lineY(known, { x: "cost", y: "sqnr", stroke: "var(--soft)", curve: "step-after" }),
      Plot.dot(known, { x: "cost", y: "sqnr", fill: "var(--accent)", r: 3.5, title: (choice) => choice.layers }),
      Plot.dot(chosen, { x: "cost", y: "sqnr", stroke: "var(--ink)", strokeWidth: 2, r: 8 }),
    ],
  })]);
  const table = document.getElementById("front-table");
  fillWhenOpened(table.parentElement, table, () => tableOf("Pareto front", ["Cost", "Predicted SQNR", "Layers", ""],
    front.map((choice) => [choice.costText, choice.sqnrText, choice.layers, choice.chosen ? "taken" : ""])));
}

startTheme();
startTable();
startDetails();
startNetwork();
startAttention();
startFront();
