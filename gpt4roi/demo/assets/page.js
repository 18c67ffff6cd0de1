// What the parts of the page share: colours, mentions of regions, the question box, downloads.
(() => {
  const MENTION = /<region(\d+)>|\bregion ?(\d+)\b/gi;

  const color = (number) => {
    const palette = window.gpt4roiPalette;
    return palette[(number - 1) % palette.length];
  };

  const make = (tag, className = '', text = '') => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text) node.textContent = text;
    return node;
  };

  // A chip that puts its region into the question. A region that was asked about is plain text from then on.
  const chip = (number, known, label = `region${number}`) => {
    const button = make('button', 'region-chip', label);
    button.type = 'button';
    button.style.setProperty('--region', color(number));
    button.title = `Put region ${number} into the question`;
    button.onclick = () => insertMention(number, known);
    return button;
  };

  // Text becomes nodes; mentions of the regions that there are become chips. Nothing is read as HTML.
  const withChips = (text, count, known) => {
    const nodes = document.createDocumentFragment();
    let end = 0;
    for (const match of text.matchAll(MENTION)) {
      const number = Number(match[1] || match[2]);
      if (number < 1 || number > count) continue;
      nodes.append(text.slice(end, match.index), chip(number, known.includes(number)));
      end = match.index + match[0].length;
    }
    nodes.append(text.slice(end));
    return nodes;
  };

  const questionBox = () => document.querySelector('#question textarea');

  const setQuestion = (text, caret = text.length) => {
    const box = questionBox();
    if (!box) return;
    box.value = text;
    box.dispatchEvent(new Event('input', { bubbles: true }));
    box.focus({ preventScroll: true });
    box.setSelectionRange(caret, caret);
  };

  const insertMention = (number, known) => {
    const box = questionBox();
    if (!box) return;
    const mention = known ? `region${number}` : `<region${number}>`;
    const before = box.value.slice(0, box.selectionStart);
    const after = box.value.slice(box.selectionEnd);
    const left = before && !/\s$/.test(before) ? ' ' : '';
    const right = after && !/^[\s?.!,;:]/.test(after) ? ' ' : '';
    setQuestion(before + left + mention + right + after, (before + left + mention).length);
  };

  // After a deletion higher numbers move down; the question follows, and loses the mention of what is gone. `<2>` and
  // `< Region 2 >` are mentions too.
  const renumberQuestion = (deleted) => {
    const box = questionBox();
    if (!box || !box.value.includes('<')) return;
    const text = box.value.replace(/ ?<\s*(?:region)?\s*(\d+)\s*>/gi, (mention, digits) => {
      const number = Number(digits);
      if (number === deleted) return '';
      return number > deleted ? mention.replace(digits, String(number - 1)) : mention;
    });
    if (text === box.value) return;
    const focused = document.activeElement;
    setQuestion(text);
    if (focused) focused.focus({ preventScroll: true });
  };

  const download = (name, data) => {
    const link = make('a');
    link.href = data;
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
  };

  // The image with numbered boxes, for the conversation. boxes: [x1, y1, x2, y2] in the image's pixels.
  const figure = (image, boxes, fresh) => {
    const frame = make('div', 'figure');
    const view = make('img');
    view.src = image.src;
    // Said before the image is decoded, so that nothing below jumps and the end can be scrolled to.
    frame.style.aspectRatio = `${image.width} / ${image.height}`;
    frame.style.width = `min(70%, ${Math.round((260 * image.width) / image.height)}px)`;
    view.alt = `The image with ${boxes.length} numbered ${boxes.length === 1 ? 'box' : 'boxes'}`;
    frame.append(view);
    boxes.forEach((box, index) => {
      const number = index + 1;
      const node = make('div', fresh.includes(number) ? 'figure-box' : 'figure-box older');
      place(node, box, image);
      node.style.setProperty('--region', color(number));
      node.append(make('span', 'region-tag', String(number)));
      frame.append(node);
    });
    return frame;
  };

  const place = (node, [x1, y1, x2, y2], image) => {
    node.style.left = `${(100 * x1) / image.width}%`;
    node.style.top = `${(100 * y1) / image.height}%`;
    node.style.width = `${(100 * (x2 - x1)) / image.width}%`;
    node.style.height = `${(100 * (y2 - y1)) / image.height}%`;
  };

  window.gpt4roi = { color, make, chip, withChips, questionBox, setQuestion, insertMention, renumberQuestion, download, figure, place };
})();
