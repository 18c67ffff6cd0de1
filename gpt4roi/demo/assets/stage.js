// The image and its boxes: drawn, moved, resized and deleted with mouse, pen, finger or keyboard.
// Python gives `image` {src, width, height, id}, `note` and `value` {image, boxes, fixed, keep}; the first `fixed`
// boxes belong to the conversation and stay; with `keep`, so do those drawn here since the last question, which may be
// younger than what Python knew. This side writes `value` whenever the boxes drawn since change, with `names`: of each box
// {text, corrected} or null. It asks for the names of boxes by the event "drawn", each time with a higher `order`, and
// Python gives them as `names` {order, names: [[box, text]], ended}; with `naming` false it does not ask.
// With `masks` regions can be painted too: `value` then has `masks`, of each box run lengths {size, counts}, a polygon
// [[x1, y1, x2, y2, …]] in the image's pixels, or null.
const { color, make, chip, insertMention, renumberQuestion, place } = window.gpt4roi;
const find = (selector) => element.querySelector(selector);
const frame = find('.stage-frame'), view = find('.stage-image'), layer = find('.stage-boxes');
const chips = find('.stage-chips'), note = find('.stage-note'), file = find('input[type=file]');

const SMALLEST = 4; // pixels on the screen; less is a click
const SIDES = { n: [0, -1], s: [0, 1], w: [-1, 0], e: [1, 0], nw: [-1, -1], ne: [1, -1], sw: [-1, 1], se: [1, 1] };
let image = null, boxes = [], fixed = 0, selected = -1, drag = null;

// Names by the box itself, so that none can land at another box; `waiting`: those that Python was asked for.
const names = new Map(), naming = find('.naming');
let waiting = new Set(), order = 0, soon = 0;

