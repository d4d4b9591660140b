"use strict";
// Sorting and filtering of the tables. What is chosen stands in the address, so that a view can be sent to somebody.
(() => {
  const form = document.querySelector(".filters");
  const count = document.querySelector(".count");
  const tables = [...document.querySelectorAll("table.ranking")];
  const fields = ["task", "licence", "size", "method"];
  const number = (cell) => (cell && cell.dataset.value ? Number(cell.dataset.value) : null);

  function readState() {
    const stored = new URLSearchParams(location.hash.slice(1));
    for (const name of fields) {
      const select = form.elements[name];
      const wanted = stored.get(name) ?? "";
      select.value = [...select.options].some((option) => option.value === wanted) ? wanted : "";
    }
    form.elements.published.checked = stored.get("published") !== "off";
    for (const table of tables) {
      const [column, direction] = (stored.get(table.id) ?? "").split(".");
      sort(table, /^\d+$/.test(column) ? Number(column) : -1, direction === "up" ? "ascending" : "descending");
    }
    filter();
  }

  function writeState() {
    const state = new URLSearchParams();
    for (const name of fields) if (form.elements[name].value) state.set(name, form.elements[name].value);
    if (!form.elements.published.checked) state.set("published", "off");
    for (const table of tables) {
      const sorted = table.querySelector("thead th[aria-sort]");
      if (sorted) {
        const direction = sorted.getAttribute("aria-sort") === "ascending" ? "up" : "down";
        state.set(table.id, `${sorted.cellIndex}.${direction}`);
      }
    }
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }

  // Every group of rows is sorted alone: ours never mixes with what papers print. Column -1: the order of the page.
  function sort(table, column, direction) {
    const heads = [...table.querySelectorAll("thead th")];
    if (column >= heads.length || (column >= 0 && !heads[column].querySelector("button"))) column = -1;
    heads.forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
    const sign = direction === "ascending" ? 1 : -1;
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
      rows.sort((a, b) => {
        const home = Number(a.dataset.order) - Number(b.dataset.order);
        if (column < 0) return home;
        if (column === 0) return sign * a.dataset.name.localeCompare(b.dataset.name, "en") || home;
        const x = number(a.cells[column]), y = number(b.cells[column]);
        if (x === null || y === null) return (x === null) - (y === null) || home;
        return sign * (x - y) || home;
      });
      body.append(...rows);
    }
  }

  function fits(row) {
    const { method, commercial, parameters, published } = row.dataset;
    const size = form.elements.size.value;
    if (published === "yes" && !form.elements.published.checked) return false;
    if (form.elements.licence.value && commercial !== "yes") return false;
    if (form.elements.method.value && method !== form.elements.method.value) return false;
    return !size || (parameters !== "" && Number(parameters) <= Number(size));
  }

  function filter() {
    const task = form.elements.task.value;
    let shown = 0, all = 0;
    for (const table of tables) {
      const heads = [...table.querySelectorAll("thead th")];
      const visible = heads.map((head) => !task || !("task" in head.dataset) || head.dataset.task === task);
      const wanted = heads.map((head, index) => (visible[index] && "task" in head.dataset ? index : -1)).filter((i) => i > 0);
      let inTable = 0;
      for (const body of table.tBodies) {
        let inBody = 0;
        for (const row of body.rows) {
          if (row.classList.contains("group")) continue;
          const keep = fits(row) && wanted.some((index) => number(row.cells[index]) !== null);
          row.hidden = !keep;
          inBody += keep;
          all += 1;
        }
        body.hidden = inBody === 0;
        inTable += inBody;
      }
      for (const row of table.querySelectorAll("tr:not(.group)")) {
        [...row.cells].forEach((cell, index) => (cell.hidden = !visible[index]));
      }
      table.closest("section").hidden = inTable === 0;
      shown += inTable;
    }
    count.textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows`;
  }

  for (const table of tables) {
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const head = button.closest("th");
      const lowFirst = head.dataset.first === "ascending";
      const before = head.getAttribute("aria-sort");
      const first = lowFirst ? "ascending" : "descending";
      const other = lowFirst ? "descending" : "ascending";
      sort(table, head.cellIndex, before === first ? other : first);
      writeState();
    });
  }
  form.addEventListener("change", () => { filter(); writeState(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => {
    history.replaceState(null, "", location.pathname + location.search);
    readState();
  });
  window.addEventListener("hashchange", readState);
  form.hidden = false;
  readState();
})();
