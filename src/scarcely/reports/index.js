"use strict";
// Sorts the rows by the column whose heading is pressed, and hides those without the words that are typed.
(() => {
  const table = document.querySelector("table.runs");
  const heads = [...table.tHead.querySelectorAll("th")];
  const rows = [...table.tBodies[0].rows];
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const other = { ascending: "descending", descending: "ascending" };

  function sort(head) {
    const key = (row) => row.cells[head.cellIndex].dataset.sort;
    const now = head.getAttribute("aria-sort");
    const way = now ? other[now] : head.dataset.first;
    const sign = way === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is not known comes last either way
      return sign * (head.dataset.kind === "number" ? x - y : words.compare(x, y));
    });
    table.tBodies[0].append(...rows);
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way);
  }

  heads.forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head));
    head.append(button);
  });

  const bar = document.querySelector(".bar");
  const told = bar.querySelector("[role=status]");
  const texts = new Map(rows.map((row) => [row, [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase()]));
  bar.querySelector("input").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase().split(/\s+/);
    rows.forEach((row) => { row.hidden = !wanted.every((word) => texts.get(row).includes(word)); });
    const shown = rows.filter((row) => !row.hidden).length;
    told.textContent = `${shown} of ${rows.length} run${rows.length === 1 ? "" : "s"}`;
  });
  bar.hidden = false;
})();
