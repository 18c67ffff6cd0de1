// A file that Python made, {name, data}, saved by the browser; nothing is written on the server.
watch('value', () => {
  if (props.value && props.value.data) window.gpt4roi.download(props.value.name, props.value.data);
});
