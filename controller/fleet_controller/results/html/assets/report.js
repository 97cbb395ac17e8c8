// Filters, links that open what they lead to, and buttons to copy commands. Without it everything is shown.
"use strict";
(() => {
  const form = document.getElementById("filters");
  const selects = [...form.querySelectorAll("select[name]")];
  const facets = selects.map((select) => select.name);
  const filtered = [...document.querySelectorAll(facets.map((name) => `[data-${name}]`).join())];
  const groups = [...document.querySelectorAll("[data-group]")].reverse();
  const rows = [...document.querySelectorAll("[data-row]")];
  const columns = [...document.querySelectorAll("th[data-column]")];
  const columnCells = [...document.querySelectorAll("[data-column]")];
  const ITEMS = "[data-row], td.cell, .chart g";

  const isFaceted = (element) => facets.some((name) => name in element.dataset);
  const isShown = (element) => !element.classList.contains("out") && element.closest("[hidden]") === null;

  function apply() {
    const wanted = selects.filter(({ value }) => value !== "").map(({ name, value }) => [name, value.slice(1)]);
    for (const element of filtered) {
      const out = wanted.some(([name, value]) => (element.dataset[name] ?? value) !== value);
      if (element.matches("td.cell")) element.classList.toggle("out", out);
      else element.toggleAttribute("hidden", out);
    }
    for (const group of groups) if (!isFaceted(group)) group.hidden = false;
    for (const cell of columnCells) cell.hidden = false;
    for (const group of groups) group.hidden = ![...group.querySelectorAll(ITEMS)].some(isShown);
    columns.forEach(showColumn);
    const shown = rows.filter(isShown).length;
    document.getElementById("count").textContent = `${shown} of ${rows.length} results are shown`;
  }

  // A column of which nothing passes takes no room.
  function showColumn(head) {
    const number = head.dataset.column;
    const cells = [...head.closest("table").querySelectorAll(`td[data-column="${number}"]`)];
    const empty = !cells.some((cell) => cell.matches(".cell:not(.out)") && cell.closest("[hidden]:not(td)") === null);
    for (const cell of [head, ...cells]) cell.hidden = empty;
  }

  function remember() {
    const chosen = new URLSearchParams();
    for (const { name, value } of selects) if (value !== "" || name === "depth") chosen.set(name, value.slice(1));
    history.replaceState(null, "", `#${chosen}`);
  }

  // "#model=qwen3.5-4b&depth=" is a choice of filters, everything else the id of an element.
  function follow() {
    const hash = location.hash.slice(1);
    if (hash.includes("=")) {
      const chosen = new URLSearchParams(hash);
      for (const select of selects) {
        const value = chosen.get(select.name) ?? "";
        select.value = value === "" ? "" : `=${value}`;
        if (select.selectedIndex < 0) select.value = "";
      }
      apply();
    } else if (hash) {
      reveal(document.getElementById(hash));
    }
  }

  function reveal(target) {
    if (target === null) return;
    if (!isShown(target)) showAll();
    const run = target.closest("article");
    for (const details of run === null ? [] : run.querySelectorAll("details")) details.open = true;
    target.scrollIntoView({ block: "center" });
    if (target.tabIndex === -1) target.focus({ preventScroll: true });
  }

  function showAll() {
    for (const select of selects) select.value = "";
    apply();
  }

  function addCopyButtons() {
    for (const code of document.querySelectorAll("pre code")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        getSelection().selectAllChildren(code);
        try {
          await navigator.clipboard.writeText(code.textContent);
          button.textContent = "Copied";
        } catch {
          button.textContent = "Selected: copy it";
        }
      });
      code.parentElement.after(button);
    }
  }

  form.hidden = false;
  form.addEventListener("change", (event) => {
    if (event.target.id === "colours") document.body.dataset.colours = event.target.value;
    else {
      apply();
      remember();
    }
  });
  document.getElementById("show-all").addEventListener("click", () => {
    showAll();
    remember();
  });
  document.getElementById("open-all").addEventListener("click", ({ currentTarget: button }) => {
    const open = button.getAttribute("aria-pressed") === "false";
    for (const details of document.querySelectorAll("details")) details.open = open;
    button.setAttribute("aria-pressed", String(open));
    button.textContent = open ? "Close all details" : "Open all details";
  });
  addEventListener("hashchange", follow);
  addCopyButtons();
  apply();
  follow();
})();
