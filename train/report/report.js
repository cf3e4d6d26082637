"use strict";
// ---- tables: a click on a title sorts, a second one turns round
const number = (text) => (/^[^\d–-]*$/.test(text) ? NaN : parseFloat(text.replace(/[,≥ ]/g, "")));
const cell = (row, place) => row.cells[place].textContent.trim();
function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  if (!isNaN(x) && !isNaN(y)) return x - y;
  if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what has no number comes last
  return a.localeCompare(b);
}
function sort(head) {
  const body = head.closest("table").tBodies[0];
  const rising = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const rows = [...body.rows].map((row) => [cell(row, head.cellIndex), row]);
  rows.sort((a, b) => (rising ? compare(a[0], b[0]) : compare(b[0], a[0])));
  body.append(...rows.map((pair) => pair[1]));
}
for (const head of document.querySelectorAll(".sortable th")) {
  head.tabIndex = 0;
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter") sort(head);
  });
}

// ---- the confusion matrix: cells move, the view box zooms
function explore(svg) {
  const section = svg.closest("section");
  const [order, show] = [section.querySelector(".order"), section.querySelector(".show")];
  const [output, cursor] = [section.querySelector("output"), svg.querySelector(".cursor")];
  const [names, photos] = [JSON.parse(svg.dataset.names), JSON.parse(svg.dataset.photos)];
  const margin = Number(svg.dataset.margin), labelled = Number(svg.dataset.labelled);
  const cells = [...svg.querySelectorAll("[data-n]")].map((rect) => ({
    rect, truth: Number(rect.getAttribute("y")), answer: Number(rect.getAttribute("x")), count: Number(rect.dataset.n),
  }));
  const labels = ["row", "column"].map((kind) => [...svg.querySelectorAll(`text.${kind}`)]);
  const counts = new Map(cells.map((one) => [one.truth * names.length + one.answer, one.count]));
  const wrong = names.map(() => 0);
  for (const one of cells) {
    if (one.truth !== one.answer) { wrong[one.truth] += one.count; wrong[one.answer] += one.count; }
  }
  const keys = { name: (species) => species, wrong: (species) => -wrong[species], photos: (species) => -photos[species] };
  let places = [], species = [], side = names.length, at = [0, 0];

  function arrange() {
    const key = keys[order.value];
    species = names.map((_, one) => one).sort((a, b) => key(a) - key(b) || a - b);
    places = [];
    species.forEach((one, place) => { places[one] = place; });
    side = Math.min(Number(show.value) || names.length, names.length);
    for (const one of cells) {
      const [x, y] = [places[one.answer], places[one.truth]];
      one.rect.setAttribute("x", x);
      one.rect.setAttribute("y", y);
      one.rect.setAttribute("visibility", x < side && y < side ? "visible" : "hidden");
    }
    const edge = side <= labelled ? margin * side : 0;
    svg.classList.toggle("bare", !edge);
    svg.setAttribute("viewBox", `${-edge} ${-edge} ${side + edge} ${side + edge}`);
    for (const name of ["width", "height"]) svg.querySelector(".frame").setAttribute(name, side);
    labels[0][0].parentNode.setAttribute("font-size", side * 0.03);
    names.forEach((_, one) => {
      const place = places[one] + 0.5;
      labels[0][one].setAttribute("y", place);
      labels[1][one].setAttribute("transform", `translate(${place} -0.2) rotate(-90)`);
      for (const kind of labels) kind[one].setAttribute("visibility", place < side ? "visible" : "hidden");
    });
    cursor.setAttribute("visibility", "hidden");
  }
  function tell(x, y) {
    if (!(x >= 0 && y >= 0 && x < side && y < side)) return;
    at = [x, y];
    cursor.setAttribute("x", x);
    cursor.setAttribute("y", y);
    cursor.setAttribute("stroke-width", side / 150);
    cursor.setAttribute("visibility", "visible");
    const [truth, answer] = [species[y], species[x]];
    const count = counts.get(truth * names.length + answer) || 0;
    const what = truth === answer ? "recognised" : `taken for ${names[answer]}`;
    const part = photos[truth] ? ` (${((100 * count) / photos[truth]).toFixed(1)}%)` : "";
    output.textContent = `${names[truth]} ${what}: ${count} of ${photos[truth]} photos${part}`;
  }
  function point(event) {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    tell(Math.floor(place.x), Math.floor(place.y));
  }
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    tell(at[0] + move[0], at[1] + move[1]);
  });
  for (const choice of [order, show]) choice.addEventListener("change", arrange);
  section.querySelector(".controls").hidden = false;
  arrange(); // a page that is loaded again keeps what was chosen
}
document.querySelectorAll(".matrix").forEach(explore);
