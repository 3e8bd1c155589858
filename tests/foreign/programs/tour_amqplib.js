// The tour of Node's amqplib: see tests/foreign/test_tour.py for what it has to print.
"use strict";

const amqplib = require("amqplib");

const { FOREIGN_URL: url, FOREIGN_WORK: WORK, FOREIGN_DEAD: DEAD } = process.env;
const HEADERS = { number: 42, large: 2 ** 40, nested: { list: [1, "two", true, null] } };
const ARGUMENTS = {
  "x-queue-type": "quorum",
  "x-delivery-limit": 10,
  "x-dead-letter-exchange": "",
  "x-dead-letter-routing-key": DEAD,
};

const print = (...words) => process.stdout.write(words.join(" ") + "\n");
const often = (message) => (message.fields.redelivered ? "again" : "for the first time");
const inbox = [];
let arrived = () => {};

async function publish(channel, queue, ...bodies) {
  for (const body of bodies) {
    channel.sendToQueue(queue, Buffer.from(body), { persistent: true, headers: HEADERS, mandatory: true });
  }
  await channel.waitForConfirms();
  print("confirmed:", bodies.length);
}

async function refused(connection, declare) {
  const channel = await connection.createChannel();
  channel.on("error", (error) => print("refused:", error.code, error.message.match(/with message "(.*)"$/)[1]));
  await declare(channel).catch(() => {});
}

async function delivered() {
  while (!inbox.length) await new Promise((resolve) => (arrived = resolve));
  const message = inbox.shift();
  print("delivered:", message.content, often(message));
  return message;
}

async function main() {
  const connection = await amqplib.connect(url);
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue(DEAD, { durable: true });
  const declared = await channel.assertQueue(WORK, { durable: true, arguments: ARGUMENTS });
  print("declared:", declared.messageCount, "messages,", declared.consumerCount, "consumers");
  await publish(channel, WORK, "a", "b", "c", "d", "e");
  channel.once("return", ({ fields, content }) => print("returned:", fields.replyCode, fields.replyText, content));
  channel.sendToQueue(`${WORK}.nowhere`, Buffer.from("lost"), { mandatory: true });
  await channel.waitForConfirms();

  for (const requeue of [true, false]) {
    const got = await channel.get(WORK);
    print("got:", got.content, often(got), got.fields.messageCount, "left");
    if (requeue) {
      const { nested, number, large } = got.properties.headers;
      print("headers:", JSON.stringify(nested).replaceAll(/([:,])/g, "$1 "), number, large);
      channel.nack(got);
    } else {
      channel.ack(got);
    }
  }

  await channel.prefetch(2);
  const { consumerTag } = await channel.consume(WORK, (message) => {
    inbox.push(message);
    arrived();
  });
  const b = await delivered();
  const c = await delivered();
  await channel.checkQueue(DEAD); // and back: a third would be here by then
  print("held:", 2 + inbox.length);
  channel.ack(b);
  channel.nack(await delivered());
  await delivered();
  channel.reject(c, false);
  channel.ack(await delivered(), true);
  await channel.cancel(consumerTag);
  print("left:", (await channel.checkQueue(WORK)).messageCount);

  let dead;
  while (!(dead = await channel.get(DEAD)));
  const [death] = dead.properties.headers["x-death"];
  print("dead:", dead.content, death.reason, death.count);
  channel.ack(dead);
  await publish(channel, DEAD, "large".repeat(100_000));
  print("large:", (await channel.get(DEAD, { noAck: true })).content.length);
  await publish(channel, DEAD, "x", "y", "z");
  print("purged:", (await channel.purgeQueue(DEAD)).messageCount);
  print("empty:", (await channel.get(DEAD)) === false ? "True" : "False");

  await refused(connection, (other) => other.checkQueue(`${WORK}.nowhere`));
  await refused(connection, (other) =>
    other.assertQueue(WORK, { durable: true, arguments: { ...ARGUMENTS, "x-dead-letter-routing-key": WORK } }),
  );
  print("deleted:", (await channel.deleteQueue(WORK)).messageCount);
  await channel.deleteQueue(DEAD);
  await refused(connection, (other) => other.checkQueue(WORK));
  await connection.close();
}

main();
