// fastify and ioredis with auto-pipelining: verify V3, one XADD a request, 200.
import { createHmac, timingSafeEqual } from "node:crypto";
import { createRequire } from "node:module";

const require = createRequire(process.env.BENCH_NODE_HOME + "/package.json");
const fastify = require("fastify");
const Redis = require("ioredis");
const querystring = require("fast-querystring");

const { BENCH_PORT, BENCH_REDIS_URL, BENCH_URL, BENCH_AUTH_TOKEN } = process.env;
const redis = new Redis(BENCH_REDIS_URL, { enableAutoPipelining: true });
const app = fastify();

// The body stays as it came: it is what is stored. It is parsed for the signature.
app.addContentTypeParser("application/x-www-form-urlencoded", { parseAs: "string" }, (_, body, done) => done(null, body));

function verified(headers, body) {
  const parameters = querystring.parse(body);
  let text = BENCH_URL + "?";
  for (const name of Object.keys(parameters).sort()) text += name + parameters[name];
  text += "." + headers["x-plivo-signature-v3-nonce"];
  const expected = Buffer.from(createHmac("sha256", BENCH_AUTH_TOKEN).update(text).digest("base64"));
  for (const value of (headers["x-plivo-signature-v3"] ?? "").split(",")) {
    const given = Buffer.from(value.trim());
    if (given.length === expected.length && timingSafeEqual(given, expected)) return true;
  }
  return false;
}

app.post("/callbacks", async (request, reply) => {
  if (!verified(request.headers, request.body)) return reply.code(403).send();
  await redis.xadd("callbacks", "*", "body", request.body);
  return reply.code(200).send();
});

await app.listen({ host: "127.0.0.1", port: Number(BENCH_PORT) });
