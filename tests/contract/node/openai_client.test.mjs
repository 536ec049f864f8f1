// The official `openai` client for Node against an emulator that is running. Its address and key come by environment;
// faults are put through the emulator's own door, a script for each test.
import assert from "node:assert/strict";
import { after, beforeEach, test } from "node:test";
import OpenAI from "openai";

const { EMULATOR_ORIGIN: origin, EMULATOR_BASE_URL: baseURL, EMULATOR_KEY: apiKey } = process.env;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const persistent = client.withOptions({ maxRetries: 2 });

const says = (text, role = "user") => ({ type: "message", role, content: text });
const texts = (items) => items.map((item) => item.content.map((part) => part.text).join(""));

async function play(...rules) {
  const answer = await fetch(`${origin}/_emulator/faults`, { method: "PUT", body: JSON.stringify({ rules }) });
  assert.equal(answer.status, 200, await answer.text());
}

async function stored(conversation) {
  const items = [];
  for await (const item of client.conversations.items.list(conversation.id, { order: "asc" })) items.push(item);
  return texts(items);
}

const applied = async () => (await (await fetch(`${origin}/_emulator/stats`)).json()).faults.map((fault) => fault.applied);

beforeEach(() => play());
after(() => play());

test("the vendor's example runs unchanged", async () => {
  const conversation = await client.conversations.create();
  const items = await client.conversations.items.create(conversation.id, {
    items: [
      {
        type: "message",
        role: "user",
        content: [{ type: "input_text", text: "Alice's major is teacher education" }],
      },
      { type: "message", role: "user", content: "Alice's best friend is Bob" },
    ],
  });
  const [first, second] = items.data;
  assert.match(first.id, /^msg_/);
  assert.deepEqual(items, {
    object: "list",
    data: [first, second],
    first_id: first.id,
    last_id: second.id,
    has_more: false,
  });
  assert.deepEqual(second, {
    id: second.id,
    type: "message",
    role: "user",
    content: [{ type: "input_text", text: "Alice's best friend is Bob" }],
    status: "completed",
  });
});

test("a conversation is created, retrieved, updated and deleted", async () => {
  const created = await client.conversations.create({ metadata: { topic: "demo" }, items: [says("hello", "system")] });
  assert.equal(created.object, "conversation");
  assert.match(created.id, /^conv_/);
  assert.deepEqual(created.metadata, { topic: "demo" });
  assert.ok(Number.isInteger(created.created_at));
  assert.deepEqual(await client.conversations.retrieve(created.id), created);
  const updated = await client.conversations.update(created.id, { metadata: { topic: "other" } });
  assert.deepEqual(updated, { ...created, metadata: { topic: "other" } });
  assert.deepEqual(await client.conversations.delete(created.id), {
    id: created.id,
    object: "conversation.deleted",
    deleted: true,
  });
  await assert.rejects(client.conversations.retrieve(created.id), OpenAI.NotFoundError);
});

test("an item is retrieved and deleted", async () => {
  const conversation = await client.conversations.create({ items: [says("a"), says("b", "assistant"), says("c")] });
  const [, b] = (await client.conversations.items.list(conversation.id, { order: "asc" })).data;
  assert.deepEqual(b.content, [{ type: "output_text", text: "b", annotations: [] }]);
  const place = { conversation_id: conversation.id };
  assert.deepEqual(await client.conversations.items.retrieve(b.id, place), b);
  assert.deepEqual(await client.conversations.items.delete(b.id, place), conversation);
  await assert.rejects(client.conversations.items.retrieve(b.id, place), OpenAI.NotFoundError);
  assert.deepEqual(await stored(conversation), ["a", "c"]);
});

test("pages follow each other by themselves, in both orders", async () => {
  const conversation = await client.conversations.create();
  const all = Array.from({ length: 47 }, (_, number) => `text ${number}`);
  for (let from = 0; from < all.length; from += 20) {
    await client.conversations.items.create(conversation.id, { items: all.slice(from, from + 20).map((text) => says(text)) });
  }
  for (const [order, expected] of [["asc", all], ["desc", all.toReversed()]]) {
    const items = [];
    for await (const item of client.conversations.items.list(conversation.id, { limit: 7, order })) items.push(item);
    assert.deepEqual(texts(items), expected);
  }
  const newest = await client.conversations.items.list(conversation.id);
  assert.equal(newest.data.length, 20);
  assert.ok(newest.hasNextPage());
  assert.deepEqual(texts((await newest.getNextPage()).data), all.toReversed().slice(20, 40));
});

test("an id of any kind survives the client", async () => {
  for (const id of ["a/b?c#d%2Fe", "ü 東京", "a+b&c"]) {
    await assert.rejects(client.conversations.retrieve(id), (error) => error.status === 404 && error.message.includes(id));
  }
});

test("a wrong key is an authentication error", async () => {
  const stranger = client.withOptions({ apiKey: "sk-wrong" });
  await assert.rejects(stranger.conversations.create(), (error) => {
    assert.ok(error instanceof OpenAI.AuthenticationError);
    return error.code === "invalid_api_key";
  });
});