// Shapes by the box around them, as names are: canvases of the whole image, at most SHAPE_SIDE pixels a side; those of
// polygons have `corners` too, [x, y] in the image's pixels.
const shapes = new Map(), overlay = find('.stage-shapes'), SHAPE_SIDE = 512;
const tool = () => (props.masks ? find('.stage-paint input:checked').value : 'box');
let corners = [], aim = null; // of the polygon being drawn: its corners so far, and where the next one would be

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const ordered = ([x1, y1, x2, y2]) => [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
const rounded = (box) => box.map((value) => Math.round(value * 100) / 100);
const keyOf = (box) => String(rounded(box));

const say = (text, wrong = false) => {
  note.textContent = text;
  note.classList.toggle('wrong', wrong);
};

const publish = () => {
  const named = boxes.map((box) => names.get(keyOf(box)) || null);
  const masks = props.masks ? { masks: boxes.map((box) => maskOf(shapes.get(keyOf(box)))) } : {};
  props.value = { image: image ? image.id : '', boxes: boxes.map(rounded), fixed, names: named, ...masks };
  clearTimeout(soon);
  soon = setTimeout(wantNames, 120); // a key held down moves a box many times
};

// Where a pointer is, in pixels of the user's own image; never outside it.
const point = (event) => {
  const area = view.getBoundingClientRect();
  return [
    clamp(((event.clientX - area.left) / area.width) * image.width, 0, image.width),
    clamp(((event.clientY - area.top) / area.height) * image.height, 0, image.height),
  ];
};

const isFixed = (index) => index < fixed;

const regionNode = (index) => {
  const node = make('div', 'stage-region');
  node.tabIndex = 0;
  node.setAttribute('role', 'group');
  for (const side of ['n', 'e', 's', 'w']) node.append(make('span', `edge edge-${side}`));
  node.append(make('span', 'region-tag'));
  for (const side of Object.keys(SIDES)) {
    const handle = make('span', `handle handle-${side}`);
    handle.dataset.side = side;
    node.append(handle);
  }
  node.onfocus = () => select(Number(node.dataset.index));
  node.onkeydown = (event) => onBoxKey(event, Number(node.dataset.index));
  return node;
};

const render = () => {
  element.querySelector('.stage').classList.toggle('has-image', Boolean(image));
  while (layer.children.length > boxes.length) layer.lastChild.remove();
  while (layer.children.length < boxes.length) layer.append(regionNode());
  boxes.forEach((box, index) => {
    const node = layer.children[index];
    node.dataset.index = index;
    node.classList.toggle('fixed', isFixed(index));
    node.classList.toggle('selected', index === selected);
    node.classList.toggle('painted', shapes.has(keyOf(box)));
    node.style.setProperty('--region', color(index + 1));
    node.querySelector('.region-tag').textContent = index + 1;
    place(node, ordered(box), image);
    const [x1, y1, x2, y2] = ordered(box).map(Math.round);
    node.setAttribute('aria-label', `region ${index + 1}${isFixed(index) ? ', part of the conversation' : ''}, ` +
      `from ${x1}, ${y1} to ${x2}, ${y2}${shapes.has(keyOf(box)) ? ', painted' : ''}`);
  });
  renderShapes();
  renderChips();
};

// What a box is called, as a button that lets one correct it.
const nameNode = (index) => {
  const key = keyOf(boxes[index]), held = names.get(key), text = held ? held.text : '';
  const node = make('button', 'chip-name', text || (waiting.has(key) ? '…' : '✎'));
  node.type = 'button';
  node.classList.toggle('corrected', Boolean(text && held.corrected));
  node.title = text ? `${text} (click to correct it)` : `Say what box ${index + 1} is`;
  node.setAttribute('aria-label', text ? `Box ${index + 1}: ${text}. Correct it` : node.title);
  node.onclick = () => editName(node, index);
  return node;
};

const editName = (node, index) => {
  const key = keyOf(boxes[index]), input = make('input', 'chip-input'), before = names.get(key)?.text || '';
  input.value = before;
  input.setAttribute('aria-label', `What box ${index + 1} is`);
  const close = (save, confirmed) => {
    input.onblur = null;
    const text = input.value.trim();
    if (save && (confirmed || text !== before)) names.set(key, { text, corrected: true });
    const at = boxes.findIndex((box) => keyOf(box) === key);
    if (at >= 0) input.replaceWith(nameNode(at));
    if (stale) renderChips();
    publish();
  };
  input.onblur = () => close(true, false);
  input.onkeydown = (event) => {
    event.stopPropagation();
    if (event.key !== 'Enter' && event.key !== 'Escape') return;
    event.preventDefault();
    close(event.key === 'Enter', true);
    chips.querySelectorAll('.chip-name')[index]?.focus();
  };
  node.replaceWith(input);
  input.select();
};

const showNames = () => {
  chips.querySelectorAll('.chip-holder').forEach((holder, index) => {
    if (index < boxes.length) holder.querySelector('.chip-name')?.replaceWith(nameNode(index));
  });
};

// Asks for the names of the boxes that have none; what is not asked for any more is not computed any further.
const wantNames = () => {
  if (!image || drag) return;
  const open = props.naming && naming.checked ? boxes.map(rounded).filter((box) => !names.has(String(box))) : [];
  if (open.length === waiting.size && open.every((box) => waiting.has(String(box)))) return;
  waiting = new Set(open.map(String));
  order += 1;
  const asked = open.map((box) => (shapes.has(String(box)) ? { box, mask: maskOf(shapes.get(String(box))) } : box));
  trigger('drawn', { image: image.id, boxes: asked, order });
  showNames();
};

watch('names', () => {
  const { order: of, names: given, ended } = props.names || { names: [] };
  for (const [box, text] of given) {
    const key = String(box);
    if (waiting.delete(key) && !names.has(key)) names.set(key, { text, corrected: false });
  }
  // What ended without a name is not asked for again.
  if (ended && of === order) for (const key of waiting) waiting.delete(key), names.set(key, { text: '', corrected: false });
  publish();
  showNames();
});

// What a person wrote about a box stays with it when it is moved or resized; the model is asked anew.
const carryName = (before, after) => {
  const held = names.get(keyOf(before));
  if (!held || !held.corrected) return;
  names.delete(keyOf(before));
  names.set(keyOf(after), held);
};

let stale = false;
const renderChips = () => {
  stale = Boolean(chips.querySelector('.chip-input')); // what is being written there stays
  if (stale) return;
  chips.replaceChildren(...boxes.map((_, index) => {
    const holder = make('span', 'chip-holder');
    const known = isFixed(index);
    holder.append(chip(index + 1, known, known ? `region${index + 1}` : `<region${index + 1}>`));
    if (shapes.has(keyOf(boxes[index]))) holder.append(shapeIcon(index));
    holder.append(nameNode(index));
    if (!known) {
      const remove = make('button', 'chip-delete', '×');
      remove.type = 'button';
      remove.title = `Delete box ${index + 1}`;
      remove.setAttribute('aria-label', remove.title);
      remove.onclick = () => removeBox(index);
      holder.append(remove);
    }
    return holder;
  }));
};

const select = (index) => {
  if (selected === index) return;
  selected = index;
  render();
};

const removeBox = (index) => {
  if (isFixed(index)) return say(`Box ${index + 1} is part of the conversation; start over to be rid of it.`);
  shapes.delete(keyOf(boxes[index]));
  boxes.splice(index, 1);
  selected = -1;
  render();
  publish();
  renumberQuestion(index + 1);
};

const addBox = (box) => {
  boxes.push(box);
  selected = boxes.length - 1;
  say('');
};

// The smallest box under a point: small boxes lie on large ones.
const boxAt = ([x, y]) => {
  let best = -1, least = Infinity;
  boxes.forEach((box, index) => {
    const [x1, y1, x2, y2] = ordered(box), area = (x2 - x1) * (y2 - y1);
    if (x >= x1 && x <= x2 && y >= y1 && y <= y2 && area < least) [best, least] = [index, area];
  });
  return best;
};

const moved = (box, dx, dy) => {
  const [x1, y1, x2, y2] = box;
  const right = clamp(dx, -x1, image.width - x2), down = clamp(dy, -y1, image.height - y2);
  return [x1 + right, y1 + down, x2 + right, y2 + down];
};

const resized = (box, side, dx, dy) => {
  const [across, along] = SIDES[side];
  const next = [...box];
  if (across) next[across < 0 ? 0 : 2] = clamp(next[across < 0 ? 0 : 2] + dx, 0, image.width);
  if (along) next[along < 0 ? 1 : 3] = clamp(next[along < 0 ? 1 : 3] + dy, 0, image.height);
  return next;
};

// Painting.
const newShape = () => {
  const scale = Math.min(1, SHAPE_SIDE / Math.max(image.width, image.height));
  const shape = make('canvas');
  shape.width = Math.max(1, Math.round(image.width * scale));
  shape.height = Math.max(1, Math.round(image.height * scale));
  return shape;
};

const pen = (shape) => shape.getContext('2d', { willReadFrequently: true });
const onShape = (shape, [x, y]) => [(x / image.width) * shape.width, (y / image.height) * shape.height];
const radius = (shape) => (Number(find('.brush-size').value) / 100) * Math.max(shape.width, shape.height);
const insideOf = (shape, index) => pen(shape).getImageData(0, 0, shape.width, shape.height).data[4 * index + 3] > 127;

// What of a canvas is inside, column after column as run lengths have it, and the box around it in pixels of the image.
const pixelsOf = (shape) => {
  const { width, height } = shape, data = pen(shape).getImageData(0, 0, width, height).data;
  const counts = [];
  let run = 0, last = false, box = [width, height, 0, 0];
  for (let x = 0; x < width; x += 1) for (let y = 0; y < height; y += 1) {
    const inside = data[4 * (y * width + x) + 3] > 127;
    if (inside) box = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + 1), Math.max(box[3], y + 1)];
    if (inside !== last) counts.push(run), (run = 0), (last = inside);
    run += 1;
  }
  counts.push(run);
  if (box[2] <= box[0]) return { counts, box: null };
  const [across, down] = [image.width / width, image.height / height];
  return { counts, box: [box[0] * across, box[1] * down, box[2] * across, box[3] * down] };
};

