// Node's amqplib by its callback API, which its own documentation gives for speed; JSON.parse is all the validation.
"use strict";

const amqplib = require("amqplib/callback_api");

const { BENCH_WORK: work, CHOREO_URL: url } = process.env;
const events = Number(process.env.BENCH_EVENTS);
const begin = Number(process.env.BENCH_BEGIN);
const end = Number(process.env.BENCH_END);
const prefetch = Number(process.env.BENCH_PREFETCH);
const WINDOW = 500;
const OPTIONS = { persistent: true, contentType: "application/json" };

let count = 0;
let wall, cpu;

function seen() {
  count += 1;
  if (count === begin) {
    process.stdout.write("begun\n");
    wall = process.hrtime.bigint();
    cpu = process.cpuUsage();
  } else if (count === end) {
    const seconds = Number(process.hrtime.bigint() - wall) / 1e9;
    const { user, system } = process.cpuUsage(cpu);
    process.stdout.write(JSON.stringify({ events: end - begin, seconds, cpu: (user + system) / 1e6 }) + "\n");
  }
}

function order(number) {
  return {
    order: `o-${String(number).padStart(8, "0")}`,
    customer: "customer@example.org",
    total: "129.90",
    currency: "EUR",
    items: { book: 1, lamp: 2, globe: 1 },
    note: "x".repeat(358),
  };
}

function check(error) {
  if (error) throw error;
}

function publish(channel) {
  let sent = 0;
  const one = () => {
    if (sent === events) return;
    const content = Buffer.from(JSON.stringify(order(sent++)));
    channel.publish("plain.events", "order.placed", content, OPTIONS, (error) => {
      check(error);
      seen();
      one();
    });
  };
  for (let i = 0; i < WINDOW; i++) one();
}

function consume(channel) {
  channel.prefetch(prefetch);
  channel.consume("plain.work", (message) => {
    const placed = JSON.parse(message.content.toString());
    const acknowledge = (error) => {
      check(error);
      channel.ack(message);
      seen();
    };
    if (work !== "hop") return acknowledge();
    const reply = Buffer.from(JSON.stringify({ order: placed.order }));
    channel.publish("plain.events", "order.seen", reply, OPTIONS, acknowledge);
  });
}

amqplib.connect(url, { noDelay: true }, (error, connection) => {
  check(error);
  connection.createConfirmChannel((error, channel) => {
    check(error);
    if (work === "publish") publish(channel);
    else if (work !== "sample") consume(channel);
    else {
      const content = Buffer.from(JSON.stringify(order(0)));
      channel.publish("plain.events", "order.placed", content, OPTIONS, () => connection.close());
    }
  });
});
