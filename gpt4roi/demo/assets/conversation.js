// The conversation. Python gives `image` and `value` {rounds, boxes, introduced, pending, version}; a round is {question,
// answer, regions, model_answer}, the last where a person corrected the answer, of which the event "correct" tells.
const { make, withChips, figure } = window.gpt4roi;
const list = element.querySelector('.conversation');

const roundNode = (round, index, value, pending) => {
  const node = make('article', pending ? 'round pending' : 'round');
  const known = value.rounds.slice(0, index + 1).flatMap((one) => one.regions);
  const last = Math.max(0, ...known);
  if (props.image && props.image.src && (index === 0 || round.regions.length)) {
    node.append(figure(props.image, value.boxes.slice(0, last), round.regions));
  }
  const question = make('p', 'question'), answer = make('p', 'answer');
  const introduced = value.introduced || [];
  question.append(withChips(round.question, value.boxes.length, introduced));
  answer.append(withChips(round.answer, last, introduced));
  if (pending && !round.answer) answer.append(make('span', 'dots', '…'));
  else if (!round.answer) answer.append(make('span', 'no-words', '(no words)'));
  node.append(question, answer);
  if (!pending) node.append(correctButton(round, index, node, answer));
  return node;
};

const correctButton = (round, index, node, answer) => {
  const corrected = typeof round.model_answer === 'string';
  const button = make('button', 'correct', corrected ? '✎ corrected' : '✎ Correct');
  button.type = 'button';
  button.title = corrected ? `The model answered: ${round.model_answer}` : 'Write the right answer, to train on';
  button.onclick = () => {
    const form = make('form', 'correction'), text = make('textarea'), save = make('button', '', 'Save');
    const cancel = make('button', '', 'Cancel');
    cancel.type = 'button';
    text.value = round.answer;
    text.rows = Math.min(8, 1 + Math.ceil(round.answer.length / 50));
    text.setAttribute('aria-label', 'The right answer');
    const close = () => {
      form.replaceWith(answer, button);
      load(); // what came meanwhile
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      close();
      trigger('correct', { image: props.image ? props.image.id : '', round: index, answer: text.value });
    };
    text.onkeydown = (event) => {
      if (event.key === 'Escape') close();
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) event.preventDefault(), form.requestSubmit();
    };
    cancel.onclick = close;
    form.append(text, save, cancel);
    button.remove();
    answer.replaceWith(form);
    text.focus();
  };
  return button;
};

let shown = [], version = 0;
const load = () => {
  const value = props.value || { rounds: [], boxes: [] };
  if (value.version < version) return; // of an answer that was stopped meanwhile
  version = value.version || 0;
  const rounds = value.rounds || [];
  const keys = rounds.map((round, index) =>
    JSON.stringify([round, index === rounds.length - 1 && value.pending, value.boxes.length, value.introduced, props.image?.id]));
  element.querySelector('.conversation-empty').hidden = rounds.length > 0;
  while (list.children.length > rounds.length) list.lastChild.remove();
  rounds.forEach((round, index) => {
    if (keys[index] === shown[index] && list.children[index]) return;
    if (list.children[index]?.querySelector('.correction')) return void (keys[index] = ''); // being corrected
    const node = roundNode(round, index, value, value.pending && index === rounds.length - 1);
    if (list.children[index]) list.children[index].replaceWith(node);
    else list.append(node);
  });
  if (keys.length !== shown.length || keys.at(-1) !== shown.at(-1)) list.scrollTop = list.scrollHeight;
  shown = keys;
};
watch(['value', 'image'], load);
load();
