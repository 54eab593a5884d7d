// Shows the numbers under the pointer. The figures are complete without it.
(() => {
  const count = (v) => {
    for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(v) >= size) return Number((v / size).toPrecision(3)) + letter;
    return String(Number(v.toPrecision(4)));
  };
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle; else high = middle;
    }
    return x - points[low][0] < points[high][0] - x ? points[low] : points[high];
  };
  const row = (text, slot) => {
    const div = document.createElement("div");
    if (slot !== undefined) div.appendChild(document.createElement("i")).className = "c" + slot;
    div.appendChild(document.createTextNode(text));
    return div;
  };
  for (const figure of document.querySelectorAll("figure")) {
    const svg = figure.querySelector("svg");
    const data = JSON.parse(figure.querySelector("script").textContent);
    const [left, top, right, bottom] = data.frame;
    let tip = null, line = null;
    const leave = () => { if (tip) tip.remove(); if (line) line.remove(); tip = line = null; };
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), zoom = svg.viewBox.baseVal.width / box.width;
      const px = (event.clientX - box.left) * zoom, py = (event.clientY - box.top) * zoom;
      if (px < left || px > right || py > bottom) return leave();
      if (!tip) {
        tip = figure.appendChild(document.createElement("div"));
        tip.className = "tip";
        line = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "line"));
        line.setAttribute("class", "here");
      }
      const share = (px - left) / (right - left);
      const title = document.createElement("b");
      tip.replaceChildren(title);
      if (data.heat) {
        const x = share * data.xs[data.xs.length - 1];
        const column = Math.max(0, data.xs.findIndex((end) => end >= x));
        const number = Math.max(0, Math.min(data.heat.length - 1, Math.floor((py - top) / (bottom - top) * data.heat.length)));
        const value = data.heat[number][column];
        title.textContent = count(data.xs[column]) + " tokens";
        tip.appendChild(row(data.rows[number] + ": " + (value === null ? "not logged" : count(value))));
      } else {
        const x = data.x[0] + share * (data.x[1] - data.x[0]);
        title.textContent = count(x) + " tokens";
        for (const [label, slot, points] of data.lines) tip.appendChild(row(label + "  " + count(nearest(points, x)[1]), slot));
      }
      for (const [name, value] of [["x1", px], ["x2", px], ["y1", top], ["y2", bottom]]) line.setAttribute(name, value);
      const frame = figure.getBoundingClientRect();
      const at = event.clientX - frame.left, wide = tip.offsetWidth;
      tip.style.left = (at + 16 + wide > frame.width ? Math.max(0, at - 16 - wide) : at + 16) + "px";
      tip.style.top = event.clientY - frame.top + 14 + "px";
    });
  }
})();
