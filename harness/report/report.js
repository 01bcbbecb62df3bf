/* Sorts the table of requests by the column that is clicked; a second click reverses the order. */
document.querySelectorAll('#requests thead th').forEach(function (th, col) {
  th.addEventListener('click', function () {
    var dir = th.dataset.dir === '1' ? -1 : 1;
    var body = document.querySelector('#requests tbody');
    document.querySelectorAll('#requests thead th').forEach(function (other) { delete other.dataset.dir; });
    th.dataset.dir = dir;
    var rows = Array.from(body.rows).map(function (row) {
      var text = row.cells[col].textContent.trim();
      return { row: row, text: text, number: text === '' ? NaN : Number(text) };
    });
    rows.sort(function (x, y) {
      var a = isNaN(x.number), b = isNaN(y.number);
      if (a !== b) return a ? 1 : -1; /* missing values go last */
      return dir * (a ? x.text.localeCompare(y.text) : x.number - y.number);
    });
    rows.forEach(function (r) { body.appendChild(r.row); });
  });
});
