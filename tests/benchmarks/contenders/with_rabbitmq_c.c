/* A C program on rabbitmq-c, as a good one is written: publishes are not waited for one by one, confirms and
 * acknowledgements go by "multiple", and what is acknowledged is written when no more frames wait to be read.
 * The order's number is looked for in the JSON; the rest of it is not parsed. */
#define _GNU_SOURCE /* memmem */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>

#define WINDOW 500

static amqp_connection_state_t connection;
static long events, begin, end, counted;
static double wall, cpu;

static void fail(const char *what) {
    fprintf(stderr, "rabbitmq-c: %s\n", what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double used(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void seen(void) {
    counted++;
    if (counted == begin) {
        printf("begun\n");
        fflush(stdout);
        wall = now();
        cpu = used();
    }
    if (counted == end) {
        printf("{\"events\": %ld, \"seconds\": %.6f, \"cpu\": %.6f}\n", end - begin, now() - wall, used() - cpu);
        fflush(stdout);
    }
}

static void publish(const char *key, const char *body, size_t size) {
    amqp_basic_properties_t properties;
    amqp_bytes_t bytes = {size, (void *)body};
    properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG;
    properties.content_type = amqp_cstring_bytes("application/json");
    properties.delivery_mode = 2;
    if (amqp_basic_publish(connection, 1, amqp_cstring_bytes("plain.events"), amqp_cstring_bytes(key), 0, 0,
                           &properties, bytes) != AMQP_STATUS_OK)
        fail("a publish could not be written");
}

static size_t order(char *body, size_t size, long number) {
    return snprintf(body, size,
                    "{\"order\": \"o-%08ld\", \"customer\": \"customer@example.org\", \"total\": \"129.90\", "
                    "\"currency\": \"EUR\", \"items\": {\"book\": 1, \"lamp\": 2, \"globe\": 1}, \"note\": \"%0358d\"}",
                    number, 0);
}

/* Waits for a Basic.Ack and returns how far it confirms. */
static uint64_t confirm(const amqp_frame_t *frame) {
    if (frame->frame_type != AMQP_FRAME_METHOD || frame->payload.method.id != AMQP_BASIC_ACK_METHOD)
        fail("the broker said something other than a confirm");
    return ((amqp_basic_ack_t *)frame->payload.method.decoded)->delivery_tag;
}

static void work_publish(void) {
    char body[1024];
    long sent = 0, confirmed = 0;
    while (confirmed < events) {
        while (sent < events && sent - confirmed < WINDOW) publish("order.placed", body, order(body, sizeof body, sent++));
        amqp_frame_t frame;
        if (amqp_simple_wait_frame(connection, &frame) != AMQP_STATUS_OK) fail("the connection was lost");
        for (uint64_t upto = confirm(&frame); confirmed < (long)upto; confirmed++) seen();
        amqp_maybe_release_buffers(connection);
    }
}

static void acknowledge(uint64_t tag) {
    if (amqp_basic_ack(connection, 1, tag, 1) != AMQP_STATUS_OK) fail("an acknowledgement could not be written");
}

/* Whether nothing more can be read at once, so that what is owed to the broker should be written. */
static int idle(void) { return !amqp_frames_enqueued(connection) && !amqp_data_in_buffer(connection); }

/* Takes one delivery, and returns where the order's number stands in its body. */
static const char *take(const amqp_envelope_t *envelope) {
    static const char mark[] = "o-";
    const char *found = memmem(envelope->message.body.bytes, envelope->message.body.len, mark, 2);
    if (found == NULL) fail("a body without an order");
    return found;
}

static void work_consume(int prefetch) {
    uint64_t owed = 0;
    for (;;) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        if (amqp_consume_message(connection, &envelope, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL)
            fail("no delivery came");
        take(&envelope);
        owed++;
        seen();
        if (idle() || owed >= (uint64_t)prefetch / 2) {
            acknowledge(envelope.delivery_tag);
            owed = 0;
        }
        amqp_destroy_envelope(&envelope);
    }
}

/* Deliveries and confirms come in order on the one channel, so the n-th publish belongs to the n-th delivery. */
static void work_hop(void) {
    uint64_t confirmed = 0, acknowledged = 0;
    for (;;) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        amqp_rpc_reply_t reply = amqp_consume_message(connection, &envelope, NULL, 0);
        if (reply.reply_type == AMQP_RESPONSE_NORMAL) {
            char body[64];
            publish("order.seen", body, snprintf(body, sizeof body, "{\"order\":\"%.10s\"}", take(&envelope)));
            amqp_destroy_envelope(&envelope);
        } else {
            amqp_frame_t frame;
            if (reply.library_error != AMQP_STATUS_UNEXPECTED_STATE) fail("the connection was lost");
            if (amqp_simple_wait_frame(connection, &frame) != AMQP_STATUS_OK) fail("the connection was lost");
            for (uint64_t upto = confirm(&frame); confirmed < upto; confirmed++) seen();
        }
        if (confirmed > acknowledged && idle()) {
            acknowledge(confirmed);
            acknowledged = confirmed;
        }
    }
}

static const char *given(const char *name) {
    const char *value = getenv(name);
    if (value == NULL) fail(name);
    return value;
}

static void check(const char *what) {
    if (amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL) fail(what);
}

static void open_channel(void) {
    char *url = strdup(given("CHOREO_URL"));
    struct amqp_connection_info broker;
    amqp_default_connection_info(&broker);
    if (amqp_parse_url(url, &broker) != AMQP_STATUS_OK) fail("CHOREO_URL cannot be read");
    connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (amqp_socket_open(socket, broker.host, broker.port) != AMQP_STATUS_OK) fail("no broker there");
    if (amqp_login(connection, broker.vhost[0] ? broker.vhost : "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, broker.user,
                   broker.password).reply_type != AMQP_RESPONSE_NORMAL)
        fail("the broker refused the login");
    amqp_channel_open(connection, 1);
    check("no channel");
}

int main(void) {
    const char *work = given("BENCH_WORK");
    int prefetch = atoi(given("BENCH_PREFETCH"));
    events = atol(given("BENCH_EVENTS"));
    begin = atol(given("BENCH_BEGIN"));
    end = atol(given("BENCH_END"));
    open_channel();
    if (strcmp(work, "consume") != 0) {
        amqp_confirm_select(connection, 1);
        check("no confirms");
    }
    if (strcmp(work, "publish") == 0) {
        work_publish();
    } else if (strcmp(work, "sample") == 0) {
        work_publish();
    } else {
        amqp_basic_qos(connection, 1, 0, prefetch, 0);
        amqp_basic_consume(connection, 1, amqp_cstring_bytes("plain.work"), amqp_empty_bytes, 0, 0, 0,
                           amqp_empty_table);
        check("no subscription");
        strcmp(work, "hop") == 0 ? work_hop() : work_consume(prefetch);
    }
    if (strcmp(work, "publish") == 0) pause(); /* until the referee ends it */
    amqp_channel_close(connection, 1, AMQP_REPLY_SUCCESS);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    return 0;
}