const maskOf = (shape) => {
  if (!shape) return null;
  if (shape.corners) return [rounded(shape.corners.flat())];
  shape.runs = shape.runs || { size: [shape.height, shape.width], counts: pixelsOf(shape).counts };
  return shape.runs;
};

const boxAround = (places) =>
  [Math.min, Math.max].flatMap((most) => [0, 1].map((axis) => most(...places.map((place) => place[axis]))));

const filled = (places) => {
  const shape = newShape(), context = pen(shape);
  context.beginPath();
  for (const place of places) context.lineTo(...onShape(shape, place));
  context.fill();
  return shape;
};

// Gives a region its shape, and the box around it; a shape of nothing is no region. Returns whether there is one.
const setShape = (index, shape, before) => {
  const covered = pixelsOf(shape).box, box = covered && shape.corners ? boxAround(shape.corners) : covered;
  if (before) shapes.delete(keyOf(before));
  if (!box) return boxes.splice(index, 1), (selected = -1), false;
  while (boxes.some((other, at) => at !== index && keyOf(other) === keyOf(box))) box[2] -= 0.01; // names go by the box
  shape.runs = null;
  boxes[index] = box;
  if (before) carryName(before, box);
  shapes.set(keyOf(box), shape);
  return true;
};

// A shape that goes with its box, which was moved or resized.
const carryShape = (before, after) => {
  const held = shapes.get(keyOf(before));
  if (!held) return after;
  const along = (value, axis) => {
    const part = (value - before[axis]) / (before[axis + 2] - before[axis]);
    return after[axis] + part * (after[axis + 2] - after[axis]);
  };
  const carried = held.corners && held.corners.map((place) => place.map(along));
  const shape = carried ? filled(carried) : newShape();
  if (carried) shape.corners = carried;
  else drawInto(pen(shape), held, before, after);
  shapes.delete(keyOf(before));
  shapes.set(keyOf(after), shape);
  return after;
};

