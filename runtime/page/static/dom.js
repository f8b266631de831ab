// Small helpers around the document. Texts of clients only ever become text nodes.

export const byId = (id) => document.getElementById(id);

export function setText(target, text) {
  const node = typeof target === "string" ? byId(target) : target;
  if (node.textContent !== text) node.textContent = text;
}

export function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

export function draw(tag, attributes = {}, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  if (text) node.textContent = text;
  return node;
}

// Keeps as many rows in a table body as there are rows of texts; numbers are the columns aligned right.
export function fillTable(body, rows, numbers = []) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, index) => {
    const row = body.rows[index] ?? body.insertRow();
    cells.forEach((text, column) => {
      const cell = row.cells[column] ?? row.insertCell();
      if (numbers.includes(column)) cell.className = "number";
      setText(cell, text);
    });
  });
}

// Path of values over their places [0, 1], broken where a value is missing or places are farther apart than gap; y grows
// upwards from 0 to top.
export function linePath(places, values, top, width, height, gap = 1) {
  let path = "";
  let pen = "M";
  values.forEach((value, index) => {
    if (index && places[index] - places[index - 1] > gap) pen = "M";
    if (value === null || value === undefined) {
      pen = "M";
      return;
    }
    const y = height - (Math.min(value, top) / top) * height;
    path += `${pen}${(places[index] * width).toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  });
  return path;
}
