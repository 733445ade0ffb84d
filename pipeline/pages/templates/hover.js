// Values of curves under the pointer, a finger or the arrow keys. A chart carries its points in data-hover.
function number(value) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return (value / size).toPrecision(4) + letter;
  return String(Number(value.toPrecision(4)));
}
function nearest(points, x) {
  return points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
}
function follow(chart) {
  const plot = JSON.parse(chart.dataset.hover), figure = chart.parentElement;
  const box = figure.appendChild(Object.assign(document.createElement("div"), {className: "values", hidden: true}));
  const draw = (name) => chart.appendChild(document.createElementNS(chart.namespaceURI, name));
  const line = draw("line"), dots = plot.lines.map(() => draw("circle"));
  line.setAttribute("class", "pointer");
  for (const end of ["y1", "y2"]) line.setAttribute(end, end == "y1" ? plot.top : plot.bottom);
  const marks = [line, ...dots], wide = chart.viewBox.baseVal.width;
  let at = plot.end;
  function hide() { box.hidden = true; marks.forEach((mark) => mark.setAttribute("visibility", "hidden")); }
  function show(x) {
    at = nearest(plot.lines.flatMap((each) => each.points), Math.min(plot.end, Math.max(0, x)))[0];
    const left = plot.left + at / plot.end * (plot.right - plot.left);
    line.setAttribute("x1", left); line.setAttribute("x2", left);
    box.replaceChildren(`${plot.x} ${number(at)}`);
    plot.lines.forEach((each, i) => {
      const [x, y] = nearest(each.points, at), height = plot.bottom - plot.top;
      dots[i].setAttribute("cx", plot.left + x / plot.end * (plot.right - plot.left));
      dots[i].setAttribute("cy", plot.bottom - (Math.min(y, plot.high) - plot.low) / (plot.high - plot.low) * height);
      dots[i].setAttribute("r", 4); dots[i].setAttribute("fill", `var(${each.colour})`);
      const row = box.appendChild(document.createElement("div"));
      row.textContent = `${each.name} ${number(y)}`; row.style.color = `var(${each.colour})`;
    });
    marks.forEach((mark) => mark.setAttribute("visibility", "visible"));
    box.hidden = false;
    const size = chart.getBoundingClientRect(), place = left / wide * size.width;
    box.style.left = `${place > size.width / 2 ? place - box.offsetWidth - 10 : place + 10}px`;
    box.style.top = `${chart.offsetTop + plot.top / wide * size.width}px`;
  }
  chart.addEventListener("pointermove", (event) => {
    const size = chart.getBoundingClientRect(), x = (event.clientX - size.left) / size.width * wide;
    show((x - plot.left) / (plot.right - plot.left) * plot.end);
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!way) return;
    event.preventDefault();
    const places = [...new Set(plot.lines.flatMap((each) => each.points.map((point) => point[0])))].sort((a, b) => a - b);
    show(box.hidden ? at : places[Math.min(places.length - 1, Math.max(0, places.indexOf(at) + way))]);
  });
  hide();
}
document.querySelectorAll("svg[data-hover]").forEach(follow);