const drawInto = (context, shape, before, after) => {
  const [x1, y1] = onShape(shape, before), [x2, y2] = onShape(shape, before.slice(2));
  const [to1, down1] = onShape(context.canvas, after), [to2, down2] = onShape(context.canvas, after.slice(2));
  context.drawImage(shape, x1, y1, x2 - x1, y2 - y1, to1, down1, to2 - to1, down2 - down1);
};

const renderShapes = () => {
  if (!image || !props.masks) return;
  const painted = newShape(), context = overlay.getContext('2d');
  [overlay.width, overlay.height] = [painted.width, painted.height];
  boxes.forEach((box, index) => {
    const held = drag && drag.index === index && drag.before ? drag.before : box;
    const shape = drag && drag.shape && drag.index === index ? drag.shape : shapes.get(keyOf(held));
    if (!shape) return;
    const tinted = newShape(), colours = tinted.getContext('2d');
    if (shape === (drag && drag.shape)) colours.drawImage(shape, 0, 0);
    else drawInto(colours, shape, held, ordered(box));
    colours.globalCompositeOperation = 'source-in';
    colours.fillStyle = color(index + 1);
    colours.fillRect(0, 0, tinted.width, tinted.height);
    context.globalAlpha = index === selected ? 0.55 : 0.4;
    context.drawImage(tinted, 0, 0);
  });
  context.globalAlpha = 1;
  if (corners.length || aim) drawCorners(context);
};

const drawCorners = (context) => {
  const unit = overlay.width / view.getBoundingClientRect().width; // a pixel of the screen
  const places = corners.map((place) => onShape(overlay, place));
  context.strokeStyle = context.fillStyle = color(boxes.length + 1);
  context.lineWidth = 2 * unit;
  context.beginPath();
  for (const place of aim ? [...places, onShape(overlay, aim)] : places) context.lineTo(...place);
  context.stroke();
  for (const [x, y] of places) context.fillRect(x - 3 * unit, y - 3 * unit, 6 * unit, 6 * unit);
  if (!aim) return;
  const [x, y] = onShape(overlay, aim);
  context.strokeRect(x - 4 * unit, y - 4 * unit, 8 * unit, 8 * unit);
};

const shapeIcon = (index) => {
  const polygon = shapes.get(keyOf(boxes[index])).corners;
  const icon = make('span', 'chip-shape', polygon ? '⬠' : '◍');
  icon.style.color = color(index + 1);
  icon.title = `Region ${index + 1} is ${polygon ? `a polygon of ${polygon.length} corners` : 'painted'}`;
  icon.setAttribute('aria-label', icon.title);
  return icon;
};

const stroke = (shape, from, to) => {
  const context = pen(shape);
  context.globalCompositeOperation = drag.tool === 'erase' ? 'destination-out' : 'source-over';
  context.lineCap = 'round';
  context.lineWidth = 2 * radius(shape);
  context.beginPath();
  context.moveTo(...onShape(shape, from));
  context.lineTo(...onShape(shape, to));
  context.stroke();
  context.beginPath(); // a line of no length paints nothing
  context.arc(...onShape(shape, to), radius(shape), 0, 2 * Math.PI);
  context.fill();
};

