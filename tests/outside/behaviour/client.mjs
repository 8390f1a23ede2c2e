// Node's own fetch, as the official SDK for JavaScript uses it: whole, streamed, given up, refused.
// usage: node client.mjs BASE MODEL TOKENS     prints what it saw as JSON
const [base, model, tokens] = process.argv.slice(2);
const seen = { again: 0 };
const ask = async (path, body, more = {}) => {
  const request = {
    method: "POST",
    headers: { "content-type": "application/json", authorization: "Bearer any" },
    body: JSON.stringify({ model, temperature: 0, seed: 1, max_tokens: 5, ...body }),
    ...more,
  };
  try {
    return await fetch(`${base}${path}`, request);
  } catch (error) {
    // A kept connection that the other side closed at that moment.
    if (error.cause?.code !== "UND_ERR_SOCKET") throw error;
    seen.again += 1;
    return fetch(`${base}${path}`, request);
  }
};
const messages = [{ role: "user", content: "hello" }];

async function* events(answer) {
  let rest = "";
  for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
    rest += part;
    for (let at; (at = rest.indexOf("\n\n")) >= 0; rest = rest.slice(at + 2)) yield rest.slice(0, at);
  }
}

const whole = await (await ask("/v1/chat/completions", { messages })).json();
seen.whole = whole.choices[0].message.content;

const stream = await ask("/v1/chat/completions", { messages, stream: true });
seen.type = stream.headers.get("content-type");
let text = "";
for await (const event of events(stream)) {
  const data = event.slice("data: ".length);
  if (data === "[DONE]") seen.done = true;
  else text += JSON.parse(data).choices[0].delta.content ?? "";
}
seen.stream = text;

const giveUp = new AbortController();
const long = { prompt: "hello", max_tokens: Number(tokens), stream: true, ignore_eos: true };
const cut = await ask("/v1/completions", long, { signal: giveUp.signal });
seen.read = 0;
try {
  for await (const _ of events(cut)) {
    if (giveUp.signal.aborted) continue;
    if (++seen.read === 3) giveUp.abort();
  }
} catch (error) {
  seen.aborted = error.name;
}

const nobody = await ask("/v1/chat/completions", { messages, model: "nobody" });
seen.nobody = [nobody.status, (await nobody.json()).error.param];

const many = Array.from({ length: 32 }, () => ask("/v1/completions", { prompt: "hello" }));
const statuses = await Promise.all(many.map(async (one) => (await (await one).text(), (await one).status)));
seen.many = statuses.filter((status) => status === 200).length;

console.log(JSON.stringify(seen));
