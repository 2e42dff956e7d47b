/* The load generator: keep-alive HTTP/1.1 clients over epoll, on one core.
 *
 *   load --port P --clients N --requests FILE --warm-s W --slice-s S [--rate R] [--random 1] [--skip K]
 *        [--announce 1] [--pid PID]...
 *
 * FILE holds whole requests, each after its length in four bytes, least significant first; they are sent in
 * turn from the K-th on, again and again. Without --rate each client sends its next request once it has the answer. With
 * --rate, R requests a second are due, whatever the server does: one that finds no client free waits, and its latency
 * counts from when it was due, so that a server that stalls cannot hide it. They are due at even distances, or, with
 * --random, at those of a Poisson process, the same in every run.
 *
 * Nothing of the first W seconds is counted, but in how many were sent in all. After S more, one line of JSON: that,
 * answers by status class, seconds, latency percentiles in microseconds, and the CPU seconds that the given processes
 * used meanwhile. With --announce, lines "counting" and "counted" come before it at the moments when the slice begins
 * and ends.
 * Exit code 2 for wrong arguments, 1 where the server cannot be reached or answers what is not understood.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define CLIENTS_MAX 4096
#define PIDS_MAX 64
#define RESPONSE_MAX 16384
#define DRAIN_NS 2000000000ull /* after the slice, for answers still under way */

typedef struct {
    const char *bytes;
    uint32_t length;
} Request;

typedef struct {
    int fd;
    int busy;
    const Request *request;
    uint32_t sent;
    uint32_t received;
    uint64_t due_ns;
    char response[RESPONSE_MAX + 1];
} Client;

static Client clients[CLIENTS_MAX];
static int idle[CLIENTS_MAX], idle_count;
static Request *requests;
static size_t request_count, next_request;
static int port, client_count = 64, epoll_fd, timer_fd, pid_count;
static int pids[PIDS_MAX];
static int is_random, announces;
static double warm_s = 0.5, slice_s = 2, rate;
static double due_after_ns; /* the start, of the next request */
static uint64_t counted_from_ns, counted_to_ns;
static uint64_t sent, answered, good, refused, failed, reconnects;
static uint32_t *latencies_us10; /* tenths of a microsecond */
static size_t latency_count, latency_room;

static void die(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(code);
}

static uint64_t now_ns(void) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return (uint64_t)moment.tv_sec * 1000000000ull + (uint64_t)moment.tv_nsec;
}

static double cpu_s(void) {
    double sum = 0;
    for (int i = 0; i < pid_count; i++) {
        clockid_t clock;
        struct timespec used;
        if (clock_getcpuclockid(pids[i], &clock) || clock_gettime(clock, &used)) die(1, "process %d has ended", pids[i]);
        sum += (double)used.tv_sec + (double)used.tv_nsec / 1e9;
    }
    return sum;
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(2, "cannot read %s", path);
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(size ? size : 1);
    if (!bytes || fread(bytes, 1, size, file) != size) die(2, "cannot read %s", path);
    fclose(file);
    size_t room = 0;
    for (size_t at = 0; at + 4 <= size;) {
        uint32_t length;
        memcpy(&length, bytes + at, 4);
        at += 4;
        if (at + length > size) die(2, "%s is cut off", path);
        if (request_count == room) {
            room = room ? room * 2 : 4096;
            requests = realloc(requests, room * sizeof *requests);
        }
        requests[request_count++] = (Request){bytes + at, length};
        at += length;
    }
    if (!request_count) die(2, "%s holds no request", path);
}

static void note_latency(uint64_t from_ns, uint64_t to_ns) {
    if (latency_count == latency_room) {
        latency_room = latency_room ? latency_room * 2 : 1 << 16;
        latencies_us10 = realloc(latencies_us10, latency_room * sizeof *latencies_us10);
        if (!latencies_us10) die(1, "out of memory");
    }
    uint64_t took = (to_ns - from_ns) / 100;
    latencies_us10[latency_count++] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
}

static void watch(Client *client, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(client - clients)};
    if (epoll_ctl(epoll_fd, operation, client->fd, &event)) die(1, "epoll_ctl: %s", strerror(errno));
}

static void dial(Client *client) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    client->fd = socket(AF_INET, SOCK_STREAM, 0);
    int one = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address)) die(1, "cannot connect: %s", strerror(errno));
    fcntl(client->fd, F_SETFL, fcntl(client->fd, F_GETFL) | O_NONBLOCK);
    client->received = 0;
    watch(client, EPOLLIN, EPOLL_CTL_ADD);
}