// Begins to paint: more of the selected region where it is painted and the brush begins on it, else a new one.
const startPainting = (event, start) => {
  const held = selected >= 0 && !isFixed(selected) ? shapes.get(keyOf(boxes[selected])) : null;
  const [x, y] = held ? onShape(held, start).map(Math.floor) : [0, 0];
  const more = held && (tool() === 'erase' || (tool() !== 'point' && insideOf(held, y * held.width + x)));
  if (tool() === 'erase' && !held) return say('Select a painted region first; the eraser takes from it.');
  const shape = newShape();
  if (more) pen(shape).drawImage(held, 0, 0);
  const before = more ? [...boxes[selected]] : null;
  if (!more) addBox([...start, ...start]);
  drag = { id: event.pointerId, start, index: selected, before, side: '', shape, tool: tool(), path: [start] };
  if (drag.tool !== 'outline') stroke(shape, start, start);
  render();
};

const paint = (event) => {
  const to = point(event), { shape, path } = drag;
  if (drag.tool === 'brush' || drag.tool === 'erase') stroke(shape, path.at(-1), to);
  path.push(to);
  renderShapes();
};

const endPainting = () => {
  const { path, before, index } = drag;
  const shape = drag.tool === 'outline' ? filled(path) : drag.shape;
  drag = null;
  if (!setShape(index, shape, before)) say('Nothing is left of the region.');
  render();
  publish();
  if (selected >= 0) layer.children[selected].focus({ preventScroll: true });
};

// A polygon: each click is a corner; one on the first or the last corner, so also a double click or tap, closes it.
const addCorner = (place) => {
  const area = view.getBoundingClientRect(), unit = image.width / area.width;
  const at = (corner) => Boolean(corner) && Math.hypot(place[0] - corner[0], place[1] - corner[1]) < 10 * unit;
  if (corners.length > 2 && (at(corners[0]) || at(corners.at(-1)))) return closePolygon();
  if (!at(corners.at(-1))) corners.push(place);
  const next = corners.length > 2 ? 'Enter or a double click closes the polygon' : 'Three at least are needed';
  const where = corners.at(-1).map(Math.round).join(', ');
  say(`Corner ${corners.length} at ${where}. ${next}; Backspace takes back, Escape cancels.`);
  renderShapes();
};

const endPolygon = () => {
  [corners, aim] = [[], null];
  renderShapes();
};

const closePolygon = () => {
  if (corners.length < 3) return say('A polygon has three corners or more.');
  const shape = filled(corners);
  shape.corners = corners;
  addBox([0, 0, 0, 0]);
  endPolygon();
  if (!setShape(selected, shape, null)) say('Nothing lies inside of the polygon.');
  render();
  publish();
  layer.children[selected]?.focus({ preventScroll: true });
};

// On the image itself: the arrows aim, Space adds a corner there.
frame.onkeydown = (event) => {
  if (!image || tool() !== 'polygon' || event.target !== frame) return;
  const { width, height } = image, step = event.altKey || event.ctrlKey ? 1 : Math.max(width, height) / 100;
  const arrows = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  const move = arrows[event.key], [x, y] = aim || corners.at(-1) || [width / 2, height / 2];
  if (move) (aim = [clamp(x + move[0], 0, width), clamp(y + move[1], 0, height)]), renderShapes();
  else if (event.key === ' ') addCorner([x, y]);
  else if (event.key === 'Enter' && corners.length) closePolygon();
  else if (event.key === 'Backspace' && corners.length) corners.pop(), renderShapes();
  else if (event.key === 'Escape') endPolygon(), say('');
  else return;
  event.preventDefault();
};
for (const choice of element.querySelectorAll('.stage-paint input[type=radio]')) choice.onchange = endPolygon;

// The keyboard's brush: a painted region grows, or shrinks, by the brush's size all around.
const growShape = (index, grows) => {
  const held = shapes.get(keyOf(boxes[index])), shape = newShape(), context = pen(shape);
  if (!held) return say(`Box ${index + 1} is not painted; the arrows with Shift resize it.`);
  context.drawImage(held, 0, 0);
  context.globalCompositeOperation = grows ? 'source-over' : 'destination-in';
  for (let turn = 0; turn < 16; turn += 1) {
    const angle = (turn * Math.PI) / 8, far = Math.max(1, radius(shape) / 2);
    context.drawImage(held, far * Math.cos(angle), far * Math.sin(angle));
  }
  const whole = pixelsOf(shape).box; // never to nothing
  if (whole) setShape(index, shape, [...boxes[index]]);
  render();
  publish();
};

