// One scenario of OpenAI's client for Node against a server; prints what it got as JSON.
// Usage: NODE_PATH=… node openai_client.cjs SCENARIO BASE_URL

const { OpenAI } = require("openai");

const [scenario, baseURL] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 30_000 });
const sum = { model: "math", messages: [{ role: "user", content: "What is 2 plus 3?" }], temperature: 0 };
const endless = { ...sum, stream: true, max_tokens: 400, ignore_eos: true };
const number = { type: "integer", minimum: 0, maximum: 9 };
const properties = { a: number, b: number };
const parameters = { type: "object", properties, required: ["a", "b"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "add", parameters } }];

async function failure(request) {
  try {
    await request;
  } catch (error) {
    const { status = null, code = null, param = null } = error;
    return { name: error.constructor.name, status, code, param, message: error.message };
  }
  return null;
}

const scenarios = {
  async models() {
    const listed = [];
    for await (const model of client.models.list()) listed.push(model.id);
    return { listed, one: (await client.models.retrieve("math")).id };
  },

  async chat() {
    const { data, response } = await client.chat.completions.create(sum).withResponse();
    return { content: data.choices[0].message.content, tokens: data.usage.total_tokens, id: response.headers.get("x-request-id") };
  },

  async stream() {
    let content = "";
    for await (const chunk of await client.chat.completions.create({ ...sum, stream: true })) {
      content += chunk.choices[0]?.delta?.content ?? "";
    }
    return content;
  },

  async tools() {
    const forced = { type: "function", function: { name: "add" } };
    const reply = await client.chat.completions.create({ ...sum, tools, tool_choice: forced });
    const [call] = reply.choices[0].message.tool_calls;
    return { name: call.function.name, given: JSON.parse(call.function.arguments), finish: reply.choices[0].finish_reason };
  },

  async embeddings() {
    const reply = await client.embeddings.create({ model: "math", input: ["two", "three"] });
    return reply.data.map((entry) => entry.embedding.length);
  },

  async errors() {
    return {
      unknown: await failure(client.chat.completions.create({ ...sum, model: "nope" })),
      wrong: await failure(client.chat.completions.create({ ...sum, messages: [] })),
      late: await failure(client.chat.completions.create({ ...endless, stream: false }, { timeout: 5 })),
    };
  },

  async abort() {
    const stream = await client.chat.completions.create(endless);
    let pieces = 0;
    for await (const _ of stream) {
      pieces += 1;
      if (pieces === 3) stream.controller.abort();
    }
    return { pieces, afterwards: (await client.chat.completions.create(sum)).choices[0].message.content };
  },

  async retry() {
    const began = performance.now();
    const reply = await client.chat.completions.create(sum, { maxRetries: 3 });
    return { content: reply.choices[0].message.content, seconds: (performance.now() - began) / 1000 };
  },
};

scenarios[scenario]().then((result) => console.log(JSON.stringify(result)));