static void write_on(Client *client) {
    while (client->sent < client->request->length) {
        ssize_t wrote = send(client->fd, client->request->bytes + client->sent, client->request->length - client->sent,
                             MSG_NOSIGNAL);
        if (wrote < 0 && errno == EAGAIN) {
            watch(client, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return;
        }
        if (wrote < 0) return; /* the read that follows sees the end */
        client->sent += (uint32_t)wrote;
    }
}

static void ask(Client *client, uint64_t due_ns) {
    client->request = &requests[next_request];
    next_request = next_request + 1 == request_count ? 0 : next_request + 1;
    client->sent = 0;
    client->busy = 1;
    sent++;
    client->due_ns = due_ns;
    write_on(client);
}

/* The distance between the next request and the one after it. */
static double step_ns(void) {
    static uint64_t state = 0x9e3779b97f4a7c15ull;
    if (!is_random) return 1e9 / rate;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift */
    return -log(((double)(state >> 11) + 1) / 9007199254740993.0) * 1e9 / rate;
}

static void announce(const char *word) {
    if (!announces) return;
    puts(word);
    fflush(stdout);
}

/* The length of the response in the buffer; 0 while it is not whole. */
static uint32_t whole_response(Client *client) {
    client->response[client->received] = 0;
    char *end = strstr(client->response, "\r\n\r\n");
    if (!end) {
        if (client->received == RESPONSE_MAX) die(1, "a response head over %d bytes", RESPONSE_MAX);
        return 0;
    }
    unsigned long body = 0;
    for (char *line = strstr(client->response, "\r\n"); line < end; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, "content-length:", 15)) body = strtoul(line + 17, NULL, 10);
        if (!strncasecmp(line + 2, "transfer-encoding:", 18)) die(1, "a chunked response");
    }
    unsigned long length = (unsigned long)(end - client->response) + 4 + body;
    if (length > RESPONSE_MAX) die(1, "a response over %d bytes", RESPONSE_MAX);
    return client->received >= length ? (uint32_t)length : 0;
}

static void free_client(Client *client) {
    client->busy = 0;
    idle[idle_count++] = (int)(client - clients);
}

static void take_answer(Client *client, uint64_t at_ns) {
    int status = atoi(client->response + 9);
    /* With a rate, what counts is when the request was due; else when its answer came. */
    uint64_t counts_at_ns = rate > 0 ? client->due_ns : at_ns;
    if (counts_at_ns >= counted_from_ns && counts_at_ns < counted_to_ns) {
        answered++;
        if (status == 200) good++;
        else if (status >= 400 && status < 500) refused++;
        else failed++;
        note_latency(client->due_ns, at_ns);
    }
}