find('.add-point').onclick = () => {
  const { width, height } = image, aside = 0.4 + (boxes.length % 5) * 0.05, shape = newShape();
  addBox([0, 0, 0, 0]);
  drag = { tool: 'point' };
  stroke(shape, [width * aside, height * aside], [width * aside, height * aside]);
  drag = null;
  setShape(selected, shape, null);
  render();
  publish();
  layer.children[selected]?.focus({ preventScroll: true });
};

frame.onpointerdown = (event) => {
  if (!image || drag || event.button > 0) return;
  const start = point(event), region = event.target.closest('.stage-region');
  const onTag = region && event.target !== region && event.target.classList.contains('region-tag');
  if (tool() !== 'box' && !(onTag && !corners.length)) { // a number moves its region, but not amid a polygon
    event.preventDefault();
    frame.setPointerCapture(event.pointerId);
    if (tool() !== 'polygon') return startPainting(event, start);
    drag = { id: event.pointerId, corner: true, index: -1 };
    return frame.focus({ preventScroll: true });
  }
  const index = region && event.target !== region ? Number(region.dataset.index) : -1;
  event.preventDefault();
  chips.querySelector('.chip-input')?.blur();
  frame.setPointerCapture(event.pointerId);
  if (index >= 0) {
    select(index);
    layer.children[index].focus({ preventScroll: true });
    if (isFixed(index)) return say(`Box ${index + 1} is part of the conversation and stays where it is.`);
    drag = { id: event.pointerId, start, index, before: [...boxes[index]], side: event.target.dataset.side || '' };
  } else {
    drag = { id: event.pointerId, start, index: -1, before: null, side: '' };
  }
};

frame.onpointermove = (event) => {
  if (image && tool() === 'polygon' && corners.length) (aim = point(event)), renderShapes();
  if (!drag || drag.id !== event.pointerId || drag.corner) return;
  if (drag.shape) return paint(event);
  const [x, y] = point(event), [x0, y0] = drag.start;
  if (drag.before && drag.side) boxes[drag.index] = resized(drag.before, drag.side, x - x0, y - y0);
  else if (drag.before) boxes[drag.index] = moved(drag.before, x - x0, y - y0);
  else if (drag.index < 0) {
    if (!largeEnough([x0, y0, x, y])) return;
    addBox([x0, y0, x, y]);
    drag.index = boxes.length - 1;
  } else boxes[drag.index] = [x0, y0, x, y];
  render();
};

const largeEnough = (box) => {
  const area = view.getBoundingClientRect(), [x1, y1, x2, y2] = ordered(box);
  return ((x2 - x1) / image.width) * area.width >= SMALLEST && ((y2 - y1) / image.height) * area.height >= SMALLEST;
};

frame.onpointerup = (event) => {
  if (!drag || drag.id !== event.pointerId) return;
  if (drag.shape) return endPainting();
  const { index, before, start, corner } = drag;
  drag = null;
  if (corner) return addCorner(point(event));
  if (index < 0) {
    select(boxAt(start));
    if (selected >= 0) layer.children[selected].focus({ preventScroll: true });
    return;
  }
  boxes[index] = ordered(boxes[index]);
  if (!largeEnough(boxes[index])) {
    if (before) boxes[index] = before;
    else boxes.pop(), (selected = -1);
  } else if (before) carryName(before, carryShape(before, boxes[index]));
  render();
  publish();
  if (selected >= 0) layer.children[selected].focus({ preventScroll: true });
};

frame.onpointercancel = () => {
  if (!drag) return;
  if (drag.before) boxes[drag.index] = drag.before;
  else if (drag.index >= 0) boxes.pop(), (selected = -1);
  drag = null;
  render();
};

const onBoxKey = (event, index) => {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const known = isFixed(index);
  if (event.key === 'Enter' || event.key === ' ') insertMention(index + 1, known);
  else if (event.key === 'Escape') select(-1), frame.focus({ preventScroll: true });
  else if (event.key === 'Delete' || event.key === 'Backspace') {
    removeBox(index);
    frame.focus({ preventScroll: true });
  } else if ((event.key === '+' || event.key === '-') && props.masks && !known) growShape(index, event.key === '+');
  else if (arrows[event.key]) {
    if (known) return say(`Box ${index + 1} is part of the conversation and stays where it is.`);
    const step = event.altKey || event.ctrlKey ? 1 : Math.max(image.width, image.height) / 100;
    const [dx, dy] = arrows[event.key].map((one) => one * step);
    const next = event.shiftKey ? resized(boxes[index], 'se', dx, dy) : moved(boxes[index], dx, dy);
    if (next[2] - next[0] >= 1 && next[3] - next[1] >= 1) {
      carryName(boxes[index], carryShape(boxes[index], next));
      boxes[index] = next;
    }
    render();
    publish();
  } else return;
  event.preventDefault();
  event.stopPropagation();
};

