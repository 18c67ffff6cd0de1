// The conversation. Python gives `image` and `value` {rounds, boxes, introduced, pending, version}; a round is {question, answer, regions}.
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
  return node;
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
    const node = roundNode(round, index, value, value.pending && index === rounds.length - 1);
    if (list.children[index]) list.children[index].replaceWith(node);
    else list.append(node);
  });
  if (keys.join() !== shown.join()) list.scrollTop = list.scrollHeight;
  shown = keys;
};
watch(['value', 'image'], load);
load();
