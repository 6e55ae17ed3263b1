// The similarity map: a single tab stop, arrow keys inside, Enter or a click sets the pair.
"use strict";
const LayerSyncMap = (() => {
  const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  const cells = (map) => [...map.querySelectorAll("[role=gridcell]")];
  const at = (map, student, teacher) => map.querySelector(`[data-s="${student}"][data-t="${teacher}"]`);

  function text(cell) {
    const { label, allowed, recommended, measure } = cell.closest("table").dataset;
    const parts = [label.replace("{student}", cell.dataset.s).replace("{teacher}", cell.dataset.t)];
    if (cell.dataset.v) parts.push(`${measure} ${cell.dataset.v}`);
    if (cell.classList.contains("allowed")) parts.push(allowed);
    if (cell.classList.contains("best")) parts.push(recommended);
    return parts.join(", ");
  }

  function stop(map, cell) {
    for (const other of map.querySelectorAll("[role=gridcell][tabindex='0']")) other.tabIndex = -1;
    cell.tabIndex = 0;
  }

  // The next cell in a direction; rows and columns may have gaps where two blocks do not fit.
  function next(map, cell, [down, right]) {
    const most = cells(map).reduce((most, other) => Math.max(most, Number(other.dataset.t)), 0);
    let student = Number(cell.dataset.s), teacher = Number(cell.dataset.t);
    for (let steps = 0; steps < most; steps++) {
      student += down;
      teacher += right;
      const found = at(map, student, teacher);
      if (found) return found;
    }
    return null;
  }

  function begin(map, pair, set) {
    if (!map || !map.querySelector("table")) return;
    for (const cell of cells(map)) cell.setAttribute("aria-label", text(cell));
    const readout = map.querySelector("#cell");
    const show = (event) => {
      const cell = event.target.closest("[role=gridcell]");
      if (cell) readout.textContent = text(cell);
    };
    const choose = (cell) => set(cell.dataset.s, cell.dataset.t);
    map.addEventListener("focusin", (event) => {
      const cell = event.target.closest("[role=gridcell]");
      if (cell) stop(map, cell);
      show(event);
    });
    map.addEventListener("mouseover", show);
    map.addEventListener("click", (event) => {
      const cell = event.target.closest("[role=gridcell]");
      if (cell) choose(cell);
    });
    map.addEventListener("keydown", (event) => {
      const cell = event.target.closest("[role=gridcell]");
      if (!cell || event.ctrlKey || event.altKey || event.metaKey) return;
      const row = cells(map).filter((other) => other.dataset.s === cell.dataset.s);
      const found = { Home: row[0], End: row.at(-1) }[event.key] || (STEPS[event.key] && next(map, cell, STEPS[event.key]));
      if (found) found.focus();
      if (event.key === "Enter" || event.key === " ") choose(cell);
      if (found || STEPS[event.key] || event.key === "Enter" || event.key === " ") event.preventDefault();
    });
    mark(map, pair());
    const first = [".chosen", ".best", ".allowed", ""].map((kind) => map.querySelector(`[role=gridcell]${kind}`)).find(Boolean);
    if (!first) return;
    stop(map, first);
    // A large map is scrolled to its pairs.
    const box = first.closest(".mapped");
    if (!box) return;
    box.scrollLeft = first.offsetLeft - box.clientWidth / 2;
    box.scrollTop = first.offsetTop - box.clientHeight / 2;
  }

  function mark(map, [student, teacher]) {
    if (!map) return;
    for (const cell of map.querySelectorAll("td.chosen")) {
      cell.classList.remove("chosen");
      cell.removeAttribute("aria-selected");
    }
    const cell = student && teacher && at(map, student, teacher);
    if (!cell) return;
    cell.classList.add("chosen");
    cell.setAttribute("aria-selected", "true");
  }

  return { begin, mark };
})();
