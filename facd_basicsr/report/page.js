'use strict';

// Crops: which pictures are on the left and on the right of all of them, and where each is cut.
const sides = ['left', 'right'].map((side) => [side, document.getElementById(side)]).filter(([, choice]) => choice);

function choose() {
  for (const views of document.querySelectorAll('.views')) {
    views.querySelectorAll('.view').forEach((view, index) => {
      for (const [side, choice] of sides) view.classList.toggle(side, choice.selectedIndex === index);
    });
  }
}

for (const [, choice] of sides) choice.addEventListener('change', choose);
for (const slider of document.querySelectorAll('.views input')) {
  const cut = () => slider.parentElement.style.setProperty('--cut', `${slider.value}%`);
  slider.addEventListener('input', cut);
  cut(); // browsers keep a slider's place when a page is loaded again
}
choose(); // and choices

// Curves: the values under the pointer, in the place of the last ones.
function axis(text) {
  const [low, high, start, end] = text.split(',').map(Number);
  return { low, high, start, end };
}

function value({ low, high, start, end }, pixel, log) {
  const share = (pixel - start) / (end - start);
  return log ? low * (high / low) ** share : low + share * (high - low);
}

for (const svg of document.querySelectorAll('.panel svg')) {
  const x = axis(svg.dataset.x);
  const y = axis(svg.dataset.y);
  const log = 'log' in svg.dataset;
  const shown = svg.parentElement.querySelector('.last');
  const last = shown.textContent;
  const lines = [...svg.querySelectorAll('polyline:not(.raw)')].filter((line) => line.points.length);
  const pointer = document.createElementNS(svg.namespaceURI, 'line');
  pointer.setAttribute('class', 'pointer');

  svg.addEventListener('pointermove', (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    const nearest = lines.map((line) => {
      const points = [...line.points];
      return points.reduce((best, point) => (Math.abs(point.x - at) < Math.abs(best.x - at) ? point : best));
    });
    if (!nearest.length) return;
    const found = nearest.map((point, index) => {
      const name = lines.length > 1 ? `${lines[index].dataset.label.split(':')[0]} ` : '';
      return name + value(y, point.y, log).toPrecision(4);
    });
    const iteration = Math.round(value(x, nearest[0].x, false));
    shown.textContent = `${found.join(', ')} at ${iteration.toLocaleString('en')}`;
    for (const [name, to] of [['x1', nearest[0].x], ['x2', nearest[0].x], ['y1', y.start], ['y2', y.end]]) {
      pointer.setAttribute(name, to);
    }
    svg.append(pointer);
  });
  svg.addEventListener('pointerleave', () => {
    shown.textContent = last;
    pointer.remove();
  });
}
