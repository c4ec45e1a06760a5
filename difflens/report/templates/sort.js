// Sorts a table by the column whose heading is clicked; without scripts the tables stay as they are.
for (const table of document.querySelectorAll(".sortable table")) {
  table.tHead.querySelectorAll("th").forEach((heading, column) => {
    heading.style.cursor = "pointer";
    heading.title = "sort";
    heading.addEventListener("click", () => {
      const down = heading.ariaSort === "ascending";
      const value = (row) => row.cells[column].textContent.replace("−", "-");
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const difference = parseFloat(value(a)) - parseFloat(value(b));
        return (down ? -1 : 1) * (Number.isNaN(difference) ? value(a).localeCompare(value(b)) : difference);
      });
      table.tHead.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      heading.ariaSort = down ? "descending" : "ascending";
      table.tBodies[0].append(...rows);
    });
  });
}