static void read_on(Client *client) {
    ssize_t got = recv(client->fd, client->response + client->received, RESPONSE_MAX - client->received, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        if (client->busy) {
            failed++;
            free_client(client);
        }
        reconnects++;
        close(client->fd);
        dial(client);
        return;
    }
    client->received += (uint32_t)got;
    uint32_t length = whole_response(client);
    if (!length) return;
    if (client->received > length || !client->busy) die(1, "more than one response to a request");
    take_answer(client, now_ns());
    client->received = 0;
    free_client(client);
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile_us(double share) {
    if (!latency_count) return 0;
    size_t place = (size_t)(share * (double)latency_count);
    return latencies_us10[place < latency_count ? place : latency_count - 1] / 10.0;
}

static void set_timer(uint64_t at_ns) {
    struct itimerspec when = {.it_value = {(time_t)(at_ns / 1000000000ull), (long)(at_ns % 1000000000ull)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void read_arguments(int count, char **arguments) {
    const char *path = NULL;
    for (int i = 1; i + 1 < count; i += 2) {
        const char *name = arguments[i], *value = arguments[i + 1];
        if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--clients")) client_count = atoi(value);
        else if (!strcmp(name, "--requests")) path = value;
        else if (!strcmp(name, "--warm-s")) warm_s = atof(value);
        else if (!strcmp(name, "--slice-s")) slice_s = atof(value);
        else if (!strcmp(name, "--rate")) rate = atof(value);
        else if (!strcmp(name, "--random")) is_random = atoi(value);
        else if (!strcmp(name, "--skip")) next_request = strtoul(value, NULL, 10);
        else if (!strcmp(name, "--announce")) announces = atoi(value);
        else if (!strcmp(name, "--pid") && pid_count < PIDS_MAX) pids[pid_count++] = atoi(value);
        else die(2, "what is %s?", name);
    }
    if (!path || !port || client_count < 1 || client_count > CLIENTS_MAX || count % 2 == 0) die(2, "see load.c");
    read_requests(path);
    next_request %= request_count;
}

int main(int count, char **arguments) {
    read_arguments(count, arguments);
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event timer_event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &timer_event);
    for (int i = client_count - 1; i >= 0; i--) {
        dial(&clients[i]);
        idle[idle_count++] = i;
    }
    uint64_t start_ns = now_ns();
    counted_from_ns = start_ns + (uint64_t)(warm_s * 1e9);
    counted_to_ns = counted_from_ns + (uint64_t)(slice_s * 1e9);
    double cpu_before_s = 0, cpu_used_s = 0;
    uint64_t real_from_ns = 0, real_to_ns = 0;
    struct epoll_event events[256];
    for (;;) {
        uint64_t now = now_ns();
        if (!real_from_ns && now >= counted_from_ns) {
            cpu_before_s = cpu_s();
            real_from_ns = counted_from_ns = now;
            counted_to_ns = now + (uint64_t)(slice_s * 1e9);
            announce("counting");
        }
        if (!real_to_ns && real_from_ns && now >= counted_to_ns) {
            real_to_ns = now;
            cpu_used_s = cpu_s() - cpu_before_s;
            announce("counted");
        }
        if (real_to_ns && (idle_count == client_count || rate <= 0 || now > real_to_ns + DRAIN_NS)) break;
        if (!real_to_ns) {
            uint64_t due_ns = now;
            while (idle_count) {
                if (rate > 0 && (due_ns = start_ns + (uint64_t)due_after_ns) > now) break;
                /* the longest idle first, so that all take part */
                Client *client = &clients[idle[0]];
                memmove(idle, idle + 1, (size_t)--idle_count * sizeof *idle);
                if (rate > 0) due_after_ns += step_ns();
                ask(client, due_ns);
            }
            if (rate > 0 && idle_count) set_timer(due_ns < counted_to_ns ? due_ns : counted_to_ns);
        }
        int ready = epoll_wait(epoll_fd, events, 256, 100);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.u32 == UINT32_MAX) {
                uint64_t expired;
                if (read(timer_fd, &expired, sizeof expired) < 0 && errno != EAGAIN) die(1, "timer");
                continue;
            }
            Client *client = &clients[events[i].data.u32];
            if (events[i].events & EPOLLOUT) {
                watch(client, EPOLLIN, EPOLL_CTL_MOD);
                write_on(client);
            }
            if (events[i].events & ~(uint32_t)EPOLLOUT) read_on(client);
        }
    }
    /* What was due and never answered counts with as long as it has waited. */
    uint64_t unanswered = 0, end_ns = now_ns();
    for (int i = 0; rate > 0 && i < client_count; i++)
        if (clients[i].busy && clients[i].due_ns >= counted_from_ns) unanswered++, note_latency(clients[i].due_ns, end_ns);
    for (; rate > 0; due_after_ns += step_ns()) {
        uint64_t due_ns = start_ns + (uint64_t)due_after_ns;
        if (due_ns >= counted_to_ns) break;
        if (due_ns >= counted_from_ns) unanswered++, note_latency(due_ns, end_ns);
    }
    qsort(latencies_us10, latency_count, sizeof *latencies_us10, by_size);
    printf("{\"sent\":%llu,\"answered\":%llu,\"good\":%llu,\"refused\":%llu,\"failed\":%llu,\"unanswered\":%llu,"
           "\"reconnects\":%llu,"
           "\"seconds\":%.6f,\"cpu_s\":%.6f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f}\n",
           (unsigned long long)sent, (unsigned long long)answered, (unsigned long long)good, (unsigned long long)refused,
           (unsigned long long)failed, (unsigned long long)unanswered, (unsigned long long)reconnects,
           (double)(real_to_ns - real_from_ns) / 1e9, cpu_used_s, percentile_us(0.5), percentile_us(0.99),
           percentile_us(0.999), percentile_us(1));
    return 0;
}