// A box for those who do not draw: in the middle, a little aside from the one before.
find('.add-box').onclick = () => {
  const { width, height } = image, aside = (boxes.length % 5) * 0.04;
  addBox([width * (0.3 + aside), height * (0.3 + aside), width * (0.6 + aside), height * (0.6 + aside)]);
  render();
  publish();
  layer.children[selected].focus({ preventScroll: true });
};

element.querySelector('.stage').classList.toggle('paints', Boolean(props.masks));
const NAMING = 'gpt4roi-naming';
naming.closest('label').hidden = !props.naming;
naming.checked = localStorage.getItem(NAMING) !== 'off';
naming.onchange = () => {
  localStorage.setItem(NAMING, naming.checked ? 'on' : 'off');
  wantNames();
};

const send = (chosen) => {
  if (!chosen) return;
  if (!chosen.type.startsWith('image/')) return say(`“${chosen.name}” is not an image.`, true);
  if (chosen.size > props.max_bytes) {
    const megabytes = (size) => (size / 2 ** 20).toFixed(1);
    return say(`“${chosen.name}” has ${megabytes(chosen.size)} MB; at most ${megabytes(props.max_bytes)} are taken.`, true);
  }
  say('Looking at the image …');
  const reader = new FileReader();
  reader.onload = () => trigger('upload', { image: reader.result, name: chosen.name });
  reader.onerror = () => say(`“${chosen.name}” cannot be read.`, true);
  reader.readAsDataURL(chosen);
};

file.onchange = () => {
  send(file.files[0]);
  file.value = '';
};
for (const button of element.querySelectorAll('.choose')) button.onclick = () => file.click();
element.ondragover = (event) => event.preventDefault();
element.ondrop = (event) => {
  event.preventDefault();
  send(event.dataTransfer.files[0]);
};
document.addEventListener('paste', (event) => {
  const pasted = [...(event.clipboardData?.files || [])].find((one) => one.type.startsWith('image/'));
  if (pasted && element.isConnected) send(pasted);
});

// As wide as there is room; a small image is shown up to three times its size, to be drawn on more easily.
const shownWidth = () => {
  const { width, height } = image, most = Math.max(width, Math.min(3 * width, 560));
  return `min(100%, ${((68 * width) / height).toFixed(2)}vh, ${most}px)`;
};

// Takes over the boxes of the conversation; those that are in no question yet stay, also one that is being drawn.
const keepDrawn = (value) => {
  const asked = new Set(value.boxes.map(String)), held = drag && drag.index >= 0 ? boxes[drag.index] : null;
  const chosen = boxes[selected];
  boxes = [...value.boxes.map((box) => [...box]), ...boxes.slice(fixed).filter((box) => !asked.has(String(rounded(box))))];
  fixed = value.fixed;
  selected = boxes.indexOf(chosen);
  if (held) drag.index = boxes.indexOf(held);
  if (held && drag.index < 0) drag = null;
  publish();
};

const load = () => {
  const value = props.value || {};
  const next = props.image && props.image.src ? props.image : null;
  const changed = (next && next.id) !== (image && image.id);
  if (changed) {
    [corners, aim] = [[], null];
    image = next;
    if (image) view.src = image.src;
    else view.removeAttribute('src');
    view.alt = image ? 'The image of the conversation' : '';
    if (image) frame.style.width = shownWidth();
  }
  const same = Boolean(image) && !changed;
  if (same && value.image !== image.id) return; // of an answer about the image before
  if (same && value.keep) keepDrawn(value);
  else {
    boxes = image && value.boxes ? value.boxes.map((box) => [...box]) : [];
    fixed = value.fixed || 0;
    selected = -1;
    drag = null;
    if (!value.names) { // not written by this side: another image, or begun anew
      names.clear();
      shapes.clear();
      waiting.clear();
      if (boxes.length > fixed) publish(); // an example's
    }
  }
  say(props.note ? props.note.text : '', Boolean(props.note && props.note.wrong));
  render();
};
watch(['value', 'image', 'note'], load);
load();