test("a refused request names what is wrong with it", async () => {
  const conversation = await client.conversations.create();
  const refusals = [
    [[says("a"), says("b", "tool")], "items[1].role", "invalid_value"],
    [Array(21).fill(says("a")), "items", "array_above_max_length"],
    [[], "items", "empty_array"],
  ];
  for (const [items, param, code] of refusals) {
    await assert.rejects(client.conversations.items.create(conversation.id, { items }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.deepEqual([error.param, error.code, error.type], [param, code, "invalid_request_error"]);
      return true;
    });
  }
  const gone = client.conversations.items.list(conversation.id, { after: "msg_unknown" });
  await assert.rejects(gone, OpenAI.BadRequestError);
  assert.deepEqual(await stored(conversation), []);
});

for (const [status, Class] of [
  [400, OpenAI.BadRequestError],
  [401, OpenAI.AuthenticationError],
  [403, OpenAI.PermissionDeniedError],
  [404, OpenAI.NotFoundError],
  [409, OpenAI.ConflictError],
  [422, OpenAI.UnprocessableEntityError],
  [429, OpenAI.RateLimitError],
  [500, OpenAI.InternalServerError],
  [503, OpenAI.InternalServerError],
]) {
  test(`status ${status} is a ${Class.name}`, async () => {
    await play({ effect: { kind: "status", status, code: "some_code", param: "items[0]", message: "Told so." } });
    await assert.rejects(client.conversations.create(), (error) => {
      assert.ok(error instanceof Class, error.constructor.name);
      assert.deepEqual([error.status, error.code, error.param], [status, "some_code", "items[0]"]);
      assert.match(error.message, /Told so\./);
      assert.match(error.requestID, /^req_/);
      return true;
    });
  });
}

for (const [kind, code] of [["lock", "conversation_locked"], ["unpaid", "Arrearage"]]) {
  test(`the vendor's own refusal ${code} is a bad request with its code`, async () => {
    await play({ effect: { kind } });
    await assert.rejects(client.conversations.create(), (error) => error instanceof OpenAI.BadRequestError && error.code === code);
  });
}

for (const status of [408, 409, 429, 500, 503]) {
  test(`after ${status} it tries again, and stores once`, async () => {
    const conversation = await client.conversations.create();
    const effect = { kind: "status", status, headers: { "retry-after-ms": "1" } };
    await play({ effect, when: { first: 2 } });
    await persistent.conversations.items.create(conversation.id, { items: [says("once")] });
    assert.deepEqual(await applied(), [2]);
    assert.deepEqual(await stored(conversation), ["once"]);
  });
}

test("it gives up after as many retries as it was given", async () => {
  await play({ effect: { kind: "status", status: 429, headers: { "retry-after-ms": "1" } } });
  await assert.rejects(persistent.conversations.create(), OpenAI.RateLimitError);
  assert.deepEqual(await applied(), [3]);
});

test("it obeys x-should-retry, either way", async () => {
  const headers = { "retry-after-ms": "1" };
  await play({ effect: { kind: "status", status: 500, headers: { ...headers, "x-should-retry": "false" } } });
  await assert.rejects(persistent.conversations.create(), OpenAI.InternalServerError);
  assert.deepEqual(await applied(), [1]);
  await play({ effect: { kind: "status", status: 400, headers: { ...headers, "x-should-retry": "true" } }, when: { first: 1 } });
  await persistent.conversations.create();
  assert.deepEqual(await applied(), [1]);
});

test("a throttle with Retry-After is waited for", async () => {
  const conversation = await client.conversations.create();
  await play({ effect: { kind: "rate_throttle", requests_per_second: 50, retry_after_ms: 25 } });
  for (const text of ["1", "2", "3"]) {
    await persistent.conversations.items.create(conversation.id, { items: [says(text)] });
  }
  await play();
  assert.deepEqual(await stored(conversation), ["1", "2", "3"]);
});

test("a cut connection is a connection error", async () => {
  await play({ effect: { kind: "cut" } });
  await assert.rejects(client.conversations.create(), (error) => {
    assert.ok(error instanceof OpenAI.APIConnectionError);
    return !(error instanceof OpenAI.APIConnectionTimeoutError);
  });
});

test("a client that tries again after a cut stores twice", async () => {
  const conversation = await client.conversations.create();
  await play({ effect: { kind: "cut", stores: "all" }, when: { first: 1 } });
  await persistent.conversations.items.create(conversation.id, { items: [says("twice")] });
  assert.deepEqual(await stored(conversation), ["twice", "twice"]);
});

test("silence is a time-out", async () => {
  await play({ effect: { kind: "silence" } });
  await assert.rejects(client.conversations.create({}, { timeout: 100 }), OpenAI.APIConnectionTimeoutError);
});

test("half an answer is no answer", async () => {
  await play({ effect: { kind: "half_json" } });
  await assert.rejects(client.conversations.create(), SyntaxError);
});
