// Charts as SVG elements: attributes and classes only, text as text nodes.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 150, LEFT = 44, BOTTOM = 20, TOP = 8;

function draw(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

export function short(number) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= size) return `${(number / size).toFixed(number < 10 * size ? 1 : 0)}${unit}`;
  }
  return String(number);
}

// The least round number that is not below the largest value: 1, 2 or 5 times a power of ten, and even from 4 on.
function ceiling(most) {
  if (most <= 4) return Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= most);
}

function moment(seconds, step) {
  const at = new Date(seconds * 1000);
  const clock = at.toLocaleTimeString([], {hour: "2-digit", minute: "2-digit", hour12: false});
  const day = at.toLocaleDateString([], {month: "short", day: "numeric"});
  return step >= 10800 ? `${day} ${clock}` : clock;
}

function label(seconds, step) {
  const at = new Date(seconds * 1000);
  return step >= 10800
    ? at.toLocaleDateString([], {month: "short", day: "numeric"})
    : at.toLocaleTimeString([], {hour: "2-digit", minute: "2-digit", hour12: false});
}

// Stacked columns, one for each step. `fills` says the class of each label's colour.
export function columns(box, what, line, series, fills) {
  const width = Math.max(box.clientWidth, 200);
  const labels = Object.keys(series);
  const sums = Array.from({length: line.steps}, (_, i) => labels.reduce((sum, name) => sum + series[name][i], 0));
  const total = sums.reduce((a, b) => a + b, 0);
  const top = ceiling(Math.max(...sums, 0));
  const plot = HEIGHT - BOTTOM - TOP, each = (width - LEFT) / line.steps;
  const words = labels.map((name) => `${series[name].reduce((a, b) => a + b, 0)} ${name}`).join(", ");
  const svg = draw("svg", {viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${what}, ${total} in all: ${words || "none"}`});
  for (const part of top > 1 ? [0, 0.5, 1] : [0, 1]) {
    const y = TOP + plot * (1 - part);
    svg.append(draw("line", {x1: LEFT, x2: width, y1: y + 0.5, y2: y + 0.5, class: "grid"}));
    if (Number.isInteger(top * part)) svg.append(draw("text", {x: LEFT - 8, y: y + 4, class: "y"}, short(top * part)));
  }
  sums.forEach((sum, i) => {
    const column = draw("g", {class: "column"});
    const x = LEFT + i * each;
    let y = TOP + plot;
    const lines = [moment(line.since_s + i * line.step_s, line.step_s)];
    for (const name of labels) {
      const value = series[name][i];
      if (!value) continue;
      const height = Math.max((value / top) * plot, 1.5);
      y -= height;
      column.append(draw("rect", {x: x + each * 0.1, y, width: Math.max(each * 0.8, 1), height, class: fills(name, labels)}));
      lines.push(`${name}: ${value}`);
    }
    column.append(draw("rect", {x, y: TOP, width: each, height: plot, class: "fill-clear"}));
    column.append(draw("title", {}, lines.join("\n")));
    svg.append(column);
  });
  const wanted = Math.max(2, Math.floor((width - LEFT) / 75));
  const every = Math.ceil(line.steps / wanted);
  for (let i = every; i < line.steps - every / 3; i += every) {
    svg.append(draw("text", {x: LEFT + i * each, y: HEIGHT - 4, class: "x"}, label(line.since_s + i * line.step_s, line.step_s)));
  }
  if (!total) svg.append(draw("text", {x: (width + LEFT) / 2, y: TOP + plot / 2, class: "none"}, "none in this span"));
  box.replaceChildren(svg);
}

export function bar(share, fill) {
  const svg = draw("svg", {"aria-hidden": "true", preserveAspectRatio: "none"});
  svg.append(draw("rect", {width: `${Math.max(share * 100, 1)}%`, height: "100%", class: fill}));
  return svg;
}

export function swatch(fill) {
  const svg = draw("svg", {"aria-hidden": "true"});
  svg.append(draw("rect", {width: "100%", height: "100%", rx: 2, class: fill}));
  return svg;
}
